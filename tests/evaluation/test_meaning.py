"""What is judged against ground truth, and what is left alone."""

from pathlib import Path
from typing import Any

from bevcask.evaluation.meaning import meaning
from bevcask.progress import no_bar
from viz.cached import build


def test_what_random_weights_say_is_not_judged(tmp_path: Path) -> None:
    cache = build(tmp_path / "c.zarr")
    frames: Any = None  # nor is ground truth read
    with no_bar("", 0) as bar:
        found = meaning(cache, frames, cache.frames.tokens, bar)
    assert {(own.target, own.verdict) for own in found.findings} == {
        ("bev.neck", "undecided"), ("head.heatmap", "undecided"), ("head.boxes", "undecided"),
    }  # fmt: skip
    assert all("weights are random, seed 3" in own.note for own in found.findings)
    assert found.change == {}
    assert found.not_judged.keys() == {"query.last"}

"""verify, probe and statistics on the workers of a dask cluster say what one process says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bevcask.evaluation.agreement import joined
from cache.test_verify_bytes import flip
from small_student import STUDENT

Call = Callable[..., tuple[int, str, str]]


def said(call: Call, *words: object, code: int = 0) -> dict[str, Any]:
    got, out, err = call(*words, "--json")
    assert got == code, err
    return json.loads(out)


def rounded(tree: Any) -> Any:
    """Return numbers to nine digits: sums of sums are rounded otherwise."""
    if isinstance(tree, dict):
        return {key: rounded(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [rounded(value) for value in tree]
    return float(f"{tree:.9g}") if isinstance(tree, float) else tree


@pytest.mark.slow
def test_a_sound_cache(
    cached_world: Path, teacher_words: list[str], scheduler: str, call: Call
) -> None:
    words = [word for word in teacher_words if not word.startswith("loader")]
    words += ["check=meaning", "resample=9", "equivariance=2"]
    by_dask = ["engine=dask", f"scheduler={scheduler}"]
    here = said(call, "verify", cached_world, *words)
    assert rounded(said(call, "verify", cached_world, *words, *by_dask)) == rounded(here)
    assert here["resample"]["bev.neck"]["frames"] == 6


def test_damage_is_named(cached_world: Path, scheduler: str, call: Call, tmp_path: Path) -> None:
    url = tmp_path / "own.zarr"
    shutil.copytree(cached_world, url)
    flip(next(url.glob("targets/bev.neck/values/c.1.*")), 9)
    by_dask = ["engine=dask", f"scheduler={scheduler}"]
    here = said(call, "verify", url, "check=meaning", code=1)
    assert said(call, "verify", url, "check=meaning", *by_dask, code=1) == here
    assert [problem["shard"] for problem in here["problems"]] == [1]


@pytest.mark.slow
def test_statistics(cached_world: Path, scheduler: str, call: Call) -> None:
    here = said(call, "inspect", cached_world)
    there = said(call, "inspect", cached_world, "engine=dask", f"scheduler={scheduler}")
    assert rounded(here) == rounded(there)


@pytest.mark.slow
def test_a_probe(tiny_world: Path, teacher_words: list[str], scheduler: str, call: Call) -> None:
    words = [word for word in teacher_words if not word.startswith("loader")]
    words += [word for word in STUDENT if word.startswith("student")]
    words += ["method=distillbev_tiny", "probe=2"]
    here = said(call, "plan", *words)
    there = said(call, "plan", *words, "engine=dask", f"scheduler={scheduler}")
    for one in (*here["probe"], *there["probe"]):
        del one["decode_ms"]
    assert rounded(here) == rounded(there)
    assert len(here["probe"]) > 3


def test_agreements_of_portions_are_joined() -> None:
    far = {"frames": 1, "error": 3.0, "absolute": 0.1, "token": "b", "cells_differ": 0.0}
    near = {"frames": 2, "error": 1.0, "absolute": 9.0, "token": "a", "cells_differ": 0.5}
    parts = [
        ({"x": {**near, "noise": 0.2, "verdict": "noise"}}, []),
        ({"x": {**far, "noise": 0.0, "verdict": "agrees"}}, []),
    ]
    found, problems = joined(parts)
    assert problems == []
    assert found["x"] == {
        "frames": 3, "error": 3.0, "absolute": 0.1, "token": "b", "cells_differ": 0.5,
        "noise": 0.2, "verdict": "noise",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["workers=2"], "for engine=dask"),
        (["scheduler=tcp://127.0.0.1:1"], "for engine=dask"),
        (["engine=dask", "workers=2", "scheduler=tcp://x:1"], "has workers of its own"),
        (["engine=dask", "workers=0"], "workers: "),
    ],
)
def test_words_that_ask_for_no_cluster(
    words: list[str], message: str, cached_world: Path, call: Call
) -> None:
    code, _, err = call("verify", cached_world, *words)
    assert code == 2
    assert message in " ".join(err.split())

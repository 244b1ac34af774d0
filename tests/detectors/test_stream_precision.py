"""StreamPETR and RayDN in half precision, and what of a teacher's head they start with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bevcask.detectors.memory import Stream
from bevcask.detectors.stream_family import StreamDetector
from bevcask.detectors.weights import save_weights
from bevcask.errors import CheckpointError
from bevcask.training.checkpoint import inherit_head
from contracts.detector import boxes_of_all_classes, labels_of
from detectors.small_stream import SMALL_PETR, SMALL_RAY, seen, small


@pytest.fixture(params=[SMALL_PETR, SMALL_RAY], ids=["streampetr", "raydn"])
def detector(request: pytest.FixtureRequest) -> StreamDetector:
    return small(request.param)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains_near_float32(detector: StreamDetector, dtype: torch.dtype) -> None:
    """Two frames of a scene; what is remembered, places and times above all, is not rounded."""
    detector.train()
    exact, half = (two_frames(detector, dtype, enabled) for enabled in (False, True))
    assert half[0] != exact[0]
    assert half[0] == pytest.approx(exact[0], rel=0.05)
    kept = detector.config.kept
    to_global_44 = detector._poses(seen(1, 1)).to_global_B44[0]
    assert torch.equal(half[1]["poses"][0, :kept], to_global_44.expand(kept, 4, 4))
    for name in ("poses", "seconds"):
        new = half[1][name][:, :kept], exact[1][name][:, :kept]
        assert torch.equal(*new), name


def two_frames(
    detector: StreamDetector, dtype: torch.dtype, enabled: bool
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of the second frame and what is remembered of it."""
    torch.manual_seed(0)
    labels, stream = labels_of(boxes_of_all_classes(1)), Stream()
    for number in range(2):
        after = [f"{number - 1}" if number else None]
        batch = replace(seen(1, number), labels=labels, after=after, tokens=[f"{number}"])
        shown = stream.recall(batch)
        with torch.autocast("cpu", dtype, enabled=enabled):
            output = detector(shown)
            losses = detector.loss(output, shown)
        stream.keep(shown, output.memory)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    slopes = [own.grad for own in detector.parameters() if own.grad is not None]
    assert all(bool(slope.isfinite().all()) for slope in slopes)
    return float(total.detach()), dict(output.memory)


def test_a_student_inherits_all_behind_the_pyramid(
    detector: StreamDetector, tmp_path: Path
) -> None:
    """Queries and decoder are the teacher's; its backbone, pyramid and image head are not."""
    teacher, head = small(detector.config), tmp_path / "head.safetensors"
    with torch.no_grad():
        for own in teacher.parameters():
            own.add_(1.0)
    save_weights(teacher.head_weights(), head, {})
    before = {name: own.clone() for name, own in detector.state_dict().items()}
    copied = inherit_head(detector, head)
    changed = {n for n, own in detector.state_dict().items() if not torch.equal(own, before[n])}
    assert changed
    assert copied == len(teacher.head_weights())
    assert not any(n.startswith(("backbone.", "pyramid.", "image_head.")) for n in changed)
    assert {n.partition(".")[0] for n in changed} == set(detector.inherits("full_head"))
    assert torch.equal(detector.queries.references, teacher.queries.references)


def test_a_head_of_other_queries_is_refused(detector: StreamDetector, tmp_path: Path) -> None:
    other = small(detector.config.model_copy(update={"queries": 30}))
    save_weights(other.head_weights(), tmp_path / "head.safetensors", {})
    with pytest.raises(CheckpointError, match=r"queries\.references"):
        inherit_head(detector, tmp_path / "head.safetensors")

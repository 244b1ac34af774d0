"""Pseudo labels: how many, which, where, and that nobody else gives any."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.detectors.base import Labels
from bevcask.geometry import bev_matrix
from bevcask.methods import build_method
from bevcask.methods.base import Target
from bevcask.methods.denoising import pseudo_boxes
from bevcask.registry import METHODS
from bevcask.targets.align import Align
from contracts.method import TURN

REACH = (61.2, 61.2, 10.0)


def boxes(*centres: tuple[float, float, float], rows: int = 8) -> Tensor:
    """Return one sample's boxes, best first, and rows of zeros behind them; class = place."""
    found = torch.zeros(rows, 11)
    for i, centre in enumerate(centres):
        found[i] = torch.tensor([*centre, 4.0, 2.0, 1.5, 0.3, 1.0, 2.0, 0.9 - 0.1 * i, float(i)])
    return found


def taken(rows_BN11: Tensor, count: list[int] | None, truth: list[int], released: bool) -> Any:
    count_B = None if count is None else torch.tensor(count)
    return [own[:, 10].tolist() for own in pseudo_boxes(rows_BN11, count_B, truth, REACH, released)]


NEAR, FAR = (1.0, 2.0, 0.0), (61.3, 0.0, 0.0)


@pytest.mark.parametrize(
    ("truth", "clean", "released"),
    [
        ([2, 3], [2, 3], [2, 2]),
        ([0, 3], [0, 3], [0, 3]),
        ([0, 2, 0, 5], [0, 2, 0, 4], [0, 2, 2, 2]),
        ([0, 0], [0, 0], [0, 0]),
        ([9], [4], [4]),
    ],
)
def test_how_many(truth: list[int], clean: list[int], released: list[int]) -> None:
    """Clean: as many as the sample itself has. Released: as the first that has any."""
    rows = boxes(NEAR, NEAR, NEAR, NEAR).expand(len(truth), -1, -1)
    for wanted, mode in ((clean, False), (released, True)):
        found = taken(rows, [4] * len(truth), truth, mode)
        assert found == [[float(i) for i in range(count)] for count in wanted]


@pytest.mark.parametrize("far", [FAR, (0.0, -61.3, 0.0), (0.0, 0.0, 10.1), (-61.3, 0.0, 0.0)])
def test_boxes_out_of_reach_leave_their_place_to_others(far: tuple[float, float, float]) -> None:
    """Released: they are dropped after the choice, and fewer are left."""
    rows = boxes(NEAR, far, NEAR, NEAR)[None]
    assert taken(rows, [4], [3], False) == [[0, 2, 3]]
    assert taken(rows, [4], [3], True) == [[0, 2]]
    assert taken(rows, [2], [3], False) == [[0]]
    on_the_border = boxes((61.2, -61.2, 10.0))[None]
    assert taken(on_the_border, [1], [1], False) == taken(on_the_border, [1], [1], True) == [[0]]


def test_without_a_count_all_rows_are_boxes() -> None:
    assert taken(boxes(NEAR, NEAR, rows=2)[None], None, [5], False) == [[0, 1]]


def truth(*counts: int) -> Labels:
    canonical = [torch.ones(count, 9) for count in counts]
    classes = [torch.zeros(count, dtype=torch.int64) for count in counts]
    return Labels(canonical, classes, canonical)


@pytest.mark.parametrize("mode", ["clean", "compat"])
@pytest.mark.parametrize("matrix", [bev_matrix(), TURN], ids=["clean", "turn"])
def test_labels_in_both_frames(matrix: Any, mode: str) -> None:
    section = {"type": "harmodistill", "denoising": True, "mode": mode}
    rows = torch.stack([boxes(NEAR, (3.0, -4.0, 0.5)), boxes((-7.0, 1.0, 0.0))])
    said = {"head.boxes": Target(rows, None, torch.tensor([2, 1]))}
    align = Align(torch.as_tensor(matrix).expand(2, 4, 4))
    before = rows.clone()
    found = build_method(section).pseudo_labels(said, truth(2, 3), align)
    assert found is not None
    assert [own.tolist() for own in found.classes] == [[0, 1], [0]]
    assert found.classes[0].dtype == torch.int64
    for own, wanted in zip(found.canonical_boxes, (rows[0, :2, :9], rows[1, :1, :9]), strict=True):
        assert torch.equal(own, wanted)
    x, y = (torch.as_tensor(matrix).float() @ torch.tensor([3.0, -4.0, 0.5, 1]))[:2].tolist()
    assert found.boxes[0][1, :2].tolist() == pytest.approx([x, y], rel=1e-5)
    scale = abs(torch.linalg.det(torch.as_tensor(matrix)[:2, :2]).item()) ** 0.5
    assert found.boxes[0][1, 3].item() == pytest.approx(4 * scale, rel=1e-5)
    assert torch.equal(rows, before)  # the released code writes probabilities over its logits


def test_no_boxes_at_all() -> None:
    method = build_method({"type": "harmodistill", "denoising": True})
    said = {"head.boxes": Target(torch.zeros(2, 8, 11), None, torch.tensor([0, 0]))}
    found = method.pseudo_labels(said, truth(2, 0), Align.identity(2))
    assert found is not None
    assert [own.shape for own in found.boxes] == [(0, 9), (0, 9)]
    assert [own.shape for own in found.classes] == [(0,), (0,)]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "several"])
def test_only_a_method_that_is_asked_gives_pseudo_labels(name: str) -> None:
    method = build_method({"type": name})
    assert method.pseudo_labels({}, truth(1), Align.identity(1)) is None

"""Pseudo labels: how many, which, where, and that nobody else gives any."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.methods.denoising import pseudo_boxes

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

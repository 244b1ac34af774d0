"""Box codes: known numbers, round trips, and moves in closed form."""

import math

import pytest
import torch

from bevcask.geometry import CLASSES, Grid, bev_matrix, transform_boxes
from bevcask.targets.box_code import (
    CODE_SIZE,
    TASK_OF_CLASS,
    TASKS,
    decode_boxes,
    encode_boxes,
    move_codes,
)
from bevcask.targets.heatmap import centre_cells
from contracts.detector import boxes_of_all_classes

GRID = Grid.square(51.2, 0.8)
MOVES = {
    "flip x": bev_matrix(flip_x=True),
    "flip y": bev_matrix(flip_y=True),
    "turn": bev_matrix(0.3, 1.05, False, True),
    "shrink": bev_matrix(-0.39, 0.95, True, False),
}


def many(matrix: object, number: int) -> torch.Tensor:
    return torch.as_tensor(matrix).expand(number, 4, 4)


def test_task_groups_list_the_classes_in_order() -> None:
    assert tuple(name for names in TASKS for name in names) == CLASSES
    assert [CLASSES[k] in TASKS[t] for k, t in enumerate(TASK_OF_CLASS)] == [True] * len(CLASSES)


def test_codes_round_trip() -> None:
    boxes, _ = boxes_of_all_classes()
    cells, _ = centre_cells(boxes, GRID)
    code = encode_boxes(boxes, cells, GRID)
    assert bool(((code[:, :2] >= 0) & (code[:, :2] < 1)).all())
    torch.testing.assert_close(decode_boxes(code, cells, GRID), boxes, atol=1e-4, rtol=1e-5)


def test_code_of_a_known_box() -> None:
    box = torch.tensor([[0.6, -0.2, -1.0, math.e, 1.0, math.e**2, math.pi / 6, 3.0, -4.0]])
    code = encode_boxes(box, torch.tensor([[63, 64]]), GRID)
    expected = [0.75, 0.75, -1.0, 1.0, 0.0, 2.0, 0.5, math.sqrt(3) / 2, 3.0, -4.0]
    assert code[0].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("matrix", MOVES.values(), ids=MOVES.keys())
def test_a_moved_code_is_the_code_of_the_moved_box(matrix: object) -> None:
    """decode, transform, encode on one side; closed form on the other."""
    boxes = boxes_of_all_classes()[0].double()
    moved = transform_boxes(boxes, matrix)
    (cells, _), (there, _) = centre_cells(boxes, GRID), centre_cells(moved, GRID)
    found = move_codes(
        encode_boxes(boxes, cells, GRID), cells, there, many(matrix, len(boxes)), GRID
    )
    torch.testing.assert_close(found, encode_boxes(moved, there, GRID), atol=1e-10, rtol=0)
    torch.testing.assert_close(decode_boxes(found, there, GRID)[:, :6], moved[:, :6])


def test_identity_changes_no_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    said = 3 * torch.randn((200, CODE_SIZE), generator=generator)
    cells = torch.randint(0, 128, (200, 2), generator=generator)
    assert torch.equal(move_codes(said, cells, cells, many(bev_matrix(), 200), GRID), said)


def test_flips_of_a_known_code() -> None:
    """Offset 0.25 from the left is 0.75 from the right; a heading of any length is mirrored."""
    said = torch.tensor([[0.25, 0.5, -1.0, 0.1, 0.2, 0.3, 0.6, 2.0, 3.0, -4.0]])
    matrix = many(bev_matrix(flip_x=True), 1)
    found = move_codes(said, torch.tensor([[5, 7]]), torch.tensor([[5, 120]]), matrix, GRID)
    expected = [[0.75, 0.5, -1.0, 0.1, 0.2, 0.3, 0.6, -2.0, -3.0, -4.0]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-7, rtol=0)


@pytest.mark.parametrize("matrix", MOVES.values(), ids=MOVES.keys())
def test_there_and_back(matrix: object) -> None:
    generator = torch.Generator().manual_seed(2)
    said = torch.randn((50, CODE_SIZE), generator=generator)
    cells = torch.randint(0, 128, (50, 2), generator=generator)
    there = torch.randint(0, 128, (50, 2), generator=generator)
    forth = many(matrix, 50)
    moved = move_codes(said.double(), cells, there, forth, GRID)
    back = move_codes(moved, there, cells, torch.linalg.inv(forth), GRID)
    torch.testing.assert_close(back.float(), said, atol=1e-7, rtol=0)


def test_no_boxes() -> None:
    none = torch.zeros((0, 2), dtype=torch.int64)
    assert move_codes(torch.zeros(0, 10), none, none, many(bev_matrix(), 0), GRID).shape == (0, 10)

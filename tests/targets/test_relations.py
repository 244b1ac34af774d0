"""Relations by hand, against float64, through gradients, and of a moved student."""

import math

import pytest
import torch
from torch.nn import functional

from bevcask.geometry import Grid, bev_matrix
from bevcask.targets.align import Align
from bevcask.targets.relations import cosine_relations

GRID = Grid.square(4.0, 1.0)


def test_by_hand() -> None:
    vectors = torch.tensor([[[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0], [-5.0, 0.0]]])
    known = torch.tensor([[True, True, True, True, False]])
    half = math.sqrt(0.5)
    expected = torch.zeros(1, 5, 5)
    expected[0, :3, :3] = torch.tensor([[1.0, 0.0, half], [0.0, 1.0, half], [half, half, 1.0]])
    torch.testing.assert_close(cosine_relations(vectors, known), expected)
    assert cosine_relations(vectors)[0, 0, 4] == -1


def test_against_float64() -> None:
    vectors = torch.randn(3, 40, 16) * torch.logspace(-8, 8, 40)[:, None]
    exact = vectors.double()
    expected = functional.cosine_similarity(exact[:, :, None], exact[:, None], dim=-1, eps=1e-300)
    torch.testing.assert_close(cosine_relations(vectors).double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(cosine_relations(exact), expected, rtol=0, atol=1e-14)
    assert cosine_relations(vectors.half()).dtype == torch.float32


def test_gradients_are_right_and_finite_at_zero() -> None:
    vectors = torch.randn(2, 4, 3, dtype=torch.float64)
    known = torch.tensor([[True, True, True, False], [True] * 4])
    torch.autograd.gradcheck(lambda own: cosine_relations(own, known), [vectors.requires_grad_()])
    nothing = torch.zeros(1, 3, 2, requires_grad=True)
    cosine_relations(nothing).sum().backward()
    assert nothing.grad is not None
    assert nothing.grad.isfinite().all()


@pytest.mark.parametrize("turn", [0.0, math.pi / 2])
def test_a_moved_student_relates_cells_as_the_teacher_does(turn: float) -> None:
    """Inside boxes, on a flip and on a quarter turn, bit for bit."""
    align = Align(torch.as_tensor(bev_matrix(turn, 1.0, True)).expand(2, 4, 4))
    teacher = torch.randn(2, 5, *GRID.shape_YX)
    student, _ = align.inverse().cells(teacher, GRID, GRID)
    assert not torch.equal(student, teacher)
    read, valid = align.cells(student, GRID, GRID)
    inside = valid & (torch.rand(2, *GRID.shape_YX) < 0.3)
    own, his = (
        cosine_relations(each.flatten(2).transpose(1, 2), inside.flatten(1))
        for each in (read, teacher)
    )
    assert torch.equal(own, his)
    assert (own != 0).any()

"""Inner-depth supervision: by hand, against loops, its gradient, its laws, and empty scenes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bevcask.methods.tigdistill_depth import expected_depth, first_smallest, inner_depth
from methods.oracle_tigdistill_depth import inner_depth as oracle

SHAPE = (3, 6, 5, 7)


def scene(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Expected depth, measured depth, and boxes: some cells empty, some boxes in two images."""
    random = torch.Generator().manual_seed(seed)
    expected = 1 + 58 * torch.rand(SHAPE, generator=random, dtype=dtype)
    depth = 1 + 58 * torch.rand(SHAPE, generator=random, dtype=dtype)
    box = torch.randint(-4, 5, SHAPE, generator=random).clamp(min=0)
    return expected, depth, box


def test_by_hand() -> None:
    """Box 1: errors 1, 3, 2; the first cell is the reference, the others 4 and 1 m off it."""
    expected = torch.tensor([[[[11.0, 17.0, 28.0, 5.0, 40.0]]]], requires_grad=True)
    depth = torch.tensor([[[[10.0, 20.0, 26.0, 9.0, 41.0]]]])
    box = torch.tensor([[[[1, 1, 1, 0, 2]]]])
    loss = inner_depth(expected, depth, box)
    loss.backward()
    # (17 - 11) - (20 - 10) = -4; (28 - 11) - (26 - 10) = 1; box 2 is its own reference.
    assert loss.item() == pytest.approx((16 + 1) / 4)
    assert expected.grad is not None
    assert expected.grad.flatten().tolist() == pytest.approx([0, -2, 0.5, 0, 0])


@pytest.mark.parametrize("seed", range(3))
def test_against_the_oracle(seed: int) -> None:
    expected, depth, box = scene(seed)
    expected.requires_grad_()
    loss = inner_depth(expected, depth, box)
    loss.backward()
    total, slope, _ = oracle(expected.detach().numpy(), depth.numpy(), box.numpy())
    assert loss.item() == pytest.approx(total, rel=1e-12)
    assert expected.grad is not None
    np.testing.assert_allclose(expected.grad.numpy(), slope, rtol=1e-12, atol=1e-15)


def test_gradient_by_finite_differences() -> None:
    """With the reference held: its own value is stopped, the others' are not."""
    expected, depth, box = scene(4)
    small = (slice(0, 1), slice(0, 2), slice(0, 3), slice(0, 3))
    expected, depth, box = expected[small], depth[small], box[small]
    _, _, references = oracle(expected.numpy(), depth.numpy(), box.numpy())
    is_reference = torch.zeros_like(box, dtype=torch.bool)
    for (b, v, _), cell in references.items():
        is_reference[b, v][cell] = True

    def others(moved: Tensor) -> Tensor:
        return inner_depth(torch.where(is_reference, expected, moved), depth, box)

    start = expected.clone().requires_grad_()
    assert torch.autograd.gradcheck(others, (start,), eps=1e-7, atol=1e-6)
    loss = inner_depth(start, depth, box)
    (slope,) = torch.autograd.grad(loss, start)
    assert (slope[is_reference] == 0).all()
    assert (slope[(box > 0) & ~is_reference] != 0).any()


def test_the_reference_moves_with_the_student() -> None:
    depth = torch.tensor([[[[10.0, 20.0, 30.0]]]])
    box = torch.ones_like(depth, dtype=torch.int64)
    for best in range(3):
        expected = (depth + 2).index_fill(3, torch.tensor(best), 0.0)
        expected[..., best] = depth[..., best] + 0.5
        expected.requires_grad_()
        inner_depth(expected, depth, box).backward()
        assert expected.grad is not None
        still = (expected.grad == 0).flatten()
        assert still.nonzero().flatten().tolist() == [best]


def test_laws() -> None:
    expected, depth, box = scene(7)
    loss = inner_depth(expected, depth, box)
    torch.testing.assert_close(inner_depth(3 * expected, 3 * depth, box), 9 * loss)
    # A constant error of a whole box is none: only relative depth counts.
    assert float(inner_depth(depth + 5, depth, box)) == pytest.approx(0, abs=1e-20)
    assert float(inner_depth(expected, depth, box.clamp(max=0))) == 0
    # Boxes of two images or samples are strangers, whatever their numbers.
    parts = [inner_depth(expected[b : b + 1], depth[b : b + 1], box[b : b + 1]) for b in range(3)]
    weights = torch.stack([(own > 0).sum() for own in box]).double()
    torch.testing.assert_close(loss, (torch.stack(parts) * weights).sum() / weights.sum())
    torch.testing.assert_close(inner_depth(expected, depth, box * 1000), loss)
    order = torch.randperm(SHAPE[1])
    torch.testing.assert_close(
        inner_depth(expected[:, order], depth[:, order], box[:, order]), loss
    )


def test_an_empty_scene_keeps_the_graph() -> None:
    expected, depth, box = scene(1)
    expected.requires_grad_()
    loss = inner_depth(expected, depth, torch.zeros_like(box))
    assert float(loss.detach()) == 0
    loss.backward()
    assert expected.grad is not None
    assert not expected.grad.any()


def test_the_first_of_equals_is_taken() -> None:
    values = torch.tensor([3.0, 1.0, 1.0, 2.0, 2.0, 0.0])
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    assert first_smallest(values, group, 3).tolist() == [1, 3, 5]


def test_expected_depth_by_hand() -> None:
    bins = torch.tensor([1.5, 2.5, 4.0])
    probabilities = torch.tensor([0.5, 0.25, 0.25]).view(1, 1, 3, 1, 1).expand(2, 6, 3, 4, 5)
    found = expected_depth(probabilities, bins)
    assert found.shape == (2, 6, 4, 5)
    torch.testing.assert_close(found, torch.full((2, 6, 4, 5), 2.375))

import math

import pytest
import torch

from bevcask.detectors.blocks.nms import circle_nms, rotated_nms


def greedy(xy: torch.Tensor, radius: float) -> list[bool]:
    """The textbook loop."""
    kept: list[int] = []
    for i in range(len(xy)):
        if all(float((xy[i] - xy[j]).norm()) > radius for j in kept):
            kept.append(i)
    return [i in kept for i in range(len(xy))]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("radius", [0.42, 2.0, 9.0, 100.0])
def test_equals_the_greedy_loop(seed: int, radius: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    xy = torch.rand((150, 2), generator=generator) * 20
    assert circle_nms(xy, radius).tolist() == greedy(xy, radius)


def test_a_silenced_box_silences_nobody() -> None:
    chain = torch.tensor([[0.0, 0.0], [1.5, 0.0], [3.0, 0.0], [4.5, 0.0]])
    assert circle_nms(chain, 2.0).tolist() == [True, False, True, False]


def test_radius_is_in_metres_and_inclusive() -> None:
    pair = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert circle_nms(pair, 3.0).tolist() == [True, False]
    assert circle_nms(pair, 2.99).tolist() == [True, True]


def test_no_box_and_one_box() -> None:
    assert circle_nms(torch.zeros((0, 2)), 1.0).tolist() == []
    assert circle_nms(torch.zeros((1, 2)), 1.0).tolist() == [True]


def box(x: float, y: float, length: float, width: float, yaw: float = 0.0) -> torch.Tensor:
    return torch.tensor([x, y, 0.0, length, width, 1.0, yaw, 0.0, 0.0])


def grid_iou(a: torch.Tensor, b: torch.Tensor) -> float:
    """IoU by counting points of a fine grid; imports nothing that the code uses."""
    steps = torch.linspace(-8, 8, 801)
    x, y = torch.meshgrid(steps, steps, indexing="ij")

    def inside(own: torch.Tensor) -> torch.Tensor:
        c, s = math.cos(own[6]), math.sin(own[6])
        along = (x - own[0]) * c + (y - own[1]) * s
        across = (y - own[1]) * c - (x - own[0]) * s
        return (along.abs() <= own[3] / 2) & (across.abs() <= own[4] / 2)

    one, other = inside(a), inside(b)
    return float((one & other).sum() / (one | other).sum().clamp(min=1))


def test_rotated_overlap_by_hand() -> None:
    """Two 4 x 2 m boxes one metre apart along x share 6 of 10 square metres: IoU 0.6."""
    pair = torch.stack([box(0, 0, 4, 2), box(1, 0, 4, 2)])
    assert rotated_nms(pair, 0.59).tolist() == [True, False]
    assert rotated_nms(pair, 0.61).tolist() == [True, True]
    crossed = torch.stack([box(0, 0, 4, 2), box(0, 0, 4, 2, math.pi / 2)])  # 4 of 12
    assert rotated_nms(crossed, 0.32).tolist() == [True, False]
    assert rotated_nms(crossed, 0.34).tolist() == [True, True]


@pytest.mark.parametrize("seed", range(3))
def test_rotated_equals_the_greedy_loop_over_counted_overlaps(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.zeros(12, 9)
    boxes[:, :2] = torch.rand((12, 2), generator=generator) * 8 - 4
    boxes[:, 3:5] = 1 + 3 * torch.rand((12, 2), generator=generator)
    boxes[:, 6] = torch.rand(12, generator=generator) * 6.28
    overlaps = {(i, j): grid_iou(boxes[i], boxes[j]) for i in range(12) for j in range(i)}
    threshold = 0.2
    assert all(abs(overlap - threshold) > 2e-3 for overlap in overlaps.values())
    kept: list[int] = []
    for i in range(12):
        if all(overlaps[i, j] <= threshold for j in kept):
            kept.append(i)
    assert rotated_nms(boxes, threshold).nonzero().flatten().tolist() == kept
    assert 1 < len(kept) < 12


def test_rotated_no_box_and_far_boxes() -> None:
    assert rotated_nms(torch.zeros((0, 9)), 0.2).tolist() == []
    far = torch.stack([box(0, 0, 4, 2), box(50, 0, 4, 2)])
    assert rotated_nms(far, 0.0).tolist() == [True, True]


def test_lists_side_by_side_are_as_alone_and_what_is_no_box_silences_nobody() -> None:
    random = torch.Generator().manual_seed(1)
    xy_LN2 = torch.rand((3, 60, 2), generator=random) * 12
    valid_LN = torch.rand((3, 60), generator=random) > 0.3
    radius_L = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
    kept_LN = circle_nms(xy_LN2, radius_L, valid_LN)
    for xy_N2, radius, valid_N, kept_N in zip(xy_LN2, radius_L, valid_LN, kept_LN, strict=True):
        assert kept_N[valid_N].tolist() == greedy(xy_N2[valid_N], float(radius))
        assert not kept_N[~valid_N].any()
    assert circle_nms(torch.zeros((2, 0, 2)), radius_L[:2], valid_LN[:2, :0]).shape == (2, 0)

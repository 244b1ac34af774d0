"""Regions: footprints, centre cells, scales, partition."""

import math

import pytest
import torch

from bevcask.detectors.base import Labels
from bevcask.geometry import Grid, bev_matrix, inside_footprints
from bevcask.methods.regions import boxes_in_reach, foreground, share, split
from bevcask.targets.align import Align

GRID = Grid.square(8.0, 1.0)


def box(x: float, y: float, length: float, width: float, yaw: float = 0.0) -> torch.Tensor:
    return torch.tensor([x, y, 0.0, length, width, 1.5, yaw, 0.0, 0.0])


def crowd(num: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.zeros(num, 9)
    boxes[:, :2] = torch.rand((num, 2), generator=generator) * 15.8 - 7.9
    boxes[:, 3:5] = 0.1 + 6 * torch.rand((num, 2), generator=generator)
    boxes[:, 6] = 6.28 * torch.rand(num, generator=generator)
    return boxes


def test_hand_drawn_box() -> None:
    """A 3 x 2 m box from (1, 0) to (4, 2) covers six 1 m cells, scale 1 / sqrt(6)."""
    mask, scale = foreground([box(2.5, 1.0, 3.0, 2.0)[None]], GRID)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[8:10, 9:12] = True
    assert torch.equal(mask[0], expected)
    torch.testing.assert_close(scale[0][expected], torch.full((6,), 1 / math.sqrt(6.0)))
    assert (scale[0][~expected] == 0).all()


def test_scale_counts_cells_not_metres() -> None:
    """The same box on half-metre cells covers four times as many: scale 1 / sqrt(24)."""
    mask, scale = foreground([box(2.5, 1.0, 3.0, 2.0)[None]], Grid.square(8.0, 0.5))
    assert mask.sum() == 24
    torch.testing.assert_close(scale[mask], torch.full((24,), 1 / math.sqrt(24.0)))


def test_quarter_turn_swaps_length_and_width() -> None:
    mask, _ = foreground([box(1.0, 2.5, 3.0, 2.0, math.pi / 2)[None]], GRID)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[9:12, 8:10] = True
    assert torch.equal(mask[0], expected)


def test_small_box_owns_its_centre_cell() -> None:
    mask, scale = foreground([box(2.1, -3.1, 0.4, 0.4)[None]], GRID)
    assert mask.sum() == 1
    assert mask[0, 4, 10]
    assert float(scale.max()) == pytest.approx(2.5)  # sqrt(1 / 0.16): above 1 for tiny boxes


def test_first_box_wins() -> None:
    big, small = box(0.5, 0.5, 5.0, 5.0), box(0.5, 0.5, 1.0, 1.0)
    _, scale = foreground([torch.stack([big, small])], GRID)
    assert float(scale[0, 8, 8]) == pytest.approx(0.2)
    _, scale = foreground([torch.stack([small, big])], GRID)
    assert float(scale[0, 8, 8]) == pytest.approx(1.0)
    assert float(scale[0, 8, 9]) == pytest.approx(0.2)


@pytest.mark.parametrize("seed", range(5))
def test_crowd_against_every_cell(seed: int) -> None:
    batch = [crowd(30, seed), crowd(0), crowd(3, seed + 50)]
    mask, scale = foreground(batch, GRID)
    centres = torch.tensor(GRID.centres(), dtype=torch.float32).reshape(-1, 2)
    for b, boxes in enumerate(batch):
        owns = inside_footprints(centres, boxes)
        for n, own in enumerate(boxes):
            column, row = (int(v) for v in GRID.to_cells(own[:2]).floor())
            owns[row * 16 + column, n] = True
        assert torch.equal(mask[b].flatten(), owns.any(1))
        for cell in owns.any(1).nonzero().flatten():
            first = boxes[owns[cell].nonzero()[0, 0]]
            expected = 1 / math.sqrt(float(first[3] * first[4]))
            assert float(scale[b].flatten()[cell]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
def test_masks_flip_with_their_boxes(flips: tuple[bool, bool]) -> None:
    boxes = [crowd(20, 7)]
    align = Align(torch.as_tensor(bev_matrix(0, 1, *flips))[None])
    mask, scale = foreground(boxes, GRID)
    moved_mask, moved_scale = foreground(align.boxes(boxes), GRID)
    dims = [dim for dim, flip in ((-1, flips[0]), (-2, flips[1])) if flip]
    assert torch.equal(moved_mask.flip(dims), mask)
    torch.testing.assert_close(moved_scale.flip(dims), scale)


def test_reach_needs_both_sides() -> None:
    """Kept: centre on the target's grid, and on the student's after augmentation; area > 0."""
    matrix = bev_matrix(0.0, 1.05)
    canonical = torch.stack(
        [
            box(7.5, 0.0, 2.0, 1.0),  # 7.875 after scaling
            box(7.7, 0.0, 2.0, 1.0),  # 8.085: left the student
            box(-9.0, 0.0, 2.0, 1.0),  # never on the target
            box(0.0, 0.0, 0.0, 1.0),  # no area
        ]
    )
    canonical[0, 5] = 0.0  # no height: a footprint has none
    align = Align(torch.as_tensor(matrix)[None])
    labels = Labels(align.boxes([canonical]), [torch.zeros(4, dtype=torch.int64)], [canonical])
    [kept] = boxes_in_reach(labels, GRID, GRID)
    assert torch.equal(kept, canonical[:1])
    [kept] = boxes_in_reach(labels, Grid.square(16.0, 1.0), GRID)
    assert torch.equal(kept, canonical[:2])
    [kept] = boxes_in_reach(labels, Grid.square(16.0, 1.0), Grid.square(16.0, 1.0))
    assert torch.equal(kept, canonical[:3])


def test_regions_partition_the_valid_cells() -> None:
    generator = torch.Generator().manual_seed(1)
    valid = torch.rand((3, 16, 16), generator=generator) > 0.2
    confident = torch.rand((3, 16, 16), generator=generator) > 0.5
    boxes = [crowd(6, 1), crowd(0), crowd(2, 2)]
    regions = split(boxes, GRID, valid, confident, 0.1)
    parts = (regions.foreground_BYX, regions.false_positive_BYX, regions.background_BYX)
    assert all(part.any() for part in parts)
    total = torch.stack(parts).sum(0)
    assert torch.equal(total == 1, valid)
    assert torch.equal(total == 0, ~valid)
    assert torch.equal(regions.box_scale_BYX > 0, regions.foreground_BYX)
    for part in parts[1:]:
        assert (part & ~valid).sum() == 0
        torch.testing.assert_close(share(part).sum((1, 2)), torch.ones(3))


def test_false_positives_keep_away_from_truth() -> None:
    """The Gaussian of a box spans its 5 x 5 patch, corners (exp(-5.76)) excepted."""
    everywhere = torch.ones(1, 16, 16, dtype=torch.bool)
    regions = split([box(0.5, 0.5, 0.5, 0.5)[None]], GRID, everywhere, everywhere, 0.1)
    assert regions.foreground_BYX.sum() == 1
    spared = ~regions.false_positive_BYX[0] & ~regions.foreground_BYX[0]
    expected = torch.zeros(16, 16, dtype=torch.bool)
    sigma = 5 / 6
    for row in range(6, 11):
        for column in range(6, 11):
            square = (row - 8) ** 2 + (column - 8) ** 2
            expected[row, column] = square > 0 and math.exp(-square / (2 * sigma**2)) >= 0.1
    assert torch.equal(spared, expected)
    assert torch.equal(regions.background_BYX[0], expected)


def test_a_gaussian_that_just_reaches_the_threshold_is_truth() -> None:
    everywhere = torch.ones(1, 16, 16, dtype=torch.bool)
    nowhere = (~everywhere, torch.zeros(1, 16, 16))
    boxes = [box(0.5, 0.5, 0.5, 0.5)[None]]
    regions = split(boxes, GRID, everywhere, everywhere, 1.0, owner=lambda *_: nowhere)
    assert (~regions.false_positive_BYX).nonzero().tolist() == [[0, 8, 8]]


def test_levels_without_false_positives() -> None:
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    regions = split([crowd(3)], GRID, valid, None, 0.1)
    assert not regions.false_positive_BYX.any()
    assert torch.equal(regions.background_BYX, ~regions.foreground_BYX)


def test_empty_masks_share_nothing() -> None:
    assert torch.equal(share(torch.zeros(2, 3, 3, dtype=torch.bool)), torch.zeros(2, 3, 3))

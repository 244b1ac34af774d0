"""Regions: hand-drawn boxes, and every cell that a keypoint of an augmented box could read."""

import math

import numpy as np
import pytest
import torch

from bevcask.cache.quantize import encode
from bevcask.errors import DataError
from bevcask.geometry import Grid, bev_matrix, transform_boxes
from bevcask.targets.heatmap import centre_cells, draw_heatmaps
from bevcask.targets.plan import plan
from bevcask.targets.region import box_mask, centre_mask, gaussian_mask, region_mask
from bevcask.targets.spec import Codec, Need, Region, TapInfo, TargetSpec

GRID = Grid.square(8.0, 1.0)
PAPER = Grid.square(51.2, 0.8)
MARGIN = 1.6  # TiG-BEV: metres added to each side, in the augmented frame
SMALLEST = 0.95  # of the published scales; a box shrunk by it had a margin that much larger


def box(x: float, y: float, length: float, width: float, yaw: float = 0.0) -> torch.Tensor:
    return torch.tensor([[x, y, 0.0, length, width, 1.5, yaw, 0.0, 0.0]])


def cells(mask_YX: torch.Tensor) -> set[tuple[int, int]]:
    return {(int(row), int(column)) for row, column in mask_YX.nonzero().tolist()}


def rectangle(rows: range, columns: range) -> set[tuple[int, int]]:
    return {(row, column) for row in rows for column in columns}


def test_margin_grows_each_side() -> None:
    """A 2 x 2 m box on cells 8 and 9; half a metre more reaches the next centres, 0.49 does not."""
    boxes = [box(1.0, 1.0, 2.0, 2.0)]
    assert cells(box_mask(boxes, GRID, 0.0, False)[0]) == rectangle(range(8, 10), range(8, 10))
    assert cells(box_mask(boxes, GRID, 0.49, False)[0]) == rectangle(range(8, 10), range(8, 10))
    assert cells(box_mask(boxes, GRID, 0.5, False)[0]) == rectangle(range(7, 11), range(7, 11))


def test_keypoints_reach_the_neighbours_interpolation_reads() -> None:
    """Points over x in (0.1, 0.9) lie between the centres of columns 7 to 9, y alike."""
    mask = box_mask([box(0.5, 0.5, 0.8, 0.8)], GRID, 0.0, True)
    assert cells(mask[0]) == rectangle(range(7, 10), range(7, 10))
    turned = box_mask([box(0.5, 0.5, 0.8, 0.0001, math.pi / 2)], GRID, 0.0, True)
    assert cells(turned[0]) >= rectangle(range(7, 10), range(8, 9))


def test_samples_keep_their_own_boxes() -> None:
    mask = box_mask([box(1.0, 1.0, 2.0, 2.0), torch.zeros(0, 9), box(-4.5, 0.5, 1, 1)], GRID, 0, 0)
    assert [int(own.sum()) for own in mask] == [4, 0, 1]
    assert int(box_mask([torch.zeros(0, 9)], GRID, 0.0, True).sum()) == 0


def test_boxes_over_the_border_are_cut() -> None:
    assert cells(box_mask([box(8.0, 8.0, 4, 4)], GRID, 0.0, False)[0]) == rectangle(
        range(14, 16), range(14, 16)
    )


def _draws(num: int) -> tuple[torch.Tensor, np.ndarray]:
    """Return boxes of nuScenes sizes in an augmented frame, and the augmentation of each."""
    rng = np.random.default_rng(0)
    boxes = np.zeros((num, 9))
    boxes[:, :2] = rng.uniform(-40, 40, (num, 2))
    boxes[:, 3] = np.exp(rng.uniform(np.log(0.3), np.log(13), num))
    boxes[:, 4] = boxes[:, 3] * rng.uniform(0.2, 1.5, num).clip(max=3.5 / boxes[:, 3])
    boxes[:, 5], boxes[:, 6] = 1.5, rng.uniform(-np.pi, np.pi, num)
    turns = [
        bev_matrix(rng.uniform(-0.3925, 0.3925), rng.uniform(SMALLEST, 1.05), *rng.random(2) < 0.5)
        for _ in range(num)
    ]
    return torch.from_numpy(boxes), np.stack(turns)


def _read_cells(boxes_N9: np.ndarray, matrix_N44: np.ndarray, steps: int) -> np.ndarray:
    """Return (N, K, 2) row and column of what bilinear reads at the keypoints touch, canonical."""
    size_N2 = boxes_N9[:, 3:5] + 2 * MARGIN
    unit_K2 = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, steps)] * 2), -1).reshape(-1, 2)
    local_NK2 = unit_K2 * size_N2[:, None]
    c, s = np.cos(boxes_N9[:, 6]), np.sin(boxes_N9[:, 6])
    turn_N22 = np.stack([np.stack([c, s], -1), np.stack([-s, c], -1)], 1)
    points_NK2 = boxes_N9[:, None, :2] + local_NK2 @ turn_N22 - matrix_N44[:, None, :2, 3]
    canonical_NK2 = points_NK2 @ np.linalg.inv(matrix_N44[:, :2, :2]).swapaxes(1, 2)
    index_NK2 = (canonical_NK2 - [PAPER.x_min, PAPER.y_min]) / PAPER.cell - 0.5
    low_NK2 = np.floor(index_NK2).astype(int)
    steps_42 = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
    return (low_NK2[:, :, None] + steps_42).reshape(len(boxes_N9), -1, 2)[..., ::-1]


def _masks(boxes: torch.Tensor, turns: np.ndarray) -> np.ndarray:
    canonical = [
        transform_boxes(own[None], np.linalg.inv(matrix)).float()
        for own, matrix in zip(boxes, turns, strict=True)
    ]
    return box_mask(canonical, PAPER, MARGIN / SMALLEST, True).numpy()


@pytest.mark.parametrize(
    "count",
    [pytest.param(1_500, id="1500"), pytest.param(10_000, id="10000", marks=pytest.mark.slow)],
)
def test_no_keypoint_of_any_augmentation_is_missed(count: int) -> None:
    """TiG's 24 x 24 keypoints of many boxes, each under its own augmentation."""
    boxes, turns = _draws(count)
    for first in range(0, len(boxes), 500):
        part = slice(first, first + 500)
        mask_NYX = _masks(boxes[part], turns[part])
        read_NK2 = _read_cells(boxes[part].numpy(), turns[part], 24)
        inside_NK = ((read_NK2 >= 0) & (read_NK2 < 128)).all(-1)
        sample_NK = np.broadcast_to(np.arange(len(read_NK2))[:, None], inside_NK.shape)
        row, column = read_NK2[inside_NK].T
        assert mask_NYX[sample_NK[inside_NK], row, column].all()


def test_few_cells_are_stored_that_no_keypoint_reads() -> None:
    """What interpolation over the whole filled box reads, by dense sampling, nearly fills it."""
    boxes, turns = _draws(50)
    turns[:, :2, :2] = SMALLEST * np.eye(2)
    needed = 0
    for read_K2 in _read_cells(boxes.numpy(), turns, 120):
        inside_K = ((read_K2 >= 0) & (read_K2 < 128)).all(-1)
        needed += len(np.unique(read_K2[inside_K], axis=0))
    assert needed <= int(_masks(boxes, turns).sum()) <= 1.02 * needed


def test_centres_are_one_cell_a_box() -> None:
    """One centre off the grid, two in one cell, one on a cell's lower edge, an empty sample."""
    boxes = torch.cat([box(*at, 9, 3) for at in ((-3.2, 2.9), (8.1, 0), (-3.9, 2.1), (1.0, 0.0))])
    mask = centre_mask([boxes, torch.zeros(0, 9)], GRID)
    assert cells(mask[0]) == {(10, 4), (8, 9)}
    assert not mask[1].any()


def test_gaussians_are_the_cells_of_the_drawn_map() -> None:
    """Whatever the classes; a car touches 5 x 5 cells, a centre off the grid none."""
    boxes, _ = _draws(40)
    split = [boxes[:25].float(), torch.zeros(0, 9), boxes[25:].float()]
    classes = [torch.arange(len(own)) % 10 for own in split]
    drawn = draw_heatmaps(split, classes, PAPER, 10)
    assert torch.equal(gaussian_mask(split, PAPER), drawn.amax(1) > 0)
    assert (centre_mask(split, PAPER) <= gaussian_mask(split, PAPER)).all()
    assert torch.equal(centre_mask(split, PAPER), (drawn == 1).any(1))
    car = gaussian_mask([box(0.5, 0.5, 4.5, 1.9)], GRID)
    assert cells(car[0]) == rectangle(range(6, 11), range(6, 11))
    assert not gaussian_mask([box(8.5, 0.0, 4.5, 1.9)], GRID).any()


@pytest.mark.parametrize("axis", [0, 1], ids=["x", "y"])
def test_centres_and_gaussians_follow_flips(axis: int) -> None:
    boxes = _draws(200)[0].float()
    flipped = transform_boxes(boxes, bev_matrix(flip_x=axis == 0, flip_y=axis == 1))
    for mask in (centre_mask, gaussian_mask):
        assert torch.equal(mask([flipped], PAPER), mask([boxes], PAPER).flip(2 - axis))


@pytest.mark.parametrize("name", ["centres", "gaussians"])
def test_new_regions_mask_join_and_survive_json(name: str) -> None:
    region = Region(name)  # type: ignore[arg-type]
    boxes = [box(1.0, 1.0, 2.0, 2.0), torch.zeros(0, 9)]
    mask = region_mask(region, torch.zeros(2, 1, 16, 16), GRID, boxes)
    assert mask is not None
    [row, column] = centre_cells(boxes[0], GRID)[0][0].tolist()
    assert mask[0, row, column]
    assert mask.sum() == {"centres": 1, "gaussians": 25}[name]
    assert region.reads_boxes
    assert str(region) == name
    joined = _choose(region, Region("keypoints", margin=1.6))
    assert str(joined.region) == f"{name} + keypoints +1.6 m"
    assert joined.region.reads_boxes
    assert TargetSpec.from_dict(joined.to_dict()) == joined
    with pytest.raises(DataError, match=f"region '{name}'.*no annotations"):
        region_mask(region, torch.zeros(1, 1, 16, 16), GRID, None)


def test_box_codes_are_stored_at_centres_to_the_bit() -> None:
    tap = TapInfo("head.codes", "box_code", (60, 16, 16), GRID)
    said = torch.randn(2, 60, 16, 16)
    boxes = [box(1.0, 1.0, 2.0, 2.0), torch.zeros(0, 9)]
    stored = encode(said, TargetSpec(tap, "float32", Region("centres")), boxes=boxes)
    assert torch.equal(stored.values[0, :, 9, 9], said[0, :, 9, 9])
    assert int((stored.values != 0).sum()) == 60


def test_confident_reads_values_and_union_joins() -> None:
    values = torch.zeros(2, 3, 16, 16)
    values[0, 1, 2, 3], values[1, 2, 4, 5] = 0.2, 0.1
    confident = Region("confident", threshold=0.15)
    mask = region_mask(confident, values, GRID, None)
    assert mask is not None
    assert cells(mask[0]) == {(2, 3)}
    assert not mask[1].any()
    union = Region("union", parts=(confident, Region("foreground")))
    boxes = [box(1.0, 1.0, 2.0, 2.0), torch.zeros(0, 9)]
    mask = region_mask(union, values, GRID, boxes)
    assert mask is not None
    assert cells(mask[0]) == {(2, 3)} | rectangle(range(8, 10), range(8, 10))
    assert not mask[1].any()


def test_regions_that_follow_boxes_need_them() -> None:
    with pytest.raises(DataError, match=r"region 'keypoints'.*no annotations"):
        region_mask(Region("keypoints", margin=1.0), torch.zeros(1, 1, 16, 16), GRID, None)


def test_encoding_drops_what_lies_outside() -> None:
    tap = TapInfo("bev.neck", "dense_bev", (2, 16, 16), GRID, nonnegative=True)
    spec = TargetSpec(tap, "uint8", Region("foreground"))
    stored = encode(torch.full((1, 2, 16, 16), 3.0), spec, boxes=[box(1.0, 1.0, 2.0, 2.0)])
    assert stored.region is not None
    assert (stored.values[0, 0] == 255).equal(stored.region[0])
    assert int((stored.values != 0).sum()) == 8


def _choose(*regions: Region) -> TargetSpec:
    from bevcask.config import StoreConfig

    tap = TapInfo("bev.neck", "dense_bev", (2, 16, 16), GRID, nonnegative=True)
    needs = [Need(f"r{i}", "bev.neck", "dense_bev", region) for i, region in enumerate(regions)]
    return plan(needs, {"bev.neck": tap}, 1, StoreConfig(), None).specs[0]


def test_plan_joins_the_regions_of_several_methods() -> None:
    near, keypoints = Region("foreground", margin=1.0), Region("keypoints", margin=1.6)
    assert _choose(near, near).region == near
    joined = _choose(keypoints, near)
    assert joined.region == Region("union", parts=(near, keypoints))
    assert joined == _choose(near, keypoints)
    assert joined.codec == "uint8"
    assert TargetSpec.from_dict(joined.to_dict()) == joined
    assert str(joined.region) == "foreground +1 m + keypoints +1.6 m"
    assert _choose(near, Region()).region == Region()
    undecided = _choose(near, Region("confident", threshold=0.1))
    assert (undecided.region, undecided.codec) == (Region(), "float32")


@pytest.mark.parametrize(
    ("stored", "needed", "covered"),
    [
        (Region(), Region("keypoints", margin=3.0), True),
        (Region("keypoints", margin=2.0), Region("keypoints", margin=1.6), True),
        (Region("keypoints", margin=1.5), Region("keypoints", margin=1.6), False),
        (Region("foreground", margin=9.0), Region("keypoints", margin=0.0), False),
        (Region("keypoints", margin=9.0), Region(), False),
        (Region("confident", 0.1), Region("confident", 0.1), True),
        (Region("confident", 0.1), Region("confident", 0.2), False),
        (Region("union", parts=(Region("centres"), Region("gaussians"))), Region("centres"), True),
        (Region("centres"), Region("union", parts=(Region("centres"), Region("gaussians"))), False),
        (Region(), Region("union", parts=(Region("centres"), Region("gaussians"))), True),
    ],
)
def test_a_region_covers_those_within_it(stored: Region, needed: Region, covered: bool) -> None:
    assert stored.covers(needed) == covered


@pytest.mark.parametrize(("codec", "covered"), [("float32", True), ("uint8", False)])
def test_a_threshold_must_have_been_decided_in_float32(codec: Codec, covered: bool) -> None:
    tap = TapInfo("head.heatmap", "heatmap", (10, 4, 4), Grid.square(2.0, 1.0), True)
    assert TargetSpec(tap, codec).covers(Region("confident", 0.1)) == covered
    assert TargetSpec(tap, "uint8", Region("confident", 0.1)).covers(Region("confident", 0.1))

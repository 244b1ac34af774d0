"""FocalDistiller's mask: radius, truncation, borders, and cells of another size (spec T3)."""

import math

import pytest
import torch
from torch.nn import functional

from bevcask.config import StoreConfig
from bevcask.geometry import Grid
from bevcask.targets.focal import focal_map, mask_grid, truncated
from bevcask.targets.plan import plan
from bevcask.targets.region import region_mask
from bevcask.targets.spec import Need, Region, TapInfo, TargetSpec

TEACHER, DRAWN = Grid.square(51.2, 0.512), Grid.square(51.2, 0.8)
MEAN_SIZES = {  # metres, length and width, nuScenes
    "car": (4.63, 1.97),
    "truck": (6.93, 2.51),
    "construction_vehicle": (6.37, 2.85),
    "bus": (10.5, 2.94),
    "trailer": (12.29, 2.90),
    "barrier": (0.50, 2.53),
    "motorcycle": (2.11, 0.77),
    "bicycle": (1.70, 0.60),
    "pedestrian": (0.73, 0.67),
    "traffic_cone": (0.41, 0.41),
}


def box(x: float, y: float, length: float = 4.6, width: float = 1.9) -> torch.Tensor:
    return torch.tensor([[x, y, 0.0, length, width, 1.6, 0.3, 0.0, 0.0]])


def drawn(*boxes: torch.Tensor) -> torch.Tensor:
    """Return the map on its own cells."""
    return focal_map([torch.cat(boxes)], DRAWN, 0.8)[0]


def radius(length: float, width: float) -> int:
    return (int((drawn(box(0.1, 0.1, length, width))[64] > 0).sum()) - 1) // 2


@pytest.mark.parametrize("name", MEAN_SIZES)
def test_every_class_has_radius_two_at_its_mean_size(name: str) -> None:
    assert radius(*MEAN_SIZES[name]) == 2


@pytest.mark.parametrize(("width", "length"), [(2.5, 16.6), (2.9, 12.7), (3.0, 12.0), (3.5, 9.5)])
def test_radius_three_begins_at_a_length_that_depends_on_the_width(
    width: float, length: float
) -> None:
    assert radius(length - 0.15, width) == 2
    assert radius(length + 0.15, width) == 3


def test_values_by_hand_and_larger_value_wins() -> None:
    """Two cars three cells apart: between them the nearer one decides."""
    one, two = drawn(box(0.1, 0.1)), drawn(box(2.5, 0.1))
    both = drawn(box(0.1, 0.1), box(2.5, 0.1))
    assert torch.equal(both, torch.maximum(one, two))
    for row, column in ((64, 64), (65, 64), (66, 62), (63, 65)):
        square = (row - 64) ** 2 + (column - 64) ** 2
        assert float(one[row, column]) == pytest.approx(math.exp(-0.72 * square), rel=1e-6)


def test_rows_are_y_and_columns_x() -> None:
    rows, columns = drawn(box(30.0, -10.0)).nonzero().T
    assert (int(rows.min()), int(rows.max())) == (49, 53)
    assert (int(columns.min()), int(columns.max())) == (99, 103)


@pytest.mark.parametrize(
    ("x", "columns"),
    [
        (-51.1, range(3)),
        (-51.7, range(3)),  # truncated towards zero: still cell 0
        (-52.1, range(0)),
        (51.1, range(125, 128)),
        (51.3, range(0)),
    ],
)
def test_borders(x: float, columns: range) -> None:
    """Patches are cut; a centre less than a cell below the border counts, one above does not."""
    shown = drawn(box(x, 0.1)).any(0).nonzero()[:, 0].tolist()
    assert shown == list(columns)
    shown = drawn(box(0.1, x)).any(1).nonzero()[:, 0].tolist()
    assert shown == list(columns)
    assert bool(truncated(box(x, 0.1), DRAWN)) == (len(columns) > 0)


@pytest.mark.parametrize(("length", "width"), [(0.0, 1.9), (4.6, 0.0), (-1.0, 1.9)])
def test_a_box_without_area_draws_nothing(length: float, width: float) -> None:
    assert not drawn(box(0.0, 0.0, length, width), box(9.0, 9.0, length, width)).any()


def test_enlarged_by_the_lower_corner_as_torch_does() -> None:
    """`nearest` floors: 128 cells become 200, those of 25 fall onto those of 16."""
    generator = torch.Generator().manual_seed(1)
    boxes = torch.cat([box(*xy) for xy in ((torch.rand(60, 2, generator=generator) - 0.5) * 104)])
    small = focal_map([boxes], DRAWN, 0.8)
    large = focal_map([boxes], TEACHER, 0.8)
    assert torch.equal(large, functional.interpolate(small[:, None], size=(200, 200))[:, 0])
    exact = torch.arange(200) * 128 // 200
    assert torch.equal(large, small[:, exact][:, :, exact])
    assert 0.05 < (large > 0).float().mean() < 0.15


@pytest.mark.parametrize(
    ("cell", "shape"), [(0.8, (128, 128)), (0.75, (137, 137)), (102.4, (1, 1))]
)
def test_cells_of_any_size_cover_the_grid(cell: float, shape: tuple[int, int]) -> None:
    grid = mask_grid(TEACHER, cell)
    assert grid.shape_YX == shape
    assert (grid.x_min, grid.y_min) == (-51.2, -51.2)
    assert focal_map([box(51.15, 51.15)], TEACHER, cell)[0, -1, -1] > 0.2


def test_grids_need_not_be_square() -> None:
    grid = Grid(-8.0, -4.0, 0.5, 32, 16)
    [shown] = focal_map([box(6.1, -1.9)], grid, 1.0)
    rows, columns = shown.nonzero().T
    assert shown.shape == (16, 32)
    assert (int(rows.min()), int(rows.max())) == (0, 9)
    assert (int(columns.min()), int(columns.max())) == (24, 31)


def test_the_region_is_the_mask() -> None:
    boxes = [torch.cat([box(3.3, -20.0, 18.0, 3.0), box(-51.7, 4.0)]), torch.zeros(0, 9)]
    region = Region("focal", cell=0.8)
    found = region_mask(region, torch.zeros(2, 1, 200, 200), TEACHER, boxes)
    assert found is not None
    assert torch.equal(found, focal_map(boxes, TEACHER, 0.8) > 0)
    assert found[0].any()
    assert not found[1].any()
    in_double = region_mask(region, torch.zeros(2, 1, 1, 1), TEACHER, [b.double() for b in boxes])
    assert in_double is not None
    assert torch.equal(in_double, found)


def test_the_region_in_plans_and_in_json() -> None:
    """Other regions say nothing of cells, so caches written before them stay what they were."""
    region = Region("focal", cell=0.8)
    tap = TapInfo("bev.encoder", "dense_bev", (256, 200, 200), TEACHER)
    needs = [Need("bev", tap.name, tap.kind, region)]
    [spec] = plan(needs, {tap.name: tap}, 1, StoreConfig(), None).specs
    assert (spec.codec, spec.region, str(spec.region)) == ("int8", region, "focal 0.8 m")
    assert region.reads_boxes
    assert region.covers(region)
    assert not region.covers(Region("focal", cell=0.4))
    needs.append(Need("other", tap.name, tap.kind, Region("foreground", margin=1.0)))
    [joined] = plan(needs, {tap.name: tap}, 1, StoreConfig(), None).specs
    assert TargetSpec.from_dict(joined.to_dict()) == joined
    said = joined.to_dict()["region"]
    assert "cell" not in said
    cells = {part["name"]: part.get("cell") for part in said["parts"]}
    assert cells == {"focal": 0.8, "foreground": None}

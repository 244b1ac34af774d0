"""Rasters are pooled over whole cells, on one range and one basis for all frames."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bevcask.geometry import CLASSES, Grid
from bevcask.targets.spec import Region, TapInfo, TargetSpec
from bevcask.viz.html.rasters import COMPONENTS, Basis, Rasters, coarse, pool, webp

GRID = Grid(-8.0, -4.0, 1.0, 16, 10)
RANDOM = np.random.default_rng(0)


def specs() -> dict[str, TargetSpec]:
    neck = TapInfo("bev.neck", "dense_bev", (8, 10, 16), GRID)
    heat = TapInfo("head.heatmap", "heatmap", (10, 10, 16), GRID, classes=CLASSES)
    heat_spec = TargetSpec(heat, "uint8", Region("confident", 0.1))
    return {
        "bev.neck": TargetSpec(neck, "uint8"),
        "head.heatmap": heat_spec,
    }


def frames(number: int) -> dict[str, list[Any]]:
    return {
        "bev.neck": [RANDOM.normal(size=(8, 10, 16)) for _ in range(number)],
        "head.heatmap": [RANDOM.random((10, 10, 16)) * 0.04 for _ in range(number)],
    }


def test_a_coarse_cell_is_whole_cells_of_the_map() -> None:
    grid = coarse(GRID, 6)
    assert (grid.cell, grid.num_x, grid.num_y) == (3.0, 6, 4)
    cells = pool(np.arange(160.0).reshape(1, 10, 16), grid, np.max)
    assert cells.shape == (1, 4, 6)
    assert cells[0, 0, 0] == 2 * 16 + 2
    assert cells[0, 3, 5] == 159.0  # the border's cell is part of one
    assert coarse(GRID, 16) == GRID


def test_strips_hold_every_tile_at_its_place() -> None:
    sample = frames(3)
    rasters = Rasters(specs(), sample, 16)
    heat = sample["head.heatmap"][0].copy()
    heat[3, 2, 5] = 0.8
    region = np.zeros((10, 16), bool)
    region[2, 5] = True
    maps = {"bev.neck": sample["bev.neck"][0], "head.heatmap": heat}
    values, labels = rasters.strips(maps, {"head.heatmap": region})
    roles = [(tile.target, tile.role) for tile in rasters.tiles]
    assert roles.count(("bev.neck", "component")) == COMPONENTS
    tiles = {(tile.role, tile.number): tile for tile in rasters.tiles}
    at = {role: tile.x for (role, _), tile in tiles.items()}
    assert labels[2, at["class"] + 5] == 1 + 3
    assert labels[2, at["region"] + 5] == 1
    assert labels.sum() == 5  # and nothing else
    assert values[2, at["heatmap"] + 5] == round(0.8 * 255)
    energy = tiles["energy", 0]
    said = np.abs(maps["bev.neck"]).mean(0)[4, 7]
    stored = energy.low + values[4, energy.x + 7] / 255 * (energy.high - energy.low)
    assert stored == pytest.approx(said, abs=0.01 * (energy.high - energy.low))
    assert values.shape == (10, 16 * (2 + COMPONENTS))


def test_colours_of_all_frames_are_on_one_basis() -> None:
    """A map that is a multiple of one direction has one component, the same in every frame."""
    direction = RANDOM.normal(size=(8, 1, 1))
    maps = [direction * RANDOM.normal(size=(1, 10, 16)) * 3 for _ in range(4)]
    basis = Basis.fit("bev.neck", maps)
    assert abs(basis.rows_NC[0] @ direction.ravel()) == pytest.approx(np.linalg.norm(direction))
    other = basis.apply(maps[2])
    assert np.abs(other[1:]).max() < 1e-6 * np.abs(other[0]).max()
    assert (basis.rows_NC.sum(1) > -1e-12).all()


def test_labels_survive_their_codec() -> None:
    pixels = RANDOM.integers(0, 11, (10, 32)).astype(np.uint8)
    back = Image.open(io.BytesIO(base64.b64decode(webp(pixels, exact=True)))).convert("L")
    assert (np.asarray(back) == pixels).all()

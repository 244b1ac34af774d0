"""BEV maps as small 8-bit rasters: one robust range and one basis of colours for all frames.

A raster has at most so many cells a side; larger maps are pooled over whole cells, so that a cell
of a raster is a whole number of cells of its map. Rows rise with y.
"""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from bevcask.geometry import Grid
from bevcask.targets.spec import TargetSpec

Floats = npt.NDArray[np.floating[Any]]
Bytes = npt.NDArray[np.uint8]
Role = Literal[
    "energy", "heatmap", "component", "class", "region", "difference", "moved", "aligned"
]
COMPONENTS = 6
SHOWN_CLASS = 0.05  # of a heatmap, below which no class is told
_RANGE = {"component": (2.0, 99.5), "energy": (0.0, 99.9)}  # percentiles
_QUALITY = 50  # of WebP
_PIXELS_A_FRAME = 2000  # that the basis of colours is fitted to
_DENSE, _MAIN = "dense_bev", "bev.neck"


@dataclass(frozen=True)
class Tile:
    """One raster of a frame's strip.

    Attributes:
        target: of the cache.
        role: `energy`: the mean |value| over channels; `heatmap`: the maximum over
            classes; `component`: of the basis of colours; without loss: `class`: 1 + the class of
            that maximum, 0 where it is small; `region`: 1 where a cell is stored.
        number: of a component, from 0.
        x: columns of the strip before it.
        grid: of the raster, metres.
        low: what the raster's 0 stands for.
        high: what its 255 stands for.
    """

    target: str
    role: Role
    number: int
    x: int
    grid: Grid
    low: float = 0.0
    high: float = 255.0

    @property
    def exact(self) -> bool:
        """True of labels, which no lossy codec may touch."""
        return self.role in ("class", "region")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        grid = self.grid
        return {
            "target": self.target, "role": self.role, "number": self.number, "x": self.x,
            "x_min": grid.x_min, "y_min": grid.y_min, "cell": grid.cell,
            "num_x": grid.num_x, "num_y": grid.num_y, "low": self.low, "high": self.high,
        }  # fmt: skip


@dataclass(frozen=True)
class Basis:
    """Principal components of a map's cells over several frames: mean (C,), rows (6, C)."""

    target: str
    mean_C: Floats
    rows_NC: Floats

    @classmethod
    def fit(cls, target: str, maps: Sequence[Floats]) -> "Basis":
        """Fit to cells of maps (C, Y, X), as many of each; signs are such that sums rise."""
        random = np.random.default_rng(0)
        parts = []
        for map_CYX in maps:
            cells_CN = map_CYX.reshape(len(map_CYX), -1)
            number = min(_PIXELS_A_FRAME, cells_CN.shape[1])
            parts.append(cells_CN[:, random.choice(cells_CN.shape[1], number, replace=False)])
        cells_CN = np.concatenate(parts, axis=1).astype(np.float64)
        mean_C = cells_CN.mean(1)
        _, axes_CC = np.linalg.eigh(np.cov(cells_CN))
        rows_NC = axes_CC[:, ::-1].T[:COMPONENTS]
        rows_NC = rows_NC * np.where(rows_NC.sum(1, keepdims=True) < 0, -1, 1)
        return cls(target, mean_C, rows_NC)

    def apply(self, map_CYX: Floats) -> Floats:
        """Return the components (6, Y, X) of a map."""
        off_CN = map_CYX.reshape(len(map_CYX), -1) - self.mean_C[:, None]
        return (self.rows_NC @ off_CN).reshape(-1, *map_CYX.shape[1:])


class Rasters:
    """How the maps of a cache become strips of rasters.

    Args:
        specs: targets by name; those without cells are passed over.
        sample: target -> maps (C, Y, X) of some frames, which ranges and basis are fitted to.
        side: cells a side of a raster, at most.
    """

    def __init__(
        self, specs: Mapping[str, TargetSpec], sample: Mapping[str, Sequence[Floats]], side: int
    ) -> None:
        maps = {name: spec for name, spec in specs.items() if sample.get(name)}
        self._grids = {name: coarse(spec.tap.grid, side) for name, spec in maps.items()}
        self._maps = maps
        self.basis = self._fit(sample)
        self.tiles: list[Tile] = []
        for name, role, number in self._wanted():
            values = [
                own for frame in sample[name] for own in self._values(name, role, number, frame)
            ]
            low, high = _limits(role, values)
            taken = sum(own.grid.num_x for own in self.tiles if own.exact == _labels(role))
            self.tiles.append(Tile(name, role, number, taken, self._grids[name], low, high))

    def _fit(self, sample: Mapping[str, Sequence[Floats]]) -> Basis | None:
        dense = [name for name, spec in self._maps.items() if spec.tap.kind == _DENSE]
        if not dense:
            return None
        main = next((name for name in dense if self._maps[name].tap.name == _MAIN), dense[-1])
        pooled = [pool(own, self._grids[main], np.mean) for own in sample[main]]
        return Basis.fit(main, pooled) if len(pooled[0]) >= COMPONENTS else None

    def _wanted(self) -> Iterator[tuple[str, Role, int]]:
        for name, spec in self._maps.items():
            if spec.tap.kind == "heatmap":
                yield name, "heatmap", 0
                yield name, "class", 0
            elif spec.tap.kind == _DENSE:
                yield name, "energy", 0
            if spec.region.name != "all":
                yield name, "region", 0
        if self.basis is not None:
            for number in range(COMPONENTS):
                yield self.basis.target, "component", number

    def _values(self, name: str, role: Role, number: int, map_CYX: Floats) -> list[Floats]:
        """Return what the range of a tile is fitted to; nothing of labels."""
        if _labels(role):
            return []
        if role == "component":
            assert self.basis is not None
            return [self.basis.apply(pool(map_CYX, self._grids[name], np.mean))[number]]
        grid = self._grids[name]
        return [energy(map_CYX, grid) if role == "energy" else pool(map_CYX.max(0), grid, np.max)]

    def strips(
        self, maps: Mapping[str, Floats], regions: Mapping[str, npt.NDArray[np.bool_]]
    ) -> tuple[Bytes, Bytes]:
        """Return the rasters of a frame side by side, (rows, columns): of values, and of labels."""
        components = None
        strips = {False: self._empty(False), True: self._empty(True)}
        for tile in self.tiles:
            name, grid = tile.target, tile.grid
            if name not in maps:
                continue
            if tile.role == "component":
                assert self.basis is not None
                if components is None:
                    components = self.basis.apply(pool(maps[name], grid, np.mean))
                cells = quantise(components[tile.number], tile)
            elif tile.role == "energy":
                cells = quantise(energy(maps[name], grid), tile)
            elif tile.role == "heatmap":
                cells = quantise(pool(maps[name].max(0), grid, np.max), tile)
            elif tile.role == "class":
                cells = classes(maps[name], grid)
            else:
                region_YX = regions.get(name, np.zeros(maps[name].shape[-2:], bool))
                cells = pool(region_YX.astype(np.uint8), grid, np.max).astype(np.uint8)
            strips[tile.exact][: grid.num_y, tile.x : tile.x + grid.num_x] = cells
        return strips[False], strips[True]

    def _empty(self, exact: bool) -> Bytes:
        grids = [tile.grid for tile in self.tiles if tile.exact == exact]
        shape = max((g.num_y for g in grids), default=1), sum(g.num_x for g in grids) or 1
        return np.zeros(shape, np.uint8)


def _labels(role: Role) -> bool:
    return role in ("class", "region")


def _limits(role: Role, values: Sequence[Floats]) -> tuple[float, float]:
    if _labels(role):
        return 0.0, 255.0
    if role == "heatmap":
        return 0.0, 1.0
    return robust_range(role, values)


def robust_range(role: Role, values: Sequence[Floats]) -> tuple[float, float]:
    """Return what 0 and 255 stand for of an energy or a component, fitted to some frames' maps."""
    whole = np.concatenate([own.ravel() for own in values])
    whole = whole[np.isfinite(whole)]
    if not len(whole):
        return 0.0, 1.0
    low, high = (float(edge) for edge in np.percentile(whole, _RANGE[role]))
    return low, high if high > low else low + 1.0


def coarse(grid: Grid | None, side: int) -> Grid:
    """Return the grid of a raster of at most `side` cells: its cells are whole ones together."""
    assert grid is not None
    factor = math.ceil(max(grid.num_x, grid.num_y) / side)
    num_x, num_y = math.ceil(grid.num_x / factor), math.ceil(grid.num_y / factor)
    return Grid(grid.x_min, grid.y_min, grid.cell * factor, num_x, num_y)


def pool(map_YX: Floats, grid: Grid, how: Any) -> Floats:
    """Reduce the last two axes to the cells of a coarser grid; the border's cells may be part."""
    num_y, num_x = map_YX.shape[-2:]
    factor = max(math.ceil(num_y / grid.num_y), math.ceil(num_x / grid.num_x))
    if factor == 1:
        return map_YX
    pad = (grid.num_y * factor - num_y, grid.num_x * factor - num_x)
    if any(pad):
        edges = [(0, 0)] * (map_YX.ndim - 2) + [(0, pad[0]), (0, pad[1])]
        map_YX = np.pad(map_YX, edges, mode="edge")
    blocks = map_YX.reshape(*map_YX.shape[:-2], grid.num_y, factor, grid.num_x, factor)
    pooled: Floats = how(blocks, axis=(-3, -1))
    return pooled


def energy(map_CYX: Floats, grid: Grid) -> Floats:
    """Return the mean |value| over channels, (Y, X), as `viz.sample` draws it."""
    return pool(np.abs(map_CYX).mean(0), grid, np.mean)


def classes(map_KYX: Floats, grid: Grid) -> Bytes:
    """Return 1 + the class that is largest, 0 where none is above `SHOWN_CLASS`."""
    pooled_KYX = pool(map_KYX, grid, np.max)
    told = pooled_KYX.argmax(0).astype(np.uint8) + 1
    return np.where(pooled_KYX.max(0) > SHOWN_CLASS, told, 0).astype(np.uint8)


def quantise(values_YX: Floats, tile: Tile) -> Bytes:
    """Return values as 0..255 of a tile's range."""
    share = (values_YX - tile.low) / (tile.high - tile.low)
    share = np.nan_to_num(share, nan=0.0, neginf=0.0, posinf=1.0)
    rounded: Bytes = np.round(np.clip(share, 0, 1) * 255).astype(np.uint8)
    return rounded


def webp(pixels: Bytes, exact: bool = False) -> str:
    """Return a grey image as base64 of WebP."""
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    image.save(file, "WEBP", quality=_QUALITY, lossless=exact, method=1 if exact else 4)
    return base64.b64encode(file.getvalue()).decode()

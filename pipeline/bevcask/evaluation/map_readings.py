"""How the cells of a map could have been meant: axes, grid, half a cell, classes, values.

A map is judged by how much of its energy falls into ground-truth boxes: cells that are unlike the
others are where objects are, if the map is read as it was written.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates

from bevcask.evaluation.readings import (
    DECLARED,
    SYMMETRIES,
    Finding,
    Floats,
    class_order,
    decide,
    matrices,
    named,
)
from bevcask.geometry import Grid

EXTENTS = (25.6, 30, 40, 50, 51.2, 54, 60, 61.44, 64, 72, 75.2, 76.8, 102.4)
"""Half extents of usual grids, metres."""

_WITHIN = (-1 / 3, 0.0, 1 / 3)  # of length and width: where a dense map is looked at in a box
_GRID_MARGIN = 0.15  # cameras misjudge distance, all in the same way
_HALF = 0.5  # cells
_FARTHER = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # cells
_FALLS = 0.3  # standard deviations: what falls into boxes beyond the mean of a map
_SAME = 1e-3  # metres
_SIGMOID_OF = (0.49, 0.74)  # where sigmoids of probabilities lie; codecs round


@dataclass(frozen=True)
class Truth:
    """Ground truth of a frame: boxes (N, 9), `geometry.BOX_FIELDS`, and classes int64 (N,)."""

    boxes_N9: Floats
    classes_N: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reading:
    """How cells are read: symmetry of the array, metres of a cell, its centre, shift in cells."""

    symmetry: Floats
    cell: float
    centre: tuple[float, float]
    shift: tuple[float, float] = (0.0, 0.0)


def dense_energy(map_CYX: npt.NDArray[np.float32]) -> Floats:
    """Return how unlike the others each cell is, (Y, X): distance of channels from their mean."""
    mean_C11 = map_CYX.mean((1, 2), keepdims=True, dtype=np.float64)
    std_C11 = map_CYX.std((1, 2), keepdims=True, dtype=np.float64)
    inverse_C11 = 1 / np.where(std_C11 > 0, std_C11, np.inf)
    energy: Floats = np.sqrt(np.square((map_CYX - mean_C11) * inverse_C11).mean(0))
    return energy


def judge_maps(
    target: str,
    energy: Sequence[Floats],
    grid: Grid,
    truth: Sequence[Truth],
    heatmaps: Sequence[npt.NDArray[np.float32]] | None = None,
) -> list[Finding]:
    """Judge a map of several frames.

    Args:
        target: of the cache.
        energy: (Y, X) of each frame.
        grid: as declared.
        truth: of each frame.
        heatmaps: (K, Y, X) of each frame, of a heatmap.
    """
    energy = [_standard(own) for own in energy]
    points = [_points(own.boxes_N9, heatmaps is not None) for own in truth]
    middle = (grid.x_min + grid.x_max) / 2, (grid.y_min + grid.y_max) / 2

    def errors(reading: Reading) -> Floats:
        sampled = [_sampled(e[None], p, reading)[0] for e, p in zip(energy, points, strict=True)]
        return -np.concatenate(sampled) if sampled else np.zeros(0)

    grids = _grids(grid, middle)
    symmetries = {
        name: matrix
        for name, matrix in SYMMETRIES.items()
        if grid.num_x == grid.num_y or not matrix[0, 1]
    }
    table = {
        (name, other): errors(Reading(matrix, *at))
        for name, matrix in symmetries.items()
        for other, at in grids.items()
    }
    name, other = min(table, key=lambda key: float(table[key].mean()) if len(table[key]) else 0.0)
    place = decide(target, "axes", {own: table[own, other] for own in symmetries}, -_FALLS)
    if place.verdict == "undecided":
        return [place]
    sizes = {own: table[name, own] for own in grids}
    scale = decide(target, "grid", sizes, margin=_GRID_MARGIN, graded=True)
    believed = other if scale.verdict == "wrong" else DECLARED
    shift, best = _judge_shift(target, errors, Reading(symmetries[name], *grids[believed]))
    centred = {own: {"cell": cell, "centre": list(centre)} for own, (cell, centre) in grids.items()}
    findings = [named(place, matrices()), named(scale, centred), shift]
    if heatmaps is not None:
        findings += _judge_channels(target, heatmaps, points, truth, best)
    return findings


def _grids(grid: Grid, middle: tuple[float, float]) -> dict[str, tuple[float, tuple[float, float]]]:
    """Return reading -> metres of a cell, centre: other usual extents, about either centre."""
    found = {DECLARED: (grid.cell, middle)}
    off = max(map(abs, middle)) > grid.cell
    if off:
        found["the grid is centred on the sensor"] = (grid.cell, (0.0, 0.0))
    if grid.num_x != grid.num_y:
        return found
    for extent in EXTENTS:
        cell = 2 * extent / grid.num_x
        name = f"cells of {cell:.4g} m, the grid {-extent:g} to {extent:g} m"
        if abs(cell - grid.cell) * grid.num_x > _SAME:
            found[name] = (cell, (0.0, 0.0) if off else middle)
    return found


def _judge_shift(
    target: str, errors: Callable[[Reading], Floats], base: Reading
) -> tuple[Finding, Reading]:
    """Judge half a cell in each direction; return the reading that is believed.

    Where one is, its direction is followed as long as that fits better.
    """
    readings = {DECLARED: base}
    for x in (-1, 0, 1):
        for y in (-1, 0, 1):
            if x or y:
                readings |= _shifted(base, (x, y), _HALF)
    table = {name: errors(own) for name, own in readings.items()}
    finding = decide(target, "shift", table, graded=True)
    if finding.verdict != "wrong":
        return finding, base
    finding = replace(finding, meant=list(readings[finding.best[0]].shift))
    x, y = (round(step / _HALF) for step in finding.meant)
    farther: dict[str, Reading] = {}
    for cells in _FARTHER:
        farther |= _shifted(base, (x, y), cells)
    means = {name: float(errors(own).mean()) for name, own in farther.items()}
    best = min(means, key=lambda name: means[name])
    assert finding.best_score is not None
    if means[best] >= finding.best_score:
        return finding, readings[finding.best[0]]
    meant = list(farther[best].shift)
    return replace(finding, best=(best,), best_score=means[best], meant=meant), farther[best]


def _shifted(base: Reading, way: tuple[int, int], cells: float) -> dict[str, Reading]:
    """Return what to call a grid that lies so many cells that way, and how it is read."""
    there = " and ".join(
        f"{'+' if step > 0 else '-'}{axis}" for step, axis in zip(way, "xy", strict=True) if step
    )
    far = "half a cell" if cells == _HALF else "a cell" if cells == 1 else f"{cells:g} cells"
    shift = (way[0] * cells, way[1] * cells)
    reading = Reading(base.symmetry, base.cell, base.centre, shift)
    return {f"the grid lies {far} to {there}": reading}


def _judge_channels(
    target: str,
    heatmaps: Sequence[npt.NDArray[np.float32]],
    points: Sequence[Floats],
    truth: Sequence[Truth],
    reading: Reading,
) -> list[Finding]:
    """Judge the order of channels, and whether they are probabilities."""
    said = [_sampled(own, p, reading) for own, p in zip(heatmaps, points, strict=True)]
    classes_N = np.concatenate([own.classes_N for own in truth])
    finding, order = class_order(target, np.concatenate(said, axis=1).T, classes_N)
    low = min(float(own[own != 0].min(initial=1)) for own in heatmaps)
    high = max(float(own.max()) for own in heatmaps)
    values = {
        DECLARED: _as_is,
        "logits, taken for probabilities": _sigmoid,
        "probabilities, taken for logits": _logit,
    }
    if low < _SIGMOID_OF[0] or high > _SIGMOID_OF[1]:
        del values["probabilities, taken for logits"]
    errors = {}
    for name, change in values.items():
        parts = []
        for own_KYX, said_KN, own in zip(heatmaps, said, truth, strict=True):
            at_N = change(said_KN)[order[own.classes_N], np.arange(len(own.classes_N))]
            stored = change(own_KYX[own_KYX != 0].astype(np.float64))
            elsewhere = np.square(stored).sum() / max(len(at_N), 1)
            parts.append(np.square(1 - at_N) + elsewhere)
        errors[name] = np.concatenate(parts)
    return [finding, named(decide(target, "values", errors), {n: n.split(",")[0] for n in values})]


def _as_is(values: Floats) -> Floats:
    return values


def _sigmoid(values: Floats) -> Floats:
    return 1 / (1 + np.exp(-values))


def _logit(values: Floats) -> Floats:
    inside = np.clip(values, 0.5, _SIGMOID_OF[1])
    return np.log(inside / (1 - inside))


def _standard(energy_YX: Floats) -> Floats:
    """Return energy less the mean of its ring: near the sensor everything is louder."""
    num_y, num_x = energy_YX.shape
    row_Y1, column_X = np.arange(num_y)[:, None] - (num_y - 1) / 2, np.arange(num_x)
    ring_YX = np.hypot(row_Y1, column_X - (num_x - 1) / 2).astype(np.int64)
    total_R = np.bincount(ring_YX.ravel(), energy_YX.ravel())
    off: Floats = energy_YX - (total_R / np.maximum(np.bincount(ring_YX.ravel()), 1))[ring_YX]
    return off / (float(off.std()) or 1.0)


def _points(boxes_N9: Floats, centre: bool) -> Floats:
    """Return where boxes are looked at, (N, S, 2) metres: their centre, or nine points of each."""
    steps = (0.0,) if centre else _WITHIN
    along_S, across_S = (own.ravel() for own in np.meshgrid(steps, steps))
    along_NS = boxes_N9[:, 3:4] * along_S
    across_NS = boxes_N9[:, 4:5] * across_S
    c, s = np.cos(boxes_N9[:, 6:7]), np.sin(boxes_N9[:, 6:7])
    x_NS = boxes_N9[:, 0:1] + along_NS * c - across_NS * s
    y_NS = boxes_N9[:, 1:2] + along_NS * s + across_NS * c
    return np.stack([x_NS, y_NS], axis=-1)


def _sampled(maps_KYX: npt.NDArray[Any], points_NS2: Floats, reading: Reading) -> Floats:
    """Return what maps hold at points, (K, N), mean over the points of each; 0 off the map."""
    num_y, num_x = maps_KYX.shape[1:]
    cells_NS2 = (points_NS2 - np.array(reading.centre)) / reading.cell - np.array(reading.shift)
    cells_NS2 = cells_NS2 @ reading.symmetry.T + np.array([num_x, num_y]) / 2 - 0.5
    at = cells_NS2[..., 1].ravel(), cells_NS2[..., 0].ravel()
    shape = (len(maps_KYX), *points_NS2.shape[:2])
    found = [map_coordinates(own.astype(np.float64), at, order=1) for own in maps_KYX]
    mean_KN: Floats = np.stack(found).reshape(shape).mean(-1)
    return mean_KN

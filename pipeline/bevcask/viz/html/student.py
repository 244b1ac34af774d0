"""A trained student beside its teacher: what can be read of the teacher in it, and its boxes.

Channels of a student are its own, so the teacher's map is read from the student's by the linear map
that fits best over some frames: what is left of the teacher's map is what no such reading finds. On
the teacher's basis of colours both look alike where the student knows what the teacher says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bevcask.cache import Cache
from bevcask.data.index.frames import Frames
from bevcask.data.samples import SampleReader, collate
from bevcask.detectors.base import Batch, Detector, Inputs, Output
from bevcask.errors import CacheCorruptError
from bevcask.evaluation.equivariance import AUGMENTATIONS, augmented
from bevcask.geometry import Grid
from bevcask.progress import progress_bar
from bevcask.targets.align import Align
from bevcask.targets.spec import TapInfo
from bevcask.viz.html.collect import line, spread
from bevcask.viz.html.frames import MIN_SCORE, Content, drawn
from bevcask.viz.html.rasters import Basis, Role, Tile, energy, pool, quantise, robust_range, webp

Floats = npt.NDArray[np.floating[Any]]
FRAMES = 24
"""Frames a student is shown: half of them those with most misses and false alarms."""
_FITTED = 8
_RIDGE = 1e-3  # of the mean variance of a channel
_LIMITS = (0.0, 1.5)  # of the difference, in units of the teacher's own spread


@dataclass(frozen=True)
class Student:
    """A trained detector without memory, and what reads its frames.

    Attributes:
        name: of its run.
        detector: in evaluation mode, on the CPU.
        taps: what it offers.
        frames: every frame of the dataset.
        inputs: what is loaded of each.
        augmentation: a name of `evaluation.equivariance.AUGMENTATIONS`.
    """

    name: str
    detector: Detector
    taps: Mapping[str, TapInfo]
    frames: Frames
    inputs: Inputs
    augmentation: str

    def batch(self, token: str) -> Batch:
        """Read a clean frame."""
        reader = SampleReader(self.frames, replace(self.inputs, depth=False), None, 0)
        return collate([reader.read(token)])


@dataclass(frozen=True)
class Beside:
    """What a page shows of a student.

    Attributes:
        numbers: of the frames it was shown, in the order of the lines.
        tiles: of its strips, plain JSON data.
        about: name, tap, target, augmentation, share of the target's variance that is read.
        gaps: by frame: |teacher - reading| / |teacher - its mean|.
    """

    numbers: list[int]
    tiles: list[dict[str, Any]]
    about: dict[str, Any]
    gaps: dict[int, float]


@dataclass(frozen=True)
class _Shown:
    """Maps of a frame at a raster's cells, (C, Y, X); `said` to `aligned` are the student's."""

    said: Floats
    teacher: Floats
    reading: Floats
    moved: Floats
    aligned: Floats

    @property
    def off(self) -> Floats:
        return self.teacher - self.reading

    @property
    def squares(self) -> Floats:
        """Sums: of what is left of the teacher's map, and of that map less its mean."""
        spread_CYX = self.teacher - self.teacher.mean((1, 2), keepdims=True)
        return np.array([np.square(self.off).sum(), np.square(spread_CYX).sum()])


class _Reading:
    """The linear map from a student's channels to a teacher's that fits best over some frames."""

    def __init__(self) -> None:
        self._sums: list[Floats] = []
        self._weight: Floats = np.zeros((0, 0))

    def add(self, said_CYX: Floats, teacher_CYX: Floats) -> None:
        """Count a frame."""
        said_CN, true_CN = _rows(said_CYX), _rows(teacher_CYX)[:-1]
        sums = [said_CN @ said_CN.T, said_CN @ true_CN.T]
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self._sums else sums

    def solve(self) -> None:
        """Fit what was counted."""
        square_CC, product_CC = self._sums
        ridge = _RIDGE * np.trace(square_CC) / len(square_CC) + 1e-9
        self._weight = np.linalg.solve(square_CC + ridge * np.eye(len(square_CC)), product_CC).T

    def __call__(self, said_CYX: Floats) -> Floats:
        read: Floats = self._weight @ _rows(said_CYX)
        return read.reshape(-1, *said_CYX.shape[1:])


def _rows(map_CYX: Floats) -> Floats:
    """Return (C + 1, cells), float64: the last row is 1, for an offset."""
    flat_CN = map_CYX.reshape(len(map_CYX), -1).astype(np.float64)
    return np.concatenate([flat_CN, np.ones((1, flat_CN.shape[1]))])


@dataclass(frozen=True)
class _Asking:
    """Asks student and cache about frames; maps are read at the cells of `grid`."""

    student: Student
    cache: Cache
    target: str
    tap: TapInfo
    content: Content
    grid: Grid

    def maps(self, token: str) -> tuple[Floats, Floats] | None:
        """Return the student's map and the teacher's of a frame; None of one that is damaged."""
        try:
            teacher_CYX = self.cache.read_float(token, [self.target])[self.target]
        except CacheCorruptError:
            return None
        with torch.inference_mode():
            output = self.student.detector(self.student.batch(token))
        return self._read(output, Align.identity(1)), pool(teacher_CYX, self.grid, np.mean)

    def moved(self, token: str) -> tuple[Floats, Floats]:
        """Return its map of the augmented frame: as it is, and aligned."""
        batch = augmented(self.student.batch(token), AUGMENTATIONS[self.student.augmentation])
        with torch.inference_mode():
            output = self.student.detector(batch)
        return self._read(output, Align.identity(1)), self._read(output, Align(batch.bev_aug_B44))

    def boxes(self, token: str) -> list[list[float]]:
        """Return its boxes of enough score."""
        with torch.inference_mode():
            output = self.student.detector(self.student.batch(token))
            [found] = self.student.detector.decode(output)
        columns = [found.boxes_N9, found.scores_N[:, None], found.classes_N[:, None].float()]
        rows_M11 = torch.cat(columns, dim=1).numpy()
        return drawn(rows_M11[rows_M11[:, 9] >= MIN_SCORE])

    def _read(self, output: Output, align: Align) -> Floats:
        full = self.content.specs[self.target].tap.grid
        assert full is not None
        assert self.tap.grid is not None
        map_1CYX = output.taps[self.tap.name].float()
        read_1CYX, valid_1YX = align.cells(map_1CYX, self.tap.grid, full)
        inside: Floats = (read_1CYX * valid_1YX[:, None])[0].numpy()
        return pool(inside, self.grid, np.mean)


def show(
    student: Student,
    cache: Cache,
    content: Content,
    rows: Sequence[Mapping[str, Any]],
    out: Path,
    chosen: Sequence[int],
) -> Beside | None:
    """Write a line a frame; None where the cache or the student has no map.

    Args:
        student: to be shown the frames.
        cache: of its teacher.
        content: its rasters give basis, ranges and cells.
        rows: of the page.
        out: file to write.
        chosen: numbers of the rows.
    """
    out.write_bytes(b"")
    basis, tap = content.rasters.basis, _tap(student, content)
    if basis is None or tap is None or not chosen:
        return None
    teacher_tiles = [own for own in content.rasters.tiles if own.role == "component"]
    asking = _Asking(student, cache, basis.target, tap, content, teacher_tiles[0].grid)
    reading, energies = _Reading(), list[Floats]()
    with progress_bar("student", len(chosen), silent_for=2.0) as bar:
        for place in _some(len(chosen)):
            if (pair := asking.maps(rows[chosen[place]]["token"])) is not None:
                reading.add(*pair)
                energies.append(energy(pair[0], asking.grid).ravel())
        if not energies:
            return None
        reading.solve()
        tiles = _tiles(basis.target, teacher_tiles, np.concatenate(energies))
        found = Beside([], [own.to_dict() for own in tiles], {}, {})
        left = np.zeros(2)
        with out.open("wb") as file:
            for number in chosen:
                bar.advance()
                token = rows[number]["token"]
                if (pair := asking.maps(token)) is None:
                    continue
                shown = _Shown(*pair, reading(pair[0]), *asking.moved(token))
                left += shown.squares
                found.numbers.append(number)
                found.gaps[number] = float(np.sqrt(shown.squares[0] / max(shown.squares[1], 1e-12)))
                strip = _strip(tiles, basis, shown)
                file.write(line({"strip": webp(strip), "boxes": asking.boxes(token)}))
    about = {
        "name": student.name, "tap": tap.name, "target": basis.target,
        "augmentation": student.augmentation, "read": float(1 - left[0] / max(left[1], 1e-12)),
    }  # fmt: skip
    found.about.update(about)
    return found


def _some(number: int) -> list[int]:
    return [int(own) for own in spread([str(n) for n in range(number)], _FITTED)]


def _tap(student: Student, content: Content) -> TapInfo | None:
    """Return the student's map of the target's name, else its last one."""
    maps = [own for own in student.taps.values() if own.kind == "dense_bev" and own.grid]
    basis = content.rasters.basis
    name = "" if basis is None else content.specs[basis.target].tap.name
    return next((own for own in maps if own.name == name), maps[-1] if maps else None)


def _tiles(target: str, teacher: Sequence[Tile], energies: Floats) -> list[Tile]:
    """Return the student's tiles: components in the teacher's ranges, difference, energies."""
    grid, width = teacher[0].grid, teacher[0].grid.num_x
    found = [replace(own, x=place * width) for place, own in enumerate(teacher)]
    edges = robust_range("energy", [energies])
    roles: list[tuple[Role, tuple[float, float]]] = [
        ("difference", _LIMITS), ("energy", edges), ("moved", edges), ("aligned", edges),
    ]  # fmt: skip
    for role, limits in roles:
        found.append(Tile(target, role, 0, len(found) * width, grid, *limits))
    return found


def _strip(tiles: Sequence[Tile], basis: Basis, shown: _Shown) -> npt.NDArray[np.uint8]:
    grid = tiles[0].grid
    components = basis.apply(shown.reading)
    usual = float(np.sqrt(shown.squares[1] / shown.teacher.size)) or 1.0
    maps = {
        "difference": np.sqrt(np.square(shown.off).mean(0)) / usual,
        "energy": energy(shown.said, grid),
        "moved": energy(shown.moved, grid),
        "aligned": energy(shown.aligned, grid),
    }
    cells = [
        quantise(components[own.number] if own.role == "component" else maps[own.role], own)
        for own in tiles
    ]
    return np.concatenate(cells, axis=1)

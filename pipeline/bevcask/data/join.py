"""Where frames and cached targets meet: the only file that knows both.

Workers hand over targets as they are stored, quantised and only the cells of their region;
`TrainBatch.dequantised` turns them into float32 maps on whatever device the batch is on.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bevcask.cache.encoded import Encoded, concatenate
from bevcask.cache.near import Near
from bevcask.cache.quantize import dequantize
from bevcask.cache.reader import Cache
from bevcask.cache.union import Caches, open_caches
from bevcask.data.index.frames import Frames
from bevcask.data.samples import Key, Sample, SampleReader, collate
from bevcask.detectors.base import Batch
from bevcask.errors import TargetMismatchError, TokenNotCachedError
from bevcask.geometry import CAMERAS
from bevcask.targets.pixels import PIXELS
from bevcask.targets.plan import VIEW_TRANSFORM
from bevcask.targets.spec import view_key
from bevcask.targets.target import Target

_log = logging.getLogger(__name__)


_SAME_SIZE = 1e-9  # of a factor
_PIXELS = 1e-3  # what rounding of matrices may move a pixel


@dataclass
class TrainBatch:
    """What one training step gets.

    Attributes:
        batch: what the student sees.
        targets: by tap name, as stored, batch first; values of targets with a region are (C, M):
            the M stored cells of the whole batch, in the order of `region.nonzero()`.
        teacher_batches: what each online teacher sees, by its label (empty of the only one).
    """

    batch: Batch
    targets: dict[str, Encoded[Tensor]] = field(default_factory=dict)
    teacher_batches: Mapping[str, Batch] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> "TrainBatch":
        """Return everything on a device, targets still as stored.

        Where `lidar.pixels` is among them, it becomes `Batch.pixels` of a batch that has none.
        """
        targets = {
            name: _each(partial(_move, device=device), target)
            for name, target in self.targets.items()
        }
        batch = self.batch.to(device)
        if PIXELS.name in targets and batch.pixels is None:
            count_B = self.targets[PIXELS.name].count
            assert count_B is not None
            own = zip(targets[PIXELS.name].values, count_B.tolist(), strict=True)
            batch.pixels = [points_P5[:count] for points_P5, count in own]
        return replace(
            self,
            batch=batch,
            targets=targets,
            teacher_batches={name: own.to(device) for name, own in self.teacher_batches.items()},
        )

    def dequantised(self) -> dict[str, Target]:
        """Return the targets in float32, on their device, cells outside a region zero."""
        return dequantised({name: _scatter(target) for name, target in self.targets.items()})


def dequantised(targets: Mapping[str, Encoded[Tensor]]) -> dict[str, Target]:
    """Return encoded targets (batch first) as methods read them."""
    return {
        name: Target(dequantize(target.values, target.scale), target.region, target.count)
        for name, target in targets.items()
    }


def cached_frames(
    frames: Frames, cache: Cache, on_missing: Literal["raise", "skip"] = "raise"
) -> Frames:
    """Return the frames whose tokens have a row in the cache.

    Args:
        frames: the selection.
        cache: an open cache.
        on_missing: `raise`, or `skip` with the count logged.

    Raises:
        TokenNotCachedError: frames have no row and `on_missing` is `raise`, or none has one.
    """
    known = cache.frames.tokens
    absent = known.positions(frames.tokens) < 0
    if not absent.any():
        return frames
    missing = [frames.tokens[place] for place in np.flatnonzero(absent)]
    said = (
        f"{len(missing)} of {len(frames)} selected frames have no row in the cache of "
        f"{len(known)} frames: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
    )
    if on_missing == "raise" or len(missing) == len(frames):
        raise TokenNotCachedError(
            f"{said}. Extract a cache of this dataset.split, dataset.scenes and dataset.limit, or "
            "train on the frames that are there with on_missing=skip."
        )
    _log.warning("%s; skipped.", said)
    return frames.keep(known)


@dataclass(frozen=True)
class JoinedSample:
    """One frame as the student sees it and as each online teacher does, by label."""

    student: Sample
    teachers: Mapping[str, Sample]


class JoinedDataset:
    """Frames joined with their targets by sample token.

    Where a cache gives `lidar.pixels`, they are the student's too: no LiDAR file is read.

    Args:
        frames: the selection; every token must have a row (`cached_frames`).
        student: reads what the student sees.
        cache: URL of the cache (several: separated by commas), opened in each worker at its first
            read; None without targets.
        names: targets to read.
        viewed: targets to read in the view the student sees (`SampleReader.replay`).
        teachers: read what each online teacher sees, by label; none with a cache. Clean for
            `online.input=canonical`; with the student's augmentation and seed for `augmented`.
        near: where copies of what is read of the cache are kept; None for nowhere.
        growing: shards may be missing now that are there by the time they are read.
    """

    def __init__(
        self,
        frames: Frames,
        student: SampleReader,
        cache: str | None = None,
        names: Sequence[str] = (),
        teachers: Mapping[str, SampleReader] | None = None,
        viewed: Sequence[str] = (),
        near: Near | None = None,
        growing: bool = False,
    ) -> None:
        self.frames = frames
        self.growing = growing
        self.near = near
        self.cache = cache
        self.names = tuple(names)
        self.viewed = tuple(viewed)
        self.teachers = dict(teachers or {})
        cached = cache is not None and PIXELS.name in self.names
        self.student = student.without_depth() if cached else student
        self._open: Caches | None = None

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: Key) -> JoinedSample:
        return JoinedSample(
            student=self.student.at(key, self.frames),
            teachers={name: own.at(key, self.frames) for name, own in self.teachers.items()},
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def _read_targets(self, samples: Sequence[Sample]) -> dict[str, Encoded[Any]]:
        if self.cache is None or not (self.names or self.viewed):
            return {}
        if self._open is None:
            self._open = open_caches(self.cache, self.near, self.growing)
        found = {}
        if self.names:
            found = self._open.read_batch([sample.token for sample in samples], self.names)
        return {**found, **self._read_views(self._open, samples)} if self.viewed else found

    def _read_views(self, caches: Caches, samples: Sequence[Sample]) -> dict[str, Encoded[Any]]:
        """Return targets of the view each sample shows, samples in order."""
        positions: dict[int, list[int]] = {}
        for position, sample in enumerate(samples):
            positions.setdefault(sample.view, []).append(position)
        parts = []
        shown = {name.rpartition("/")[0] for name in self.viewed}  # of each labelled cache its own
        transforms = [f"{label}/{VIEW_TRANSFORM.name}".lstrip("/") for label in sorted(shown)]
        for view, members in positions.items():
            names = {view_key(name, view): name for name in (*self.viewed, *transforms)}
            own = [samples[position] for position in members]
            read = caches.read_batch([sample.token for sample in own], list(names))
            parts.append({names[stored]: target for stored, target in read.items()})
            for transform in transforms:
                _require_same_view(own, parts[-1].pop(transform).values)
        order = np.argsort(np.concatenate(list(positions.values())))
        return {
            name: _each(lambda array: array[order], concatenate([part[name] for part in parts]))
            for name in self.viewed
        }

    def collate(self, samples: Sequence[JoinedSample]) -> TrainBatch:
        """Stack joined samples on the host, and read their targets as one batch."""
        students = [sample.student for sample in samples]
        targets = self._read_targets(students)
        return TrainBatch(
            batch=collate(students),
            targets={name: _pack(target) for name, target in targets.items()},
            teacher_batches={
                name: collate([sample.teachers[name] for sample in samples])
                for name in self.teachers
            },
        )


def _require_same_view(samples: Sequence[Sample], stored_BV33: npt.NDArray[Any]) -> None:
    """Refuse targets of another image augmentation than the student is shown.

    Raises:
        TargetMismatchError: frame, view and both matrices of the first camera that differs.
    """
    for sample, stored_V33 in zip(samples, stored_BV33, strict=True):
        shown_V33 = sample.image_aug_V33
        if shown_V33 is None or _same_view(shown_V33, stored_V33):
            continue
        camera = int(np.argmax(np.abs(shown_V33 - stored_V33).max(axis=(1, 2))))
        raise TargetMismatchError(
            f"sample {sample.token}, view {sample.view}, {CAMERAS[camera]}: the cached targets are "
            f"of images moved by {stored_V33[camera].tolist()}, the student is shown "
            f"{shown_V33[camera].tolist()}. Train at the teacher's image size, extract views with "
            "a teacher of the student's, or let both draw for one size: augment.image_size_HW."
        )


def _same_view(shown_V33: npt.NDArray[Any], stored_V33: npt.NDArray[Any]) -> bool:
    """Tell whether one is the other, or the same enlarged."""
    times = float(np.sqrt(np.linalg.det(stored_V33[0]) / np.linalg.det(shown_V33[0])))
    if abs(times - 1) < _SAME_SIZE:
        return np.array_equal(shown_V33, stored_V33)
    half = (times - 1) / 2
    enlarge = np.array([[times, 0, half], [0, times, half], [0, 0, 1]])
    return bool(np.abs(enlarge @ shown_V33 - stored_V33).max() < _PIXELS * times)


def _pack(target: Encoded[Any]) -> Encoded[Tensor]:
    """Make tensors of a batch; where there is a region, keep the stored cells (C, [Z,] M)."""
    if target.region is not None:
        cells = [
            maps.reshape(*maps.shape[:-2], -1)[..., np.flatnonzero(region_YX)]
            for maps, region_YX in zip(target.values, target.region, strict=True)
        ]
        target = replace(target, values=np.concatenate(cells, axis=-1))
    return _each(torch.from_numpy, target)


def _scatter(target: Encoded[Tensor]) -> Encoded[Tensor]:
    """Put stored cells (C, [Z,] M) back into whole maps (B, C, [Z,] Y, X)."""
    if target.region is None:
        return target
    region_BYX = target.region
    sample_M, row_M, column_M = region_BYX.nonzero(as_tuple=True)
    num, rows, columns = region_BYX.shape
    maps = target.values.new_zeros((num, *target.values.shape[:-1], rows, columns))
    maps[sample_M, ..., row_M, column_M] = target.values.movedim(-1, 0)
    return replace(target, values=maps)


def _each(function: Callable[[Any], Any], target: Encoded[Any]) -> Encoded[Any]:
    """Apply a function of an array to each field that a target has."""
    parts = [getattr(target, part.name) for part in fields(Encoded)]
    return Encoded(*(None if part is None else function(part) for part in parts))


def _move(array: Tensor, device: torch.device | str) -> Tensor:
    return array.to(device, non_blocking=True)

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
import torch
from torch import Tensor

from bevcask.cache.layout import Encoded
from bevcask.cache.quantize import dequantize
from bevcask.cache.reader import Cache, open_cache
from bevcask.data.loader import Key, Sample, SampleReader, collate
from bevcask.data.nuscenes import Frames
from bevcask.detectors.base import Batch
from bevcask.errors import TokenNotCachedError
from bevcask.targets.target import Target

_log = logging.getLogger(__name__)


@dataclass
class TrainBatch:
    """What one training step gets.

    Attributes:
        batch: what the student sees.
        targets: by tap name, as stored, batch first; values of targets with a region are (C, M):
            the M stored cells of the whole batch, in the order of `region.nonzero()`.
        teacher_batch: what an online teacher sees; None when targets come from a cache.
    """

    batch: Batch
    targets: dict[str, Encoded[Tensor]] = field(default_factory=dict)
    teacher_batch: Batch | None = None

    def to(self, device: torch.device | str) -> "TrainBatch":
        """Return everything on a device, targets still as stored."""
        return replace(
            self,
            batch=self.batch.to(device),
            targets={
                name: _each(partial(_move, device=device), [target])
                for name, target in self.targets.items()
            },
            teacher_batch=None if self.teacher_batch is None else self.teacher_batch.to(device),
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
    known = set(cache.frames.tokens)
    missing = [token for token in frames.tokens if token not in known]
    if not missing:
        return frames
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
    """One frame for the student, its targets as stored, and the online teacher's view of it."""

    student: Sample
    targets: dict[str, Encoded[Any]]
    teacher: Sample | None


class JoinedDataset:
    """Frames joined with their targets by sample token.

    Args:
        frames: the selection; every token must have a row (`cached_frames`).
        student: reads what the student sees.
        cache: URL of the cache, opened in each worker at its first read; None without targets.
        names: targets to read.
        teacher: reads what an online teacher sees; None with a cache. Clean for
            `online.input=canonical`; with the student's augmentation and seed for `augmented`.
    """

    def __init__(
        self,
        frames: Frames,
        student: SampleReader,
        cache: str | None = None,
        names: Sequence[str] = (),
        teacher: SampleReader | None = None,
    ) -> None:
        self.frames = frames
        self.student = student
        self.cache = cache
        self.names = tuple(names)
        self.teacher = teacher
        self._open: Cache | None = None

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: Key) -> JoinedSample:
        index, view = key
        token = self.frames.tokens[index]
        return JoinedSample(
            student=self.student.read(token, view),
            targets=self._read_targets(token),
            teacher=None if self.teacher is None else self.teacher.read(token, view),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def _read_targets(self, token: str) -> dict[str, Encoded[Any]]:
        if self.cache is None or not self.names:
            return {}
        if self._open is None:
            self._open = open_cache(self.cache)
        return self._open.read(token, self.names)

    def collate(self, samples: Sequence[JoinedSample]) -> TrainBatch:
        """Stack joined samples on the host."""
        teachers = [sample.teacher for sample in samples if sample.teacher is not None]
        return TrainBatch(
            batch=collate([sample.student for sample in samples]),
            targets={
                name: _collate([sample.targets[name] for sample in samples])
                for name in samples[0].targets
            },
            teacher_batch=collate(teachers) if teachers else None,
        )


def _collate(targets: Sequence[Encoded[Any]]) -> Encoded[Tensor]:
    """Stack targets of samples; of those with a region keep the stored cells only."""
    if targets[0].region is None:
        return _each(_stack, targets)
    cells = [np.flatnonzero(np.asarray(target.region)) for target in targets]
    values = [
        target.values.reshape(len(target.values), -1)[:, cell]
        for target, cell in zip(targets, cells, strict=True)
    ]
    rest = _each(_stack, [replace(target, values=cells[0][:0]) for target in targets])
    return replace(rest, values=torch.from_numpy(np.concatenate(values, axis=1)))


def _scatter(target: Encoded[Tensor]) -> Encoded[Tensor]:
    """Put stored cells (C, M) back into whole maps (B, C, Y, X)."""
    if target.region is None:
        return target
    region_BYX = target.region
    sample_M, row_M, column_M = region_BYX.nonzero(as_tuple=True)
    num, rows, columns = region_BYX.shape
    map_BCYX = target.values.new_zeros((num, len(target.values), rows, columns))
    map_BCYX[sample_M, :, row_M, column_M] = target.values.T
    return replace(target, values=map_BCYX)


def _each(function: Callable[..., Tensor], targets: Sequence[Encoded[Any]]) -> Encoded[Tensor]:
    """Apply a function of arrays to each field that the targets have."""
    values: dict[str, Any] = {}
    for name in (part.name for part in fields(Encoded)):
        arrays = [getattr(target, name) for target in targets]
        values[name] = None if arrays[0] is None else function(*arrays)
    return Encoded(**values)


def _stack(*arrays: Any) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _move(array: Tensor, device: torch.device | str) -> Tensor:
    return array.to(device, non_blocking=True)

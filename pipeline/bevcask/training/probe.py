"""Which codec is worth its bytes: what each does to the distillation loss and its gradient.

The teacher speaks once about a few frames. What it said is stored under every candidate, read back,
and handed to the very loss that will be trained; float32 is the truth the others are held against.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bevcask.cache.chunks import decode_chunk, encode_chunk
from bevcask.cache.encoded import Encoded
from bevcask.cache.quantize import encode_targets
from bevcask.config import StoreConfig
from bevcask.data.join import TrainBatch, dequantised
from bevcask.detectors.base import Detector
from bevcask.detectors.memory import unroll
from bevcask.methods.base import Method, Target
from bevcask.targets.plan import is_replayed, plan
from bevcask.targets.spec import TargetSpec, stored_dtype
from bevcask.teachers.base import Teacher
from bevcask.training.sources import align_of

LOSS_GOAL, GRADIENT_GOAL = 1e-3, 1e-2  # relative change that no student has been seen to notice
CANDIDATES: Mapping[str, Mapping[str, Any]] = {
    "float32": {"codec": "float32"},
    "float16": {"codec": "float16"},
    "auto, 8 bits": {"codec": "auto", "bits": 8},
    "auto, 6 bits": {"codec": "auto", "bits": 6},
    "auto, 4 bits": {"codec": "auto", "bits": 4},
}
_LADDERS = (
    ("int6", "int8", "float16"),
    ("int5", "int6", "int8"),
    ("int4", "int6", "int8"),
)
"""Of image levels, largest first; the last codec is that of all others."""
_EXACT = "float32"


@dataclass
class Row:
    """What a candidate costs and changes; means over the probed frames.

    Attributes:
        name: of the candidate.
        words: configuration that asks for it.
        bytes_by_target: compressed, of one frame.
        decode_ms: checksum and decompression of a frame, milliseconds.
        cosine: lowest among dense targets, stored cells, against float32.
        loss: relative change of the distillation loss.
        gradient: relative change of its gradient on all student weights, as one vector.
        dominated: another candidate is smaller and changes the gradient less.
    """

    name: str
    words: str
    bytes_by_target: Mapping[str, float] = field(default_factory=dict)
    decode_ms: float = 0.0
    cosine: float = 1.0
    loss: float = 0.0
    gradient: float = 0.0
    dominated: bool = False

    @property
    def bytes_per_frame(self) -> float:
        """Compressed bytes of one frame, all targets."""
        return sum(self.bytes_by_target.values())


@dataclass
class _Sums:
    frames: int = 0
    stored: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    cosine: dict[str, float] = field(default_factory=dict)
    loss: float = 0.0
    gradient: float = 0.0

    def __add__(self, other: "_Sums") -> "_Sums":
        cosine = {
            name: self.cosine.get(name, 0.0) + other.cosine.get(name, 0.0)
            for name in self.cosine | other.cosine
        }
        return _Sums(
            self.frames + other.frames,
            self.stored + other.stored,
            self.seconds + other.seconds,
            cosine,
            self.loss + other.loss,
            self.gradient + other.gradient,
        )


@dataclass
class Measured:
    """Sums over some frames: of every candidate, and of float32 itself."""

    sums: dict[str, _Sums]
    loss: float = 0.0
    gradient: float = 0.0


def measure(
    student: Detector,
    method: Method,
    teacher: Teacher,
    batches: Iterable[TrainBatch],
    store: StoreConfig,
    remembers: bool = False,
) -> Measured:
    """Measure every candidate on the given batches.

    Args:
        student: where the gradient is taken; on the device of the batches.
        method: built for this student and the teacher's taps.
        teacher: loaded on the same device.
        batches: what the student sees, and what the teacher sees of the same frames.
        store: everything but the codec. Replayed views are probed as the clean frame is; each
            takes the same bytes.
        remembers: the student is shown the history of each frame first.

    Raises:
        PlanError: the teacher does not offer what the method needs.
    """
    chosen = {
        name: _specs(method, teacher, store.model_copy(update={"codecs": (), **words}))
        for name, words in _candidates(method, teacher, store).items()
    }
    measured = Measured({name: _Sums() for name in chosen})
    for batch in batches:
        with torch.inference_mode():
            shown, names = batch.teacher_batches[""], [spec.name for spec in chosen[_EXACT]]
            said = teacher.targets(shown, names)
        learn = _Lesson(student, method, batch, remembers)
        exact = _Exact(said, chosen[_EXACT], batch, learn)
        measured.loss += abs(exact.loss)
        measured.gradient += float(exact.gradient.square().sum())
        for name, specs in chosen.items():
            exact.compare(said, specs, batch, learn, measured.sums[name])
    return measured


def rows_of(
    parts: Sequence[Measured], method: Method, teacher: Teacher, store: StoreConfig
) -> list[Row]:
    """Return a row a candidate, largest first, dominated ones marked.

    Args:
        parts: `measure` of some frames and of others.
        method: as there.
        teacher: as there; need not be loaded.
        store: as there.
    """
    candidates = _candidates(method, teacher, store)
    copies = {
        spec.name: store.views if is_replayed(spec.tap, store.views) else 1
        for spec in _specs(method, teacher, store.model_copy(update={"codecs": ()}))
    }
    total_loss = sum(part.loss for part in parts)
    total_gradient = sum(part.gradient for part in parts)
    rows = []
    for name in candidates:
        found = sum((part.sums[name] for part in parts), _Sums())
        words = " ".join(f"store.{key}={_word(value)}" for key, value in candidates[name].items())
        rows.append(
            Row(
                name,
                words,
                {tap: size * copies[tap] / found.frames for tap, size in found.stored.items()},
                1e3 * found.seconds / found.frames,
                min((total / found.frames for total in found.cosine.values()), default=1.0),
                found.loss / max(total_loss, 1e-30),
                (found.gradient / max(total_gradient, 1e-30)) ** 0.5,
            )
        )
    return mark_dominated(rows)


def _candidates(
    method: Method, teacher: Teacher, store: StoreConfig
) -> dict[str, Mapping[str, Any]]:
    """Return what is compared: the shipped ones, ladders of several image levels, what is asked."""
    found: dict[str, Mapping[str, Any]] = dict(CANDIDATES)
    specs = _specs(method, teacher, store.model_copy(update={"codecs": ()}))
    levels = sorted(
        (spec.tap for spec in specs if spec.tap.kind == "image_feature"),
        key=lambda tap: -math.prod(tap.shape),
    )
    for ladder in _LADDERS if len(levels) > 1 else ():
        steps = zip(levels, (*ladder, *ladder[-1:] * len(levels)), strict=False)
        pairs = tuple(f"{tap.name}:{codec}" for tap, codec in steps)
        found["levels " + ", ".join(ladder)] = {"codecs": pairs}
    if store.codecs:
        found["store.codecs"] = {"codecs": store.codecs}
    return found


def _word(value: object) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def mark_dominated(rows: Sequence[Row]) -> list[Row]:
    """Return rows largest first; those beaten in bytes and in gradient are marked."""
    return [
        replace(
            row,
            dominated=any(
                other.bytes_per_frame <= row.bytes_per_frame
                and other.gradient <= row.gradient
                and (other.bytes_per_frame, other.gradient) != (row.bytes_per_frame, row.gradient)
                for other in rows
            ),
        )
        for row in sorted(rows, key=lambda row: -row.bytes_per_frame)
    ]


def best(rows: Sequence[Row], num_frames: int, budget_gb: float | None) -> Row | None:
    """Return the best row, or None where nothing fits.

    Under a budget: the one that changes the gradient least among those that fit. Without: the
    smallest among those within `LOSS_GOAL` and `GRADIENT_GOAL`.
    """
    if budget_gb is None:
        faithful = [r for r in rows if r.gradient <= GRADIENT_GOAL and r.loss <= LOSS_GOAL]
        return min(faithful, key=lambda row: row.bytes_per_frame, default=None)
    fitting = [row for row in rows if row.bytes_per_frame * num_frames <= budget_gb * 1e9]
    return min(fitting, key=lambda row: (row.gradient, row.bytes_per_frame), default=None)


def _specs(method: Method, teacher: Teacher, store: StoreConfig) -> tuple[TargetSpec, ...]:
    clean = store.model_copy(update={"views": 0})
    return plan(method.needs(), teacher.offers(), 1, clean, None).specs


class _Lesson:
    """One student forward; gives the distillation loss and its gradient for any targets."""

    def __init__(
        self, student: Detector, method: Method, batch: TrainBatch, remembers: bool
    ) -> None:
        self._method = method
        output = unroll(student, batch.batch) if remembers else student(batch.batch)
        self._taps = {name: output.taps[name] for name in method.student_taps()}
        self._weights = [p for p in student.parameters() if p.requires_grad]
        assert batch.batch.labels is not None
        self._labels = batch.batch.labels
        self._align = align_of(batch.batch)

    def __call__(self, targets: Mapping[str, Target]) -> tuple[float, Tensor]:
        terms = self._method(self._taps, targets, self._labels, self._align, 0.0)
        loss = torch.stack(list(terms.values())).sum()
        slopes = torch.autograd.grad(loss, self._weights, retain_graph=True, allow_unused=True)
        flat = [slope.flatten() for slope in slopes if slope is not None]
        return float(loss.detach()), torch.cat(flat)


class _Exact:
    """What float32 targets give on one batch."""

    def __init__(
        self,
        said: Mapping[str, Tensor],
        specs: Sequence[TargetSpec],
        batch: TrainBatch,
        learn: _Lesson,
    ) -> None:
        self._targets = dequantised(_stored(said, specs, batch))
        self.loss, self.gradient = learn(self._targets)

    def compare(
        self,
        said: Mapping[str, Tensor],
        specs: Sequence[TargetSpec],
        batch: TrainBatch,
        learn: _Lesson,
        sums: _Sums,
    ) -> None:
        """Add one candidate's bytes, time and errors on this batch."""
        stored = _stored(said, specs, batch)
        targets = dequantised(stored)
        sums.frames += len(batch.batch.tokens)
        for spec in specs:
            size, seconds = _on_disk(stored[spec.name], spec)
            sums.stored[spec.name] += size
            sums.seconds += seconds
            if spec.tap.kind != "box_set":
                mine, exact = (
                    one[spec.name].values.flatten(1).double() for one in (targets, self._targets)
                )
                cosine = functional.cosine_similarity(mine, exact)
                sums.cosine[spec.name] = sums.cosine.get(spec.name, 0.0) + float(cosine.sum())
        loss, gradient = learn(targets)
        sums.loss += abs(loss - self.loss)
        sums.gradient += float((gradient - self.gradient).square().sum())


def _stored(
    said: Mapping[str, Tensor], specs: Sequence[TargetSpec], batch: TrainBatch
) -> dict[str, Encoded[Tensor]]:
    labels = batch.batch.labels
    copies = {name: tensor.clone() for name, tensor in said.items()}  # autograd keeps them
    boxes = None if labels is None else labels.canonical_boxes
    return encode_targets(copies, specs, boxes, batch.batch.tokens)


def _on_disk(target: Encoded[Tensor], spec: TargetSpec) -> tuple[int, float]:
    """Return compressed bytes of a batch, and seconds to check and decompress its values."""
    host = target.numpy()
    size, seconds = 0, 0.0
    for values in host.values:
        chunk = encode_chunk(values)
        size += len(chunk)
        if chunk:
            start = time.perf_counter()
            decode_chunk(chunk, values.shape, stored_dtype(spec.codec), spec.name)
            seconds += time.perf_counter() - start
    if host.scale is not None:
        size += host.scale.nbytes
    if host.region is not None:
        size += host.region.size // 8
    return size, seconds

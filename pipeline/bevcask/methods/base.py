"""What a distillation method is: pairs of taps that meet, and a pure loss."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor, nn

from bevcask.config import Config
from bevcask.detectors.base import Labels
from bevcask.errors import TargetMismatchError
from bevcask.registry import suggest
from bevcask.targets.spec import Need, Region, TapInfo, TargetSpec
from bevcask.targets.target import Target, full_precision

if TYPE_CHECKING:
    from bevcask.targets.align import Align


__all__ = ["Method", "Mode", "Pair", "Target", "full_precision", "require_unmoved"]

Mode = Literal["clean", "compat"]
"""`compat` repeats the released code bug for bug (`methods.compat`), for equivalence tests only."""


def require_unmoved(align: "Align", who: str) -> None:
    """Refuse a batch whose BEV augmentation moves anything.

    Raises:
        TargetMismatchError: some matrix is not the identity.
    """
    gap_B = np.abs(align.matrices_B44 - np.eye(4)).max((1, 2))
    if gap_B.max() > 1e-6:
        raise TargetMismatchError(
            f"{who} is defined without BEV augmentation, and sample {int(gap_B.argmax())} of the "
            "batch is moved. Switch augment.bev_rotation, bev_scale, bev_flip_x and bev_flip_y off."
        )


@dataclass(frozen=True)
class Pair:
    """A student tap and a target that meet; or one of them alone.

    Attributes:
        role: the method's word for it, in needs and messages.
        student: the student's tap; None where only the teacher is asked.
        teacher: the teacher's tap; None where only the student is.
        kind: what both must be.
        region: the cells of the target that the loss reads.
        whole: sums and softmaxes run over all cells, whatever the region.
        size_HW: rows and columns that an image feature is resized to before all else, if any.
        otherwise: what to do where one of them is missing, for messages.
    """

    role: str
    student: str | None
    teacher: str | None
    kind: str = "dense_bev"
    region: Region = field(default_factory=Region)
    whole: bool = False
    size_HW: tuple[int, int] | None = None
    otherwise: str = ""


class Method(nn.Module, ABC):
    """A distillation loss. Pure: no files, no device moves, no logging, no hidden randomness."""

    Config: type[Config]

    @abstractmethod
    def pairs(self) -> Sequence[Pair]:
        """Return what meets: needs, student taps and messages follow from it."""

    def needs(self) -> list[Need]:
        """Return what the teacher must provide."""
        return [
            Need(
                pair.role,
                pair.teacher,
                pair.kind,
                pair.region,
                "all" if pair.whole else "region",
                pair.size_HW,
            )
            for pair in self.pairs()
            if pair.teacher is not None
        ]

    def student_taps(self) -> list[str]:
        """Return the student taps the loss reads."""
        return list(dict.fromkeys(pair.student for pair in self.pairs() if pair.student))

    def build(self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]) -> None:
        """Check that all pairs meet, and create the adapters for them.

        Raises:
            TargetMismatchError: shapes, grids or kinds cannot meet; all mismatches in one message.
        """
        problems = self.mismatches(student, specs)
        if problems:
            title = f"{type(self).__name__} cannot join this student and these targets:"
            raise TargetMismatchError("\n- ".join([title, *problems]))
        self.create(student, specs)

    def mismatches(
        self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]
    ) -> list[str]:
        """Return everything that keeps the pairs from meeting, a sentence each."""
        problems = []
        for pair in self.pairs():
            near, far = student.get(pair.student or ""), specs.get(pair.teacher or "")
            found = [*_student_problems(pair, near, student), *_target_problems(pair, far, specs)]
            if not found and near is not None and far is not None:
                found = [f"{pair.role}: {said}" for said in self.misfits(pair, near, far.tap)]
            problems += [*found, *_region_problems(pair, far)]
        return problems

    def misfits(self, pair: Pair, near: TapInfo, far: TapInfo) -> Iterable[str]:
        """Return why two taps of the right kind cannot meet all the same; by default nothing."""
        return []

    def create(self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]) -> None:
        """Create the adapters for pairs that meet; by default there are none."""

    @abstractmethod
    def forward(
        self,
        student: Mapping[str, Tensor],
        targets: Mapping[str, Target],
        labels: Labels,
        align: "Align",
        progress: float,
    ) -> dict[str, Tensor]:
        """Return named scalar losses.

        Args:
            student: student taps by name, in the augmented frame.
            targets: by teacher tap name, in the canonical frame.
            labels: ground truth in both frames.
            align: how the two frames meet for this batch.
            progress: share of training done, 0..1.
        """

    @property
    def denoises(self) -> bool:
        """Whether `pseudo_labels` has boxes for a student's denoising queries."""
        return False

    def pseudo_labels(
        self, targets: Mapping[str, Target], labels: Labels, align: "Align"
    ) -> Labels | None:
        """Return boxes that join ground truth where a student builds its denoising queries.

        No other loss reads them. Asked before the student's forward, with what `forward` will be
        given; by default there are none.
        """
        return None


_ON_A_GRID = frozenset({"dense_bev", "heatmap", "box_code", "occupancy", "voxel_labels"})


def _student_problems(
    pair: Pair, near: TapInfo | None, student: Mapping[str, TapInfo]
) -> list[str]:
    if pair.student is None:
        return []
    if near is None:
        return [
            f"{pair.role}: the student has no tap {pair.student!r}."
            f"{suggest(pair.student, student)}{pair.otherwise} "
            f"It has: {', '.join(sorted(student)) or 'none'}"
        ]
    on_a_grid = pair.kind in _ON_A_GRID
    if near.kind != pair.kind or (on_a_grid and near.grid is None):
        wanted = f"{pair.kind} with a grid" if on_a_grid else pair.kind
        return [f"{pair.role}: student tap {pair.student!r} is a {near.kind}, expected a {wanted}"]
    return []


def _target_problems(
    pair: Pair, far: TargetSpec | None, specs: Mapping[str, TargetSpec]
) -> list[str]:
    if pair.teacher is None:
        return []
    if far is None:
        return [
            f"{pair.role}: no target {pair.teacher!r}.{suggest(pair.teacher, specs)}"
            f"{pair.otherwise} There are: {', '.join(sorted(specs)) or 'none'}"
        ]
    on_a_grid = pair.kind in _ON_A_GRID
    if far.tap.kind != pair.kind or (on_a_grid and far.tap.grid is None):
        wanted = f"{pair.kind} with a grid" if on_a_grid else pair.kind
        return [f"{pair.role}: target {pair.teacher!r} is a {far.tap.kind}, expected a {wanted}"]
    return []


def _region_problems(pair: Pair, far: TargetSpec | None) -> list[str]:
    if far is None or far.tap.kind != pair.kind or far.covers(pair.region):
        return []
    exact = ", decided in float32" if pair.region.name == "confident" else ""
    return [
        f"{pair.role}: target {pair.teacher!r} is stored on region '{far.region}' as {far.codec}, "
        f"the loss reads '{pair.region}'{exact}: extract it with this method and these settings, "
        f"or on 'all'{' as float32' if exact else ''}"
    ]

"""What a distillation method is: needs, student taps, and a pure loss."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bevcask.config import Config
from bevcask.detectors.base import Labels
from bevcask.errors import TargetMismatchError
from bevcask.targets.spec import Need, TapInfo, TargetSpec
from bevcask.targets.target import Target

if TYPE_CHECKING:
    from bevcask.targets.align import Align


__all__ = ["Method", "Mode", "Target", "full_precision", "require_unmoved"]

Mode = Literal["clean", "compat"]
"""`compat` repeats the released code bug for bug (`methods.compat`), for equivalence tests only."""


def full_precision(tensor: Tensor) -> Tensor:
    """Return a half-precision tensor in float32; float32 and float64 stay."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


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


class Method(nn.Module, ABC):
    """A distillation loss. Pure: no files, no device moves, no logging, no randomness."""

    Config: type[Config]

    @abstractmethod
    def needs(self) -> list[Need]:
        """Return what the teacher must provide."""

    @abstractmethod
    def student_taps(self) -> list[str]:
        """Return the student taps the loss reads."""

    @abstractmethod
    def build(self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]) -> None:
        """Create the adapters for these student taps and target specs.

        Raises:
            TargetMismatchError: shapes, grids or kinds cannot meet; all mismatches in one message.
        """

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

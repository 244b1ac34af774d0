"""What a teacher is: taps it can be asked for, an identity, and a forward in inference mode."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from bevcask.detectors.base import Batch, Inputs
from bevcask.targets.spec import TapInfo


class Teacher(ABC):
    """A frozen source of targets."""

    temporal: Literal["none", "scene"] = "none"

    @abstractmethod
    def taps(self) -> Mapping[str, TapInfo]:
        """Return every tap by name; cheap, without weights."""

    @abstractmethod
    def load(self, device: torch.device | str) -> None:
        """Load the weights onto a device.

        Raises:
            CheckpointError: missing file or another architecture (keys counted, first few named).
        """

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Return the identity tree: weights, config, classes, grid (see `fingerprint.py`)."""

    @abstractmethod
    def inputs(self) -> Inputs:
        """Return what the loader must provide."""

    def weights(self) -> dict[str, Tensor]:
        """Return every tensor by name, as its checkpoint file holds them; or nothing."""
        return {}

    def head(self) -> dict[str, Tensor]:
        """Return the head's task branches (`head.tasks.*`) a student may start from; or nothing."""
        return {}

    @abstractmethod
    def __call__(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        """Return the named taps in eval and inference mode.

        box_set taps come as (B, N, 11) float32 (nine box fields, score, class; padded with zeros,
        best first) plus `NAME.count` (B,) int64.
        """

"""What a teacher is: taps it can be asked for, an identity, and a forward in inference mode."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bevcask.cache.identity import check_identity
from bevcask.config import Config as AnyConfig
from bevcask.detectors.base import Batch, Inputs, Memory
from bevcask.detectors.memory import Policy
from bevcask.errors import CheckpointError
from bevcask.targets.pixels import PIXELS, pad
from bevcask.targets.plan import VIEW_TRANSFORM
from bevcask.targets.spec import TapInfo

if TYPE_CHECKING:
    from bevcask.cache.reader import Cache


MEMORY = "memory/"
"""Begins the names under which a teacher says what it wants to remember."""


def of_one_frame(tap: TapInfo) -> bool:
    """Tell whether a tap depends on no other frame, whatever its detector remembers."""
    return tap.kind == "image_feature"


def memory_in(outputs: Mapping[str, Tensor]) -> Memory:
    """Return what a teacher wants to remember, by its own names."""
    return {
        name.removeprefix(MEMORY): value
        for name, value in outputs.items()
        if name.startswith(MEMORY)
    }


class Teacher(ABC):
    """A frozen source of targets.

    Args:
        config: its own keys of the `teacher` section, validated.
        seed: of what is random in it.
    """

    Config: type[AnyConfig]

    def __init__(self, config: AnyConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    @classmethod
    def claims(cls, config: AnyConfig) -> dict[str, Any]:
        """Return as much of the fingerprint as a configuration says without running the teacher.

        A file of weights that it names is hashed, not loaded. What is left out is not compared.
        """
        return {}

    @classmethod
    def matches(cls, config: AnyConfig, cache: "Cache") -> None:
        """Compare what a configuration claims with the teacher that made a cache.

        Raises:
            CacheIdentityError: leaves below `teacher` differ.
            CheckpointError: the file of weights cannot be read.
        """
        check_identity(cache, {"teacher": cls.claims(config)})

    @abstractmethod
    def taps(self) -> Mapping[str, TapInfo]:
        """Return every tap by name; cheap, without weights."""

    @property
    def memory(self) -> Policy:
        """How its memory goes on: `scene` unless it loads and runs windows itself."""
        return "scene" if self.inputs().memory else "none"

    @property
    def remembers(self) -> bool:
        """True if it must be shown each scene from its first frame on, in order."""
        return self.memory == "scene"

    def reads(self) -> Inputs:
        """Return what is loaded with each frame: no history where memory is carried along."""
        return self.inputs().frame_by_frame() if self.remembers else self.inputs()

    @property
    def parts(self) -> int:
        """Of each scene, at which its memory begins anew; 1 for whole scenes."""
        return 1

    def remembering(self) -> dict[str, Any]:
        """Return what identifies its memory."""
        if self.memory != "window":
            return {"policy": self.memory} | ({"parts": self.parts} if self.parts > 1 else {})
        inputs = self.inputs()
        return {"policy": "window", "history": inputs.history, "gaps": list(inputs.gaps)}

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

    def published(self) -> dict[str, Tensor]:
        """Return every tensor as published files of this detector hold them.

        Raises:
            CheckpointError: it has no published names here.
        """
        raise CheckpointError("this teacher has no published names here. Use names=native.")

    def head(self) -> dict[str, Tensor]:
        """Return the head's task branches (`head.tasks.*`) a student may start from; or nothing."""
        return {}

    def caches(self) -> Sequence["Cache"]:
        """Return the caches that it reads in place of sensor data; most teachers read none."""
        return ()

    def sealed(self, tokens: Collection[str]) -> None:
        """Hear that a cache of these frames is whole; most teachers keep nothing of them."""
        return

    @abstractmethod
    def __call__(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        """Return the named taps in eval and inference mode.

        A teacher that remembers adds `memory/NAME` for what it is to be given back as
        `batch.memory[NAME]` at the next frame of each scene (`memory_in`).

        box_set taps come as (B, N, 11) float32 (nine box fields, score, class; padded with zeros,
        best first) plus `NAME.count` (B,) int64.
        """

    def offers(self) -> Mapping[str, TapInfo]:
        """Return what can be planned with this teacher: its taps, and what the data alone says.

        Taps say which other frames they depend on; image features are of one frame.
        """
        context = "scene" if self.remembers else "none"
        if self.remembers and self.parts > 1:
            context = f"scene in {self.parts} parts"
        if history := self.reads().history:
            context = f"window of {history}"
        taps = {
            name: tap if of_one_frame(tap) else replace(tap, context=context)
            for name, tap in self.taps().items()
        }
        return {**taps, PIXELS.name: PIXELS}

    def targets(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        """Return what is stored of a batch by name: taps as `__call__` gives them, and data.

        Data are `lidar.pixels`, padded, with its count, and the `image_transform` of the batch. The
        teacher is not asked where they alone are wanted.

        Raises:
            DataError: more points than `lidar.pixels` has room for.
        """
        taps = [name for name in names if name not in (PIXELS.name, VIEW_TRANSFORM.name)]
        found = self(batch, taps) if taps or self.remembers else {}
        if PIXELS.name in names:
            assert batch.pixels is not None, "the loader gave no pixels"
            found[PIXELS.name], found[f"{PIXELS.name}.count"] = pad(batch.pixels, batch.tokens)
        if VIEW_TRANSFORM.name in names:
            assert batch.image_aug_BV33 is not None, "the loader gave no images"
            found[VIEW_TRANSFORM.name] = batch.image_aug_BV33
        return found

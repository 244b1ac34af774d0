"""In which order a student is shown frames: drawn one by one, or scene after scene."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bevcask.data.index.frames import Frames
from bevcask.data.lanes import SceneSteps
from bevcask.data.samples import Key
from bevcask.data.sampling import Epochs, OfRank, StepSampler, balanced_counts
from bevcask.detectors.base import Inputs
from bevcask.detectors.memory import Policy
from bevcask.errors import ConfigError
from bevcask.ranks import num_ranks, rank
from bevcask.trainer_config import TrainingLoaderConfig
from bevcask.training.teaching import Teaching
from bevcask.verbs import DistillConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What a run shows when.

    Attributes:
        memory: how the student's memory goes on.
        inputs: what is loaded of each frame: no history where memory is carried.
        draws: of an epoch.
        batches: first batch, the one after the last -> keys of this rank's rows of each; batch t of
            all ranks together depends on (seed, t) alone.
    """

    memory: Policy
    inputs: Inputs
    draws: int
    batches: Callable[[int, int], Collection[list[Key]]]


def training_order(config: DistillConfig, teaching: Teaching, inputs: Inputs) -> Order:
    """Return the order that `loader` asks for, or that the student needs where it does not say.

    Args:
        config: `loader` and `seed`.
        teaching: the frames that are trained on.
        inputs: what the student wants loaded.

    Raises:
        ConfigError: scenes for a student that does not remember, or together with keys that draw
            frames one by one; windows of shards without a cache.
        DataError: nothing to balance.
    """
    loader = config.loader
    if order_of(loader, inputs) == "scenes":
        return _by_scene(loader, teaching.frames, inputs, config.seed)
    if loader.scene_parts > 1:
        raise ConfigError(
            f"loader.scene_parts={loader.scene_parts} cuts the scenes of loader.order=scenes, and "
            "this run draws frames one by one. Say loader.order=scenes, or leave it out."
        )
    epochs = _epochs(loader, teaching, config.seed)

    def batches(first: int, end: int) -> OfRank:
        steps = StepSampler(epochs, _width(loader), start_step=first, max_steps=end)
        return OfRank(steps, rank(), loader.batch_size)

    return Order("window" if inputs.memory else "none", inputs, len(epochs), batches)


def order_of(loader: TrainingLoaderConfig, inputs: Inputs) -> Literal["frames", "scenes"]:
    """Return `frames` or `scenes`: what is asked for, else what the student says of itself.

    One that remembers and names how much history a window has is shown windows.
    """
    if loader.order is not None:
        return loader.order
    return "scenes" if inputs.memory and not inputs.history else "frames"


def _by_scene(loader: TrainingLoaderConfig, frames: Frames, inputs: Inputs, seed: int) -> Order:
    if not inputs.memory:
        raise ConfigError(
            "loader.order=scenes shows scene after scene so that memory can be carried from frame "
            "to frame, and this student does not remember. Use loader.order=frames, which draws "
            "its frames at random."
        )
    drawn = {"loader.sampler": loader.sampler, "loader.shuffle": loader.shuffle}
    for key, usual in (("loader.sampler", "uniform"), ("loader.shuffle", "full")):
        if drawn[key] != usual:
            raise ConfigError(
                f"{key}={drawn[key]} draws frames one by one, and this run shows whole scenes "
                f"(loader.order=scenes). Use {key}={usual}, or loader.order=frames."
            )

    def batches(first: int, end: int) -> OfRank:
        width, parts = _width(loader), loader.scene_parts
        steps = SceneSteps(frames.scene_ranges, seed, width, parts, first, end)
        return OfRank(steps, rank(), loader.batch_size)

    return Order("scene", inputs.frame_by_frame(), len(frames), batches)


def _width(loader: TrainingLoaderConfig) -> int:
    """Return the samples of a batch of all ranks together."""
    return loader.batch_size * num_ranks()


def _epochs(loader: TrainingLoaderConfig, teaching: Teaching, seed: int) -> Epochs:
    """Return which frame is drawn when, as `loader.sampler` and `loader.shuffle` say."""
    frames, shards = teaching.frames, teaching.shards
    counts = np.ones(len(frames), np.int64)
    if loader.sampler == "cbgs":
        counts = balanced_counts(frames, seed)
        _log.info(
            "loader.sampler=cbgs: an epoch is %d draws from %d frames, %d of them never drawn",
            counts.sum(),
            len(frames),
            (counts == 0).sum(),
        )
    if loader.shuffle == "full":
        return Epochs(counts, seed)
    if shards is None:
        raise ConfigError(
            "loader.shuffle=window follows the shards of a cache, and this run reads none. Use "
            "loader.shuffle=full."
        )
    return Epochs(counts, seed, shards, loader.window)

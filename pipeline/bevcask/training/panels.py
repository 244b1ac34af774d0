"""Pictures of a training for TensorBoard: one validation frame from above, student and teacher."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.data.index.frames import Frames
from bevcask.detectors.base import Batch, Detections, Output
from bevcask.errors import BevcaskError
from bevcask.evaluation.detect import on_host
from bevcask.targets.spec import TapInfo

TAG = "val/bev"
_DRAWN = ("dense_bev", "heatmap")
_log = logging.getLogger(__name__)


class Pictures:
    """Draws the first validation frame: what the student says of it, and its teacher.

    What a validation computes anyway is drawn: no forward pass is added, no random number drawn.

    Args:
        every: validations between pictures.
        frames: that are validated.
        taps: of the student.
        cache: URLs of what it learns from; its teacher is drawn where it holds the frame.
    """

    def __init__(
        self, every: int, frames: Frames, taps: Mapping[str, TapInfo], cache: str | None
    ) -> None:
        self._every = every
        self._frames = frames
        self._taps = {name: tap for name, tap in taps.items() if tap.kind in _DRAWN}
        self._cache = cache
        self._token = frames.tokens[0]
        self._said: dict[str, npt.NDArray[np.float32]] = {}
        self._boxes: Detections | None = None

    def due(self, number: int) -> bool:
        """Return whether a validation is drawn, which is this one of all, from 1."""
        return number % self._every == 0

    def watch(self, batch: Batch, output: Output, boxes: Sequence[Detections]) -> None:
        """Keep what is said of the frame that is drawn; see `evaluation.detect.Watch`."""
        if self._token not in batch.tokens:
            return
        row = batch.tokens.index(self._token)
        self._boxes = on_host(boxes[row])
        self._said = {
            name: output.taps[name][row].float().cpu().numpy()
            for name in self._taps.keys() & output.taps.keys()
        }

    def log(self, loggers: Sequence[Any], step: int) -> None:
        """Draw it for every logger that takes images; what cannot be drawn ends no training."""
        writers = [own.experiment for own in loggers if hasattr(own.experiment, "add_image")]
        if self._boxes is None or not writers:
            return
        try:
            image_HW3 = self._draw(self._boxes, step)
        except (BevcaskError, OSError) as error:
            _log.warning("no picture of step %d: %s trainer.pictures=0 asks none.", step, error)
            return
        for writer in writers:
            writer.add_image(TAG, image_HW3, step, dataformats="HWC")

    def _draw(self, boxes: Detections, step: int) -> npt.NDArray[np.uint8]:
        from bevcask.viz.learning import Said, compose_learning
        from bevcask.viz.pictures import drawn_from_above

        said = Said(f"step {step}", self._taps, self._said, boxes)
        return drawn_from_above(compose_learning(self._frames, self._token, said, self._cache))

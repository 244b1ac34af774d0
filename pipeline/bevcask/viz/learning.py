"""A student in training beside its teacher, from above: what `pictures.drawn_from_above` draws."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bevcask.cache.union import open_caches
from bevcask.data.index.frames import Frames
from bevcask.data.lidar import read_points
from bevcask.detectors.base import Detections
from bevcask.errors import BevcaskError
from bevcask.geometry import CLASSES, POINT_FIELDS
from bevcask.targets.spec import TapInfo, TargetSpec
from bevcask.viz.layers import BevMap, BoxLayer, Picture
from bevcask.viz.sample import MIN_SCORE, first_views, maps_from_above, teacher_boxes, true_boxes

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Said:
    """What a student says of one frame.

    Attributes:
        when: of its training, for the title.
        taps: those of `values`.
        values: (C, Y, X) float32 of each dense map and heatmap, canonical LIDAR_TOP frame.
        boxes: on the host, the same frame.
    """

    when: str
    taps: Mapping[str, TapInfo]
    values: Mapping[str, npt.NDArray[np.float32]]
    boxes: Detections


def compose_learning(frames: Frames, token: str, said: Said, caches: str | None) -> Picture:
    """Bring a frame, its student and its teacher together.

    Args:
        frames: with ground truth.
        token: one of them.
        said: of this frame.
        caches: URLs of what the student learns from; the teacher is left out where they do not hold
            the frame.

    Raises:
        DataError: the frame is damaged. Without its LiDAR points, none are drawn.
    """
    taught, boxes = _teacher(caches, token) if caches else ([], [])
    specs = {name: TargetSpec(tap, "float32") for name, tap in said.taps.items()}
    alone = "student alone: no cache of a teacher holds this frame"
    beside = "student beside teacher" if taught or boxes else alone
    return Picture(
        title=f"{said.when}   sample {token}",
        subtitle=f"{beside}   dataset {frames.version}, {len(frames)} frames are validated",
        cameras={},
        points_P5=_points(frames, token),
        maps=[*taught, *maps_from_above("student", specs, said.values)],
        layers=[true_boxes(frames, token), *boxes, _student(said.boxes)],
    )


def _teacher(caches: str, token: str) -> tuple[list[BevMap], list[BoxLayer]]:
    maps: list[BevMap] = []
    boxes: list[BoxLayer] = []
    try:
        for cache in open_caches(caches, allow_unsealed=True):
            if token in cache.layout.row_of:
                targets = cache.read_float(token)
                maps += maps_from_above("teacher", first_views(cache), targets)
                boxes += teacher_boxes(cache, targets)
    except BevcaskError as error:
        _log.info("the teacher is not drawn: %s", error)
    return maps, boxes


def _points(frames: Frames, token: str) -> npt.NDArray[np.float32]:
    try:
        return read_points(frames, token, 1)
    except BevcaskError as error:
        _log.info("no LiDAR points are drawn: %s", error)
        return np.zeros((0, len(POINT_FIELDS)), np.float32)


def _student(boxes: Detections) -> BoxLayer:
    names = [CLASSES[own] for own in boxes.classes_N.tolist()]
    return BoxLayer.student(boxes.boxes_N9.numpy(), boxes.scores_N.numpy(), names, MIN_SCORE)

"""Official nuScenes detection metrics of boxes in the LIDAR_TOP frame.

Matching, average precision, errors and filters are the unpatched devkit's; only the choice of
samples is ours, so that a part of a split is scored on exactly its own frames.
"""

import io
import json
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import (
    add_center_dist,
    filter_eval_boxes,
    load_gt_of_sample_tokens,
)
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionConfig
from nuscenes.eval.detection.evaluate import DetectionEval
from pyquaternion import Quaternion

from bevcask.config import DatasetConfig
from bevcask.data.index.checks import sound_boxes
from bevcask.data.index.frames import Frames
from bevcask.detectors.base import Detections, Inputs
from bevcask.errors import ConfigError, DataError, TargetMismatchError
from bevcask.geometry import CLASSES
from bevcask.paths import write_whole

_log = logging.getLogger(__name__)
Sense = Literal["camera", "lidar"]
SUBMISSION = "results_nusc.json"
MOVING_SPEED = 0.2  # m/s; the rule the public nuScenes baselines share
_MOVING = {
    "car": "vehicle.moving",
    "truck": "vehicle.moving",
    "construction_vehicle": "vehicle.moving",
    "bus": "vehicle.moving",
    "trailer": "vehicle.moving",
    "motorcycle": "cycle.with_rider",
    "bicycle": "cycle.with_rider",
    "pedestrian": "pedestrian.moving",
}
_STILL = {
    "car": "vehicle.parked",
    "truck": "vehicle.parked",
    "construction_vehicle": "vehicle.parked",
    "bus": "vehicle.stopped",
    "trailer": "vehicle.parked",
    "motorcycle": "cycle.without_rider",
    "bicycle": "cycle.without_rider",
    "pedestrian": "pedestrian.standing",
}
_ERRORS = {
    "ATE": "trans_err",
    "ASE": "scale_err",
    "AOE": "orient_err",
    "AVE": "vel_err",
    "AAE": "attr_err",
}


class _SelectionEval(DetectionEval):  # type: ignore[misc]
    """The devkit's evaluation on given samples instead of a named split."""

    def __init__(
        self, nusc: NuScenes, config: DetectionConfig, detections: EvalBoxes, tokens: Sequence[str]
    ) -> None:
        self.nusc = nusc
        self.cfg = config
        self.verbose = False
        self.pred_boxes = self._prepare(detections)
        self.gt_boxes = self._prepare(load_gt_of_sample_tokens(nusc, list(tokens), DetectionBox))

    def _prepare(self, boxes: EvalBoxes) -> EvalBoxes:
        """Add distances and filter; the devkit's filter cannot take sets without any box."""
        boxes = add_center_dist(self.nusc, boxes)
        return filter_eval_boxes(self.nusc, boxes, self.cfg.class_range) if boxes.all else boxes


class Evaluation:
    """Scores detections on a dataset whose tables are loaded once."""

    def __init__(self, frames: Frames, total: int | None = None) -> None:
        """Load the tables.

        Args:
            frames: the frames that may be scored.
            total: frames of the whole split, for `coverage`; None: these frames are the split.

        Raises:
            ConfigError: the frames come from an info file, see `require_tables`.
            DataError: the dataset has no annotations to score against.
        """
        require_tables(frames.index.infos)
        if not frames.has_labels:
            raise DataError(
                f"{frames.root / frames.version} has no annotations to score against. Choose a "
                "version and split with ground truth."
            )
        if not frames.index.counted:
            raise DataError(
                f"{frames.index.source}: no box has a counted LiDAR or radar point "
                "(num_lidar_pts, num_radar_pts in sample_annotation.json), and the official "
                "metrics drop boxes without any: there would be nothing to find. Count the points "
                "in each box first."
            )
        self._frames = frames
        self._total = len(frames) if total is None else total
        self._config = config_factory("detection_cvpr_2019")
        with _devkit_talk_logged():
            self._nusc = NuScenes(frames.version, str(frames.root), verbose=False)
        _complete(self._nusc)

    def score(
        self, detections: Mapping[str, Detections], folder: Path, uses: Collection[Sense] = ()
    ) -> dict[str, Any]:
        """Score exactly the frames that `detections` names.

        Args:
            detections: boxes by sample token, canonical LIDAR_TOP frame, at most 500 a sample.
            uses: what they were found with, for the submission.
            folder: receives `results_nusc.json` (a nuScenes submission) and
                `metrics_summary.json` (the devkit's own summary).

        Returns:
            mAP, NDS, mATE, mASE, mAOE, mAVE, mAAE, `per_class` (AP, the five errors, number of
            boxes searched for; None where the devkit defines no error), `coverage`, and
            `absent_classes`: nothing to be found of them, and an AP of 0 in the means.

        Raises:
            DataError: a token is not among the frames, or there are no detections to score.
            TargetMismatchError: boxes are not finite, or too many.
        """
        unknown = [token for token in detections if token not in self._frames]
        if unknown or not detections:
            raise DataError(
                f"cannot score {len(detections)} frames of {self._frames.version}: "
                + (f"{len(unknown)} are not selected, first {unknown[0]}. " if unknown else "")
                + "Give boxes for at least one of the selected frames."
            )
        boxes = submit(detections, self._frames, folder, uses)
        with _devkit_talk_logged():
            evaluation = _SelectionEval(self._nusc, self._config, boxes, boxes.sample_tokens)
            metrics, _ = evaluation.evaluate()
        summary = metrics.serialize()
        (folder / "metrics_summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        return {
            **_summarise(summary, evaluation.gt_boxes),
            "coverage": coverage(len(detections), self._total),
        }


def coverage(found: int, total: int) -> str:
    """Say how much of a split has boxes.

    >>> coverage(8, 24)
    'partial: 8 of 24 frames'
    """
    return f"{'partial: ' if found < total else ''}{found} of {total} frames"


def _complete(nusc: NuScenes) -> None:
    """Make the tables what the devkit scores: counts where a table has none, no unsound boxes."""
    records = nusc.sample_annotation
    for record in records:
        record.setdefault("num_lidar_pts", 0)
        record.setdefault("num_radar_pts", 0)
        record.setdefault("attribute_tokens", [])
    places = np.array([[*record["translation"], *record["rotation"]] for record in records])
    sound = sound_boxes(places, np.array([record["size"] for record in records]))
    unsound = {record["token"] for record, good in zip(records, sound, strict=True) if not good}
    for sample in nusc.sample if unsound else ():
        sample["anns"] = [token for token in sample["anns"] if token not in unsound]


def require_tables(infos: str | Path | None) -> None:
    """Refuse to score against an info file.

    Raises:
        ConfigError: what the devkit scores against is not in it.
    """
    if infos is not None:
        raise ConfigError(
            f"dataset.infos={infos}: an info file cannot be scored against. It lacks what the "
            "official metrics read of the raw tables: attributes, visibility and boxes in the "
            "global frame. Unpack the metadata archive (v1.0-trainval_meta) into dataset.root and "
            "leave dataset.infos empty (dataset.infos=)."
        )


@contextmanager
def _devkit_talk_logged() -> Iterator[None]:
    """Send what the devkit prints, bars included, to the log instead of the terminal."""
    talk = io.StringIO()
    with redirect_stdout(talk), redirect_stderr(talk):
        yield
    _log.debug("%s", talk.getvalue())


def score(
    detections: Mapping[str, Detections], frames: Frames, folder: Path, total: int | None = None
) -> dict[str, Any]:
    """Score once; see `Evaluation`."""
    return Evaluation(frames, total).score(detections, folder)


def split_size(dataset: DatasetConfig) -> int:
    """Return how many frames the split has before `scenes` and `limit` narrow it."""
    return len(Frames.select(dataset.model_copy(update={"scenes": None, "limit": None})))


def to_global(
    token: str, detections: Detections, lidar_to_global: npt.NDArray[np.float64]
) -> list[DetectionBox]:
    """Turn boxes of one sample into the devkit's global boxes.

    Args:
        token: sample token.
        detections: canonical LIDAR_TOP frame.
        lidar_to_global: 4x4.

    Raises:
        TargetMismatchError: a box or score is not finite, or a size is not positive.
    """
    boxes_N9 = detections.boxes_N9.detach().cpu().double().numpy()
    scores = detections.scores_N.detach().cpu().tolist()
    classes = detections.classes_N.detach().cpu().tolist()
    bad = ~np.isfinite(boxes_N9).all(axis=1) | (boxes_N9[:, 3:6] <= 0).any(axis=1)
    bad |= ~np.isfinite(np.asarray(scores, dtype=np.float64))
    if bad.any():
        raise TargetMismatchError(
            f"sample {token}: {int(bad.sum())} of {len(bad)} boxes are not finite or have no size; "
            f"first {boxes_N9[bad][0].tolist()}. The weights probably diverged in training."
        )
    rotation = lidar_to_global[:3, :3]
    frame = Quaternion(matrix=rotation, rtol=1e-4, atol=1e-5)
    centres = boxes_N9[:, :3] @ rotation.T + lidar_to_global[:3, 3]
    flat = np.concatenate([boxes_N9[:, 7:9], np.zeros((len(boxes_N9), 1))], axis=1)
    velocities = flat @ rotation.T
    return [
        DetectionBox(
            sample_token=token,
            translation=tuple(centres[i].tolist()),
            size=tuple(box[[4, 3, 5]].tolist()),
            rotation=tuple((frame * Quaternion(axis=(0, 0, 1), radians=box[6])).elements.tolist()),
            velocity=tuple(velocities[i, :2].tolist()),
            detection_name=CLASSES[classes[i]],
            detection_score=float(scores[i]),
            attribute_name=attribute(CLASSES[classes[i]], math.hypot(box[7], box[8])),
        )
        for i, box in enumerate(boxes_N9)
    ]


def attribute(name: str, speed: float) -> str:
    """Guess a box's attribute from its class and speed (m/s); barriers and cones have none.

    >>> attribute("car", 3.0), attribute("bicycle", 0.0), attribute("barrier", 0.0)
    ('vehicle.moving', 'cycle.without_rider', '')
    """
    return (_MOVING if speed > MOVING_SPEED else _STILL).get(name, "")


def senses(inputs: Inputs) -> list[Sense]:
    """Return what a detector looks with."""
    found: list[Sense] = []
    if inputs.image_size_HW is not None:
        found.append("camera")
    if inputs.num_sweeps:
        found.append("lidar")
    return found


def submit(
    detections: Mapping[str, Detections], frames: Frames, folder: Path, uses: Collection[Sense]
) -> EvalBoxes:
    """Write `results_nusc.json`, a nuScenes submission, in the order of the frames.

    Args:
        detections: boxes by sample token, canonical LIDAR_TOP frame, at most 500 a sample.
        frames: hold these tokens.
        folder: receives the file; made where missing.
        uses: what the boxes were found with.

    Returns:
        The boxes in the global frame.

    Raises:
        TargetMismatchError: boxes are not finite, or too many.
    """
    boxes = EvalBoxes()
    for token, pose in zip(frames.tokens, frames.lidar_to_global, strict=True):
        if token in detections:
            boxes.add_boxes(token, to_global(token, detections[token], pose))
    known = ("camera", "lidar", "radar", "map", "external")
    content = {
        "meta": {f"use_{sense}": sense in uses for sense in known},
        "results": boxes.serialize(),
    }
    write_whole(folder / SUBMISSION, json.dumps(content).encode())
    return boxes


def _summarise(summary: Mapping[str, Any], truth: EvalBoxes) -> dict[str, Any]:
    found = [box.detection_name for box in truth.all]
    per_class = {
        name: {
            "AP": float(summary["mean_dist_aps"][name]),
            **{
                short: _number(summary["label_tp_errors"][name][long])
                for short, long in _ERRORS.items()
            },
            "boxes": found.count(name),
        }
        for name in CLASSES
    }
    return {
        "mAP": summary["mean_ap"],
        "NDS": summary["nd_score"],
        **{f"m{short}": summary["tp_errors"][long] for short, long in _ERRORS.items()},
        "per_class": per_class,
        "absent_classes": [name for name in CLASSES if name not in found],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)

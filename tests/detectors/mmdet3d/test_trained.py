"""A trained mmdet3d model: its cache scores what its own predictions score with the devkit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from bevcask.cli import app
from bevcask.config import DatasetConfig, TeacherConfig
from bevcask.data.index.frames import Frames
from bevcask.geometry import CLASSES
from bevcask.groups import load_group
from bevcask.teachers.native import NativeTeacher
from contracts.mmdet3d_reference import lidar_info, theirs

pytestmark = pytest.mark.mmdet3d

TINY = "mmdet3d_centerpoint_tiny"


def call(*words: object) -> dict[str, Any]:
    answer = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert answer.exit_code == 0, answer.stderr or answer.exception
    result: dict[str, Any] = json.loads(answer.stdout)
    return result


def submission(teacher: NativeTeacher, frames: Frames) -> dict[str, list[dict[str, Any]]]:
    """Predict and convert with mmdet3d's own code: model, box types, nuScenes metric."""
    from mmdet3d.evaluation.metrics.nuscenes_metric import (
        lidar_nusc_box_to_global,
        output_to_nusc_box,
    )
    from nuscenes.eval.detection.config import config_factory

    section = load_group("detector", TINY)
    network = teacher.detector.network
    results: dict[str, list[dict[str, Any]]] = {}
    for token in frames.tokens:
        info = lidar_info(frames, token, teacher.inputs().num_sweeps)
        packed = theirs(section["config"], info, section["options"])
        with torch.inference_mode():
            data = network.data_preprocessor(
                {"inputs": {"points": [packed["inputs"]["points"]]},
                 "data_samples": [packed["data_samples"]]},
                False,
            )  # fmt: skip
            found = network.predict(data["inputs"], data["data_samples"])[0].pred_instances_3d
        boxes, _ = output_to_nusc_box(
            {"bboxes_3d": found.bboxes_3d, "scores_3d": found.scores_3d,
             "labels_3d": found.labels_3d.long()}
        )  # fmt: skip
        pose = frames.lidar_to_global[list(frames.tokens).index(token)]
        info = {"lidar_points": {"lidar2ego": np.eye(4)}, "ego2global": pose}
        # with the ego frame put into the LiDAR, their range filter is off by the mounting: a metre
        wide = config_factory("detection_cvpr_2019")
        wide.class_range = dict.fromkeys(wide.class_range, 1000.0)
        results[token] = [
            {
                "sample_token": token,
                "translation": box.center.tolist(),
                "size": box.wlh.tolist(),
                "rotation": box.orientation.elements.tolist(),
                "velocity": box.velocity[:2].tolist(),
                "detection_name": CLASSES[box.label],
                "detection_score": float(box.score),
                "attribute_name": "",
            }
            for box in lidar_nusc_box_to_global(info, boxes, list(CLASSES), wide)
        ]
    return results


def devkit_map(frames: Frames, results: dict[str, list[dict[str, Any]]]) -> float:
    """Score a submission with the devkit's own evaluation of these samples."""
    from nuscenes import NuScenes
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.loaders import (
        add_center_dist,
        filter_eval_boxes,
        load_gt_of_sample_tokens,
    )
    from nuscenes.eval.detection.config import config_factory
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.eval.detection.evaluate import DetectionEval

    evaluation = DetectionEval.__new__(DetectionEval)
    evaluation.nusc = NuScenes(frames.version, str(frames.root), verbose=False)
    evaluation.cfg = config_factory("detection_cvpr_2019")
    evaluation.verbose = False
    truth = load_gt_of_sample_tokens(evaluation.nusc, list(results), DetectionBox)
    said = EvalBoxes.deserialize(results, DetectionBox)
    evaluation.gt_boxes, evaluation.pred_boxes = (
        filter_eval_boxes(
            evaluation.nusc, add_center_dist(evaluation.nusc, boxes), evaluation.cfg.class_range
        )
        for boxes in (truth, said)
    )
    metrics, _ = evaluation.evaluate()
    return float(metrics.mean_ap)


def test_map_of_the_cache_is_that_of_its_own_predictions(tiny_world: Path, tmp_path: Path) -> None:
    url = tmp_path / "trained.zarr"
    data = ["dataset=synthetic", f"dataset.root={tiny_world}", "dataset.split=all"]
    call(
        "teacher-extract", url, f"teacher={TINY}", f"teacher.checkpoint=catalog:{TINY}",
        "loader.num_workers=0", "loader.batch_size=2", "method=none", *data,
    )  # fmt: skip
    cached = call("evaluate", url, f"run={tmp_path / 'scores'}")
    section = load_group("teacher", TINY) | {"checkpoint": f"catalog:{TINY}"}
    teacher = NativeTeacher(TeacherConfig.model_validate(section), seed=0)
    teacher.load("cpu")
    frames = Frames.select(
        DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="all")
    )
    own = devkit_map(frames, submission(teacher, frames))
    assert own > 0.1
    assert cached["mAP"] == pytest.approx(own, abs=1e-6)

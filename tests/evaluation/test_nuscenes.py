"""Scores equal the devkit's own, on whole splits, parts of them and custom splits."""

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval

from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.detectors.base import Detections
from bevcask.errors import DataError, TargetMismatchError
from bevcask.evaluation.nuscenes import Evaluation, attribute, score, split_size, to_global
from bevcask.geometry import CLASSES, pose_matrix


def truth(frames: Frames) -> dict[str, Detections]:
    """Ground truth as detections, without the boxes no sensor saw: the devkit drops them too."""
    found = {}
    for token in frames.tokens:
        boxes, classes, _ = frames.labels(token)
        seen = frames.seen(token)
        found[token] = Detections(
            torch.from_numpy(boxes[seen]),
            torch.full((int(seen.sum()),), 0.9),
            torch.from_numpy(classes[seen]),
        )
    return found


def noisy(frames: Frames, seed: int) -> dict[str, Detections]:
    """Ground truth moved, scaled, turned, with some missing, some wrong, at random scores."""
    random = np.random.default_rng(seed)
    found = {}
    for token, exact in truth(frames).items():
        boxes = exact.boxes_N9.numpy().copy()
        boxes[:, :2] += random.normal(0, 0.8, (len(boxes), 2))
        boxes[:, 3:6] *= random.uniform(0.7, 1.4, (len(boxes), 3))
        boxes[:, 6] += random.normal(0, 0.5, len(boxes))
        boxes[:, 7:] += random.normal(0, 0.5, (len(boxes), 2))
        classes = exact.classes_N.numpy().copy()
        wrong = random.random(len(boxes)) < 0.2
        classes[wrong] = random.integers(0, 10, wrong.sum())
        kept = random.random(len(boxes)) < 0.8
        scores = random.random(len(boxes)).astype(np.float32)
        found[token] = Detections(
            *(torch.from_numpy(part[kept]) for part in (boxes, scores, classes))
        )
    return found


def official(frames: Frames, split: str, folder: Path) -> dict[str, Any]:
    with redirect_stdout(sys.stderr):
        tables = NuScenes(frames.version, str(frames.root), verbose=False)
        evaluation = DetectionEval(
            tables,
            config_factory("detection_cvpr_2019"),
            str(folder / "results_nusc.json"),
            split,
            str(folder / "official"),
            verbose=False,
        )
        answer: dict[str, Any] = evaluation.main(render_curves=False)
    return answer


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["mAP"] == pytest.approx(theirs["mean_ap"], abs=1e-9)
    assert ours["NDS"] == pytest.approx(theirs["nd_score"], abs=1e-9)
    for short, long in (("mATE", "trans_err"), ("mAVE", "vel_err"), ("mAAE", "attr_err")):
        assert ours[short] == pytest.approx(theirs["tp_errors"][long], abs=1e-9)
    for name in CLASSES:
        assert ours["per_class"][name]["AP"] == pytest.approx(
            theirs["mean_dist_aps"][name], abs=1e-9
        )


@pytest.mark.nuscenes
def test_equals_the_official_evaluation_on_a_devkit_split(
    nuscenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = Frames.select(
        DatasetConfig(root=str(nuscenes_root), version="v1.0-mini", split="mini_val")
    )
    ours = score(noisy(frames, seed=1), frames, tmp_path)
    assert capsys.readouterr().out == ""
    assert 0.02 < ours["mAP"] < 0.9
    assert ours["coverage"] == f"{len(frames)} of {len(frames)} frames"
    assert_equal(ours, official(frames, "mini_val", tmp_path))


@pytest.mark.nuscenes
def test_part_of_a_split_searches_only_its_own_boxes(nuscenes_root: Path, tmp_path: Path) -> None:
    dataset = DatasetConfig(root=str(nuscenes_root), version="v1.0-mini", split="mini_val", limit=8)
    frames = Frames.select(dataset)
    found = score(truth(frames), frames, tmp_path, split_size(dataset))
    assert found["coverage"] == "partial: 8 of 24 frames"
    present = [row["AP"] for row in found["per_class"].values() if row["boxes"]]
    assert present
    assert min(present) == pytest.approx(1.0, abs=1e-6)
    per_class = found["per_class"]
    assert all(per_class[name]["AP"] == 0 for name in CLASSES if not per_class[name]["boxes"])


def test_equals_the_official_evaluation_on_a_custom_split(tiny_world: Path, tmp_path: Path) -> None:
    frames = Frames.select(
        DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="synthetic_val")
    )
    ours = score(noisy(frames, seed=2), frames, tmp_path)
    assert_equal(ours, official(frames, "synthetic_val", tmp_path))


def test_ground_truth_scores_one(tiny_world: Path, tmp_path: Path) -> None:
    frames = Frames.select(
        DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="all")
    )
    found = score(truth(frames), frames, tmp_path)
    present = {name: row for name, row in found["per_class"].items() if row["boxes"]}
    assert len(present) >= 5
    for row in present.values():
        assert row["AP"] == pytest.approx(1.0, abs=1e-6)
        assert row["ATE"] < 1e-4
        assert row["ASE"] < 1e-4
        assert row["AOE"] is None or row["AOE"] < 0.02
        assert row["AVE"] is None or row["AVE"] < 0.05
    assert json.dumps(found)


def test_no_boxes_at_all_score_zero(tiny_world: Path, tmp_path: Path) -> None:
    frames = Frames.select(
        DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="synthetic_val")
    )
    nothing = Detections(torch.zeros(0, 9), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    found = Evaluation(frames).score(dict.fromkeys(frames.tokens, nothing), tmp_path)
    assert found["mAP"] == 0
    assert found["NDS"] == 0


def test_frames_that_are_not_selected_are_refused(tiny_world: Path, tmp_path: Path) -> None:
    frames = Frames.select(
        DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="synthetic_val")
    )
    some = truth(frames)
    with pytest.raises(DataError, match="1 are not selected, first abc"):
        score({**some, "abc": some[frames.tokens[0]]}, frames, tmp_path)
    with pytest.raises(DataError, match="cannot score 0 frames"):
        score({}, frames, tmp_path)


def one_box(box: list[float], label: str = "car") -> Detections:
    return Detections(
        torch.tensor([box]), torch.tensor([0.5]), torch.tensor([CLASSES.index(label)])
    )


def test_boxes_move_to_the_global_frame() -> None:
    quarter_turn = pose_matrix([100.0, 200.0, 1.0], [np.cos(np.pi / 4), 0, 0, np.sin(np.pi / 4)])
    detections = one_box([10.0, 0.0, 0.5, 4.0, 2.0, 1.5, 0.0, 3.0, 0.0], "bicycle")
    box = to_global("t", detections, quarter_turn)[0]
    assert box.translation == pytest.approx((100.0, 210.0, 1.5))
    assert box.size == pytest.approx((2.0, 4.0, 1.5))  # the devkit's order: width, length, height
    assert box.velocity == pytest.approx((0.0, 3.0))
    assert box.rotation == pytest.approx((np.cos(np.pi / 4), 0, 0, np.sin(np.pi / 4)))
    assert (box.detection_name, box.attribute_name) == ("bicycle", "cycle.with_rider")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_boxes_that_are_not_finite_are_refused(value: float) -> None:
    detections = one_box([0.0, 0.0, value, 4.0, 2.0, 1.5, 0.0, 0.0, 0.0])
    with pytest.raises(TargetMismatchError, match="sample t: 1 of 1 boxes are not finite"):
        to_global("t", detections, np.eye(4))


@pytest.mark.parametrize(
    ("name", "speed", "expected"),
    [
        ("car", 0.21, "vehicle.moving"),
        ("car", 0.19, "vehicle.parked"),
        ("bus", 0.0, "vehicle.stopped"),
        ("pedestrian", 0.0, "pedestrian.standing"),
        ("motorcycle", 1.0, "cycle.with_rider"),
        ("traffic_cone", 1.0, ""),
    ],
)
def test_attribute_follows_speed(name: str, speed: float, expected: str) -> None:
    assert attribute(name, speed) == expected


def own_tables(world: Path, root: Path, change: Callable[[dict[str, Any]], object]) -> Frames:
    """A copy of a world in which every annotation was changed."""
    shutil.copytree(world / "v1.0-synthetic", root / "v1.0-synthetic")
    for name in ("samples", "sweeps", "maps"):
        (root / name).symlink_to(world / name)
    path = root / "v1.0-synthetic" / "sample_annotation.json"
    records = json.loads(path.read_text())
    for record in records:
        change(record)
    path.write_text(json.dumps(records))
    return Frames.select(DatasetConfig(root=str(root), version="v1.0-synthetic", split="all"))


def test_boxes_that_nobody_counted_points_in_cannot_be_scored(
    tiny_world: Path, tmp_path: Path
) -> None:
    frames = own_tables(tiny_world, tmp_path, lambda r: r.update(num_lidar_pts=0, num_radar_pts=0))
    with pytest.raises(DataError, match=r"no box has a counted LiDAR or radar point"):
        Evaluation(frames)


def test_tables_of_ones_own_are_scored_without_boxes_that_are_none(
    tiny_world: Path, tmp_path: Path
) -> None:
    broken: list[str] = []

    def change(record: dict[str, Any]) -> None:
        del record["num_radar_pts"], record["attribute_tokens"]
        if not broken:
            record["size"] = [0, 0, 0]
            broken.append(record["token"])

    frames = own_tables(tiny_world, tmp_path / "world", change)
    result = score(truth(frames), frames, tmp_path / "out")
    assert result["mAP"] == pytest.approx(1.0, abs=0.12)  # what is out of range is no part of it
    assert sum(row["boxes"] for row in result["per_class"].values()) > 0

"""The synthetic dataset as the unpatched nuScenes devkit sees it."""

import filecmp
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box, view_points
from PIL import Image
from pyquaternion import Quaternion

from bevcask.errors import ConfigError
from bevcask.geometry import CLASSES
from bevcask.synthetic import synthesize
from bevcask.synthetic.dataset import prepare_folder
from bevcask.synthetic.keyframe import keyframe_time, load_world, write_keyframe
from bevcask.verbs import SynthesizeConfig

# the same as the `tiny_world` fixture
TINY = {
    "seed": 7,
    "num_scenes": 2,
    "num_keyframes": 3,
    "val_scenes": 1,
    "image_width": 200,
    "image_height": 112,
}


@pytest.fixture(scope="module")
def nusc(tiny_world: Path) -> NuScenes:
    return NuScenes("v1.0-synthetic", str(tiny_world), verbose=False)


def test_every_reference_in_the_tables_resolves(nusc: NuScenes) -> None:
    targets = {name.removesuffix("_token"): name for name in _reference_fields(nusc)}
    assert {"sample", "instance", "ego_pose", "scene", "log"} <= set(targets)
    for table in nusc.table_names:
        tokens = [record["token"] for record in getattr(nusc, table)]
        assert len(set(tokens)) == len(tokens)
        for record in getattr(nusc, table):
            for other, key in targets.items():
                if key in record:
                    nusc.get(other, record[key])
    for annotation in nusc.sample_annotation:
        for token in annotation["attribute_tokens"]:
            nusc.get("attribute", token)


def _reference_fields(nusc: NuScenes) -> set[str]:
    records = [getattr(nusc, table)[0] for table in nusc.table_names]
    keys = {key for record in records for key in record if key.endswith("_token")}
    return {key for key in keys if key.removesuffix("_token") in nusc.table_names}


@pytest.mark.parametrize("table", ["sample", "sample_data", "sample_annotation"])
def test_chains_run_forward_and_back(nusc: NuScenes, table: str) -> None:
    records = getattr(nusc, table)
    for record in records:
        if record["next"]:
            assert nusc.get(table, record["next"])["prev"] == record["token"]
        if record["prev"]:
            assert nusc.get(table, record["prev"])["next"] == record["token"]
    assert any(record["next"] for record in records)


def test_scenes_and_instances_know_their_first_last_and_count(nusc: NuScenes) -> None:
    for scene in nusc.scene:
        token, samples = scene["first_sample_token"], []
        while token:
            samples.append(token)
            token = nusc.get("sample", token)["next"]
        assert samples[-1] == scene["last_sample_token"]
        assert len(samples) == scene["nbr_samples"] == TINY["num_keyframes"]
    for instance in nusc.instance:
        token, count = instance["first_annotation_token"], 0
        assert nusc.get("sample_annotation", token)["prev"] == ""
        while token:
            last, count = token, count + 1
            token = nusc.get("sample_annotation", token)["next"]
        assert last == instance["last_annotation_token"]
        assert count == instance["nbr_annotations"]


def test_every_file_is_there_and_nothing_else(tiny_world: Path, nusc: NuScenes) -> None:
    named = {record["filename"] for record in nusc.sample_data}
    found = {
        str(path.relative_to(tiny_world))
        for folder in ("samples", "sweeps")
        for path in (tiny_world / folder).rglob("*.*")
    }
    assert named == found
    for record in nusc.sample_data:
        path = tiny_world / record["filename"]
        if record["fileformat"] == "jpg":
            with Image.open(path) as image:
                assert image.size == (record["width"], record["height"]) == (200, 112)
        else:
            points = np.fromfile(path, np.float32).reshape(-1, 5)
            assert 20_000 < len(points) <= 32 * 1080
            assert set(np.unique(points[:, 4])) == set(range(32))
            assert points[:, 3].min() >= 0
            assert points[:, 3].max() <= 255


def test_tokens_are_32_hex_digits(nusc: NuScenes) -> None:
    for table in set(nusc.table_names) - {"visibility"}:
        for record in getattr(nusc, table):
            assert len(bytes.fromhex(record["token"])) == 16


def test_all_ten_classes_have_the_attributes_the_evaluation_expects(nusc: NuScenes) -> None:
    allowed = {
        "vehicle": {"vehicle.moving", "vehicle.stopped", "vehicle.parked"},
        "cycle": {"cycle.with_rider", "cycle.without_rider"},
        "pedestrian": {"pedestrian.moving", "pedestrian.standing"},
        "object": {None},
    }
    kinds = dict.fromkeys(CLASSES, "vehicle") | {
        "bicycle": "cycle",
        "motorcycle": "cycle",
        "pedestrian": "pedestrian",
        "barrier": "object",
        "traffic_cone": "object",
    }
    seen = set()
    for annotation in nusc.sample_annotation:
        name = category_to_detection_name(annotation["category_name"])
        seen.add(name)
        assert _attribute(nusc, annotation) in allowed[kinds[name]]
    assert seen == set(CLASSES)


def _attribute(nusc: NuScenes, annotation: dict[str, Any]) -> str | None:
    names = [nusc.get("attribute", t)["name"] for t in annotation["attribute_tokens"]]
    return names[0] if names else None


def test_the_map_mask_has_the_ego_on_the_road(nusc: NuScenes) -> None:
    for scene in nusc.scene:
        mask = nusc.get("map", nusc.get("log", scene["log_token"])["map_token"])["mask"]
        sample = nusc.get("sample", scene["first_sample_token"])
        lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        x, y, _ = nusc.get("ego_pose", lidar["ego_pose_token"])["translation"]
        assert mask.is_on_mask(np.array([x]), np.array([y])).all()
        assert 0.05 < (mask.mask() > 0).mean() < 0.9


def test_point_counts_are_what_the_devkit_counts(nusc: NuScenes) -> None:
    total = 0
    for sample in nusc.sample:
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(path).points[:3]
        for box in boxes:
            expected = nusc.get("sample_annotation", box.token)["num_lidar_pts"]
            assert points_in_box(box, points).sum() == expected
            total += expected
    assert total > 1000


def test_truth_as_prediction_scores_full_marks(
    nusc: NuScenes, tiny_world: Path, tmp_path: Path
) -> None:
    results = {
        sample["token"]: [
            _detection(nusc, nusc.get("sample_annotation", token)) for token in sample["anns"]
        ]
        for sample in nusc.sample
    }
    results = {k: [box for box in v if box is not None] for k, v in results.items()}
    modalities = ("camera", "lidar", "radar", "map", "external")
    meta = {f"use_{name}": name == "camera" for name in modalities}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"meta": meta, "results": results}))
    config = config_factory("detection_cvpr_2019")
    evaluation = DetectionEval(
        nusc, config, str(path), "synthetic_val", str(tmp_path / "plots"), verbose=False
    )
    metrics, _ = evaluation.evaluate()
    assert len(evaluation.sample_tokens) == TINY["num_keyframes"]
    assert metrics.mean_ap == pytest.approx(1.0)
    assert metrics.nd_score == pytest.approx(1.0)


def _detection(nusc: NuScenes, annotation: dict[str, Any]) -> dict[str, Any] | None:
    if annotation["num_lidar_pts"] == 0:
        return None
    return {
        "sample_token": annotation["sample_token"],
        "translation": annotation["translation"],
        "size": annotation["size"],
        "rotation": annotation["rotation"],
        "velocity": nusc.box_velocity(annotation["token"])[:2].tolist(),
        "detection_name": category_to_detection_name(annotation["category_name"]),
        "detection_score": 0.5,
        "attribute_name": _attribute(nusc, annotation) or "",
    }


def test_same_seed_gives_the_same_bytes(tiny_world: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    (again / "synthetic.json").write_text('{"config": {"version": "v1.0-synthetic"}}')
    (again / "v1.0-synthetic").mkdir()
    (again / "v1.0-synthetic" / "stale.json").touch()  # an older dataset is replaced
    synthesize(SynthesizeConfig(out=str(again), **{**TINY, "workers": 2}))
    files = sorted(str(p.relative_to(tiny_world)) for p in tiny_world.rglob("*") if p.is_file())
    assert files == sorted(str(p.relative_to(again)) for p in again.rglob("*") if p.is_file())
    _, differing, unreadable = filecmp.cmpfiles(tiny_world, again, files, shallow=False)
    assert not differing
    assert not unreadable


def test_a_keyframe_can_be_made_on_its_own(tiny_world: Path, tmp_path: Path) -> None:
    config = SynthesizeConfig(out=str(tmp_path), **TINY)
    prepare_folder(config)
    write_keyframe(config, scene=1, index=2)
    files = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*__*")]
    assert len(files) == 6 + 1 + config.num_sweeps
    matching, _, _ = filecmp.cmpfiles(tiny_world, tmp_path, files, shallow=False)
    assert sorted(matching) == sorted(files)


def test_devkit_velocities_are_the_true_ones(nusc: NuScenes) -> None:
    moving = 0
    for scene, record in enumerate(nusc.scene):
        world = load_world(TINY["seed"], scene, TINY["num_keyframes"])
        middle = nusc.get("sample", nusc.get("sample", record["first_sample_token"])["next"])
        xy_N2, true_N2 = world.poses(keyframe_time(1))[0], world.velocities(keyframe_time(1))
        for token in middle["anns"]:
            annotation = nusc.get("sample_annotation", token)
            if not (annotation["prev"] and annotation["next"]):
                continue  # at the rim of the annotated range the devkit has one-sided differences
            n = np.linalg.norm(xy_N2 - annotation["translation"][:2], axis=1).argmin()
            np.testing.assert_allclose(nusc.box_velocity(token)[:2], true_N2[n], atol=0.15)
            moving += np.linalg.norm(true_N2[n]) > 1
    assert moving > 5


def test_static_points_of_all_sweeps_coincide_in_the_global_frame(nusc: NuScenes) -> None:
    checked = 0
    for annotation in nusc.sample_annotation:
        speed = np.linalg.norm(nusc.box_velocity(annotation["token"]))
        if annotation["num_lidar_pts"] < 50 or speed > 0.01 or annotation["prev"] == "":
            continue
        sample = nusc.get("sample", annotation["sample_token"])
        record = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        now = _points_in_global_box(nusc, record, annotation)
        for _ in range(2):
            record = nusc.get("sample_data", record["prev"])
            assert not record["is_key_frame"]
            before = _points_in_global_box(nusc, record, annotation)
            assert len(before) > 0.4 * len(now)
            checked += 1
    assert checked > 10


def _points_in_global_box(
    nusc: NuScenes, record: dict[str, Any], annotation: dict[str, Any]
) -> np.ndarray:
    cloud = LidarPointCloud.from_file(nusc.get_sample_data_path(record["token"]))
    for table in ("calibrated_sensor", "ego_pose"):
        pose = nusc.get(table, record[f"{table}_token"])
        cloud.rotate(Quaternion(pose["rotation"]).rotation_matrix)
        cloud.translate(np.array(pose["translation"]))
    box = nusc.get_box(annotation["token"])
    return cloud.points[:, points_in_box(box, cloud.points[:3])]


def test_boxes_project_into_the_images(nusc: NuScenes) -> None:
    inside = 0
    for sample in nusc.sample:
        for channel, token in sample["data"].items():
            if channel == "LIDAR_TOP":
                continue
            _, boxes, K = nusc.get_sample_data(token)
            for box in boxes:
                u, v, _ = view_points(box.center[:, None], K, normalize=True)[:, 0]
                inside += 0 <= u < 200 and 0 <= v < 112
    assert inside > 100


def test_a_foreign_folder_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"out=.*expected an empty.*Nothing was touched"):
        synthesize(SynthesizeConfig(out=str(tmp_path), **TINY))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_impossible_configurations_are_refused() -> None:
    with pytest.raises(ConfigError, match="val_scenes: expected at most num_scenes=1, got 2"):
        synthesize(SynthesizeConfig(out="x", num_scenes=1, val_scenes=2))


@pytest.mark.parametrize("version", ["v1.0-mini", "..", "", "samples", "a/b", "x" * 300])
def test_a_version_that_is_no_folder_of_its_own_is_refused(version: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="version: expected a name of its own"):
        synthesize(SynthesizeConfig(out=str(tmp_path / "w"), version=version))
    assert not (tmp_path / "w").exists()


def test_the_stage_reports_every_class_and_shows_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bevcask.stages.synthesize import run

    size = {"num_keyframes": 1, "num_sweeps": 0, "image_width": 64, "image_height": 36}
    summary = run(SynthesizeConfig(out=str(tmp_path), num_scenes=1, val_scenes=0, **size))
    assert set(summary["classes"]) == set(CLASSES)
    assert sum(c["count"] for c in summary["classes"].values()) == summary["annotations"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "synthesize" in captured.err

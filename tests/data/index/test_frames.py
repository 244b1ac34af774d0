import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import BoxVisibility, view_points

from bevcask.data.index.arrays import SENSORS, FrameIndex
from bevcask.data.index.frames import Frames
from bevcask.errors import ConfigError, DataError
from bevcask.geometry import CAMERAS, CLASSES

Pair = tuple[Frames, NuScenes]
Select = Callable[..., Frames]


def test_frames_are_sorted_by_scene_then_time(pair: Pair) -> None:
    frames, devkit = pair
    assert sorted(frames.tokens) == sorted(record["token"] for record in devkit.sample)
    order = list(zip(frames.scenes, frames.timestamps, strict=True))
    assert order == sorted(order)
    for token, scene, time in zip(frames.tokens, frames.scenes, frames.timestamps, strict=True):
        record = devkit.get("sample", token)
        assert devkit.get("scene", record["scene_token"])["name"] == scene
        assert abs(record["timestamp"] * 1e-6 - time) < 1e-6


def test_labels_are_the_devkits_boxes_in_the_lidar_frame(pair: Pair) -> None:
    frames, devkit = pair
    num_boxes = 0
    for token in frames.tokens[::5]:
        lidar = devkit.get("sample", token)["data"]["LIDAR_TOP"]
        to_lidar = np.linalg.inv(frames.lidar_to_global[frames.tokens.index(token)])
        boxes, classes, points = frames.labels(token)
        theirs = [
            box
            for box in devkit.get_sample_data(lidar)[1]
            if category_to_detection_name(box.name) is not None
        ]
        assert len(boxes) == len(theirs)
        num_boxes += len(boxes)
        for box, label, count, expected in zip(boxes, classes, points, theirs, strict=True):
            np.testing.assert_allclose(box[:3], expected.center, atol=1e-5)
            np.testing.assert_allclose(box[[4, 3, 5]], expected.wlh, rtol=1e-6)
            heading = expected.orientation.rotation_matrix[:2, 0]
            yaw = np.arctan2(heading[1], heading[0])
            assert abs((box[6] - yaw + np.pi) % (2 * np.pi) - np.pi) < 1e-5
            velocity = to_lidar[:3, :3] @ np.nan_to_num(devkit.box_velocity(expected.token))
            np.testing.assert_allclose(box[7:], velocity[:2], atol=1e-5)
            assert CLASSES[label] == category_to_detection_name(expected.name)
            assert count == devkit.get("sample_annotation", expected.token)["num_lidar_pts"]
    assert num_boxes > 10


def test_box_centres_project_where_the_devkit_puts_them(pair: Pair) -> None:
    frames, devkit = pair
    num_boxes = 0
    for token in frames.tokens[::5]:
        row = frames.row(token)
        labels = {}
        lidar = devkit.get("sample", token)["data"]["LIDAR_TOP"]
        kept = [
            box
            for box in devkit.get_sample_data(lidar)[1]
            if category_to_detection_name(box.name) is not None
        ]
        for box, values in zip(kept, frames.labels(token)[0], strict=True):
            labels[box.token] = values[:3]
        for camera, name in enumerate(CAMERAS):
            data = devkit.get("sample", token)["data"][name]
            path, boxes, intrinsics = devkit.get_sample_data(data, BoxVisibility.ANY)
            assert str(frames.root / frames.index["frame_image"][row, camera].decode()) == path
            calibration = frames.index["frame_calibration"][row, camera + 1]
            ours = frames.index["calibration_intrinsics"][calibration]
            np.testing.assert_array_equal(ours, intrinsics)
            camera_to_lidar = frames.index["frame_camera_to_lidar"][row, camera]
            for box in boxes:
                if box.token not in labels or box.center[2] < 1:
                    continue
                num_boxes += 1
                centre = np.linalg.inv(camera_to_lidar) @ [*labels[box.token], 1]
                pixel = ours @ centre[:3] / centre[2]
                expected = view_points(box.center[:, None], intrinsics, normalize=True)[:, 0]
                np.testing.assert_allclose(pixel, expected, atol=1e-3)
    assert num_boxes > 10


def test_every_scan_maps_to_the_global_frame_like_the_devkits(pair: Pair) -> None:
    frames, devkit = pair
    token = frames.tokens[-1]
    scans = frames.scans(token, 4)
    record = devkit.get("sample_data", devkit.get("sample", token)["data"]["LIDAR_TOP"])
    for scan in scans:
        assert frames.index["scan_path"][scan].decode() == record["filename"]
        assert frames.index["scan_time"][scan] == record["timestamp"]
        record = devkit.get("sample_data", record["prev"]) if record["prev"] else {}
    np.testing.assert_allclose(frames.sweep_to_lidar(token, scans[0]), np.eye(4), atol=1e-9)


def test_a_chain_of_keyframes_half_a_second_apart_holds_no_sweeps(
    nuscenes_root: Path, select: Select
) -> None:
    frames = select(nuscenes_root, "v1.0-mini")
    assert [len(frames.scans(token, 10)) for token in frames.tokens] == [1] * len(frames)
    assert frames.missing_sweeps(10) == 9 * len(frames)
    assert frames.missing_sweeps(1) == 0


def test_missing_sweeps_counts_scene_starts(tiny_frames: Frames) -> None:
    # two sweeps before each keyframe but the first of a scene
    assert [len(tiny_frames.scans(token, 3)) for token in tiny_frames.tokens] == [1, 3, 3, 1, 3, 3]
    assert tiny_frames.missing_sweeps(3) == 4


def test_a_split_of_the_devkit_and_a_custom_one(
    tiny_world: Path, nuscenes_root: Path, select: Select
) -> None:
    assert len(select(nuscenes_root, "v1.0-mini", split="mini_val")) == 24
    train = select(tiny_world, split="synthetic_train")
    val = select(tiny_world, split="synthetic_val")
    assert len(train) == len(val) == 3
    assert not set(train.scenes) & set(val.scenes)
    assert [*train.tokens, *val.tokens] == select(tiny_world).tokens


def test_scenes_and_limit_narrow_the_split(tiny_world: Path, select: Select) -> None:
    every = select(tiny_world)
    second = sorted(set(every.scenes))[1]
    assert select(tiny_world, scenes=[second]).tokens == every.tokens[3:]
    assert select(tiny_world, limit=4).tokens == every.tokens[:4]
    assert select(tiny_world, scenes=[second], limit=1).tokens == every.tokens[3:4]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"split": "synthetic_trian"}, "no such split. Did you mean 'synthetic_train'?"),
        ({"split": "mini_val"}, "selects none of the 2 scenes"),
        ({"scenes": ["scene-90000"]}, "scene-90000 is not in the dataset. Did you mean"),
        (
            {"split": "synthetic_train", "scenes": ["scene-9001"]},
            "scene-9001 is not in split synthetic_train; use dataset.split=all",
        ),
    ],
)
def test_a_selection_of_nothing_says_why(
    tiny_world: Path, keys: dict[str, object], message: str, select: Select
) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        select(tiny_world, **keys)


def test_a_custom_split_with_a_devkit_name_is_refused(world_copy: Path, select: Select) -> None:
    path = world_copy / "v1.0-synthetic" / "splits.json"
    path.write_text(json.dumps({"train": ["scene-9000"]}))
    with pytest.raises(DataError, match=r"splits.json: names a split 'train'.*another name"):
        select(world_copy, split="train")


def test_an_unknown_token_is_refused(tiny_world: Path, select: Select) -> None:
    frames = select(tiny_world, limit=2)
    with pytest.raises(DataError, match="not among the 2 frames selected"):
        frames.row("0" * 32)


def test_keep_and_pickle_hold_the_same_frames(tiny_frames: Frames) -> None:
    tokens = tiny_frames.tokens[1:4]
    kept = pickle.loads(pickle.dumps(tiny_frames.keep(reversed(tokens))))
    assert kept.tokens == tokens
    assert len(pickle.dumps(kept)) < 2000  # arrays stay in the map
    np.testing.assert_array_equal(kept.labels(tokens[0])[0], tiny_frames.labels(tokens[0])[0])


@pytest.mark.parametrize(
    ("table", "field", "leaf"),
    [
        ("calibrated_sensor", "camera_intrinsic", "calibration.CAM_BACK"),
        ("calibrated_sensor", "translation", "calibration.CAM_BACK"),
        ("ego_pose", "translation", "poses.CAM_BACK"),
        ("sample_annotation", "size", "annotations"),
        ("sample_annotation", "num_lidar_pts", "annotations"),
    ],
)
def test_identity_names_the_one_leaf_that_changed(
    world_copy: Path, table: str, field: str, leaf: str, select: Select
) -> None:
    before = select(world_copy).identity()
    path = world_copy / "v1.0-synthetic" / f"{table}.json"
    records = json.loads(path.read_text())
    record = records[_row_of_back_camera(world_copy, table)]
    if field == "camera_intrinsic":
        record[field][0][0] += 1e-3
    elif isinstance(record[field], list):
        record[field][0] += 1e-3
    else:
        record[field] += 1
    path.write_text(json.dumps(records))
    after = select(world_copy).identity()
    assert [name for name in _leaves(before) if _leaves(before)[name] != _leaves(after)[name]] == [
        leaf
    ]


def _row_of_back_camera(root: Path, table: str) -> int:
    def load(name: str) -> list[dict[str, str]]:
        loaded: list[dict[str, str]] = json.loads(
            (root / "v1.0-synthetic" / f"{name}.json").read_text()
        )
        return loaded

    if table == "sample_annotation":
        return next(i for i, a in enumerate(load(table)) if not a["prev"])
    sensor = next(s["token"] for s in load("sensor") if s["channel"] == "CAM_BACK")
    calibrations = [c["token"] for c in load("calibrated_sensor") if c["sensor_token"] == sensor]
    shot = next(d for d in load("sample_data") if d["calibrated_sensor_token"] in calibrations)
    token = shot["calibrated_sensor_token" if table == "calibrated_sensor" else "ego_pose_token"]
    return next(i for i, record in enumerate(load(table)) if record["token"] == token)


def _leaves(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    leaves: dict[str, object] = {}
    for name, value in tree.items():
        where = f"{prefix}{name}"
        leaves |= _leaves(value, f"{where}.") if isinstance(value, dict) else {where: value}
    return leaves


def test_identity_covers_only_what_is_read(tiny_frames: Frames) -> None:
    lidar_only = tiny_frames.identity(sensors=["LIDAR_TOP"], num_sweeps=3, annotations=False)
    assert set(_leaves(lidar_only)) == {"tokens", "calibration.LIDAR_TOP", "poses.LIDAR_TOP"}
    two = tiny_frames.identity(gaps=[1])
    whole = tiny_frames.identity()
    assert two["poses"]["CAM_FRONT"] != whole["poses"]["CAM_FRONT"]
    assert two["calibration"] == whole["calibration"]
    assert set(whole["poses"]) == set(SENSORS)
    assert whole["poses"]["LIDAR_TOP"] != lidar_only["poses"]["LIDAR_TOP"]
    fewer = tiny_frames.keep(tiny_frames.tokens[:-1]).identity()
    assert all(fewer["poses"][s] != whole["poses"][s] for s in SENSORS)
    assert fewer["tokens"] != whole["tokens"]


def test_an_index_opens_without_devkit_or_torch(tiny_world: Path, select: Select) -> None:
    select(tiny_world)
    code = (
        "import sys\n"
        "from bevcask.config import DatasetConfig\n"
        "from bevcask.data.index.frames import Frames\n"
        f"keys = dict(root={str(tiny_world)!r}, version='v1.0-synthetic', split='all')\n"
        "assert len(Frames.select(DatasetConfig(**keys))) == 6\n"
        "assert not {'nuscenes', 'torch', 'cv2'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_a_changed_table_makes_another_index(world_copy: Path, tiny_world: Path) -> None:
    same = FrameIndex.open(world_copy, "v1.0-synthetic")
    assert same.folder == FrameIndex.open(tiny_world, "v1.0-synthetic").folder
    path = world_copy / "v1.0-synthetic" / "sample_annotation.json"
    records = json.loads(path.read_text())
    records[0]["size"][0] += 1
    path.write_text(json.dumps(records))
    assert FrameIndex.open(world_copy, "v1.0-synthetic").digest != same.digest


def test_only_changed_files_are_hashed_again(
    world_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = FrameIndex.open(world_copy, "v1.0-synthetic").digest

    def refuse(*_: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr("hashlib.file_digest", refuse)
    assert FrameIndex.open(world_copy, "v1.0-synthetic").digest == digest
    with pytest.raises(AssertionError, match="hashed again"):
        FrameIndex.open(world_copy, "v1.0-synthetic", rehash=True)
    path = world_copy / "v1.0-synthetic" / "log.json"
    os.utime(path, ns=(0, 0))
    with pytest.raises(AssertionError, match="hashed again"):
        FrameIndex.open(world_copy, "v1.0-synthetic")


def test_a_damaged_index_says_what_to_delete(
    world_copy: Path, select: Select, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BEVCASK_HOME", str(tmp_path / "home"))
    folder = select(world_copy).index.folder
    (folder / "box_values.npy").write_bytes(b"")
    with pytest.raises(DataError, match=f"{folder}: damaged frame index .* Delete this folder"):
        select(world_copy)


def test_missing_tables_are_named_all_at_once(world_copy: Path, select: Select) -> None:
    for name in ("ego_pose", "visibility"):
        (world_copy / "v1.0-synthetic" / f"{name}.json").unlink()
    with pytest.raises(DataError) as caught:
        select(world_copy)
    message = str(caught.value)
    assert "missing ego_pose.json, visibility.json. Expected 13 tables: attribute.json," in message
    assert str(world_copy / "v1.0-synthetic") in message
    assert "Unpack the metadata archive" in message


def test_a_misspelt_version_suggests_the_one_that_is_there(
    tiny_world: Path, select: Select
) -> None:
    with pytest.raises(DataError, match=r"Did you mean 'v1.0-synthetic'\?.*dataset.version"):
        select(tiny_world, "v1.0-syntetic")


def test_where_only_other_versions_are_their_shipped_dataset_is_named(
    tmp_path: Path, select: Select
) -> None:
    for version in ("v1.0-mini", "v1.0-own"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "sample.json").write_text("[]")
    with pytest.raises(DataError, match=r"dataset=mini reads split mini_train of v1\.0-mini"):
        select(tmp_path, "v1.0-trainval")


def test_a_table_cut_short_is_an_error(world_copy: Path, select: Select) -> None:
    path = world_copy / "v1.0-synthetic" / "sample_data.json"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"not valid JSON.*Unpack the metadata archive again"):
        select(world_copy)


def test_tables_of_different_versions_are_an_error(world_copy: Path, select: Select) -> None:
    path = world_copy / "v1.0-synthetic" / "sensor.json"
    path.write_text(json.dumps(json.loads(path.read_text())[1:]))
    with pytest.raises(DataError, match="the tables do not belong together"):
        select(world_copy)


def test_a_missing_map_mask_is_an_error(
    world_copy: Path, select: Select, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BEVCASK_HOME", str(tmp_path / "home"))  # no index of these tables yet
    for path in (world_copy / "maps").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"missing map mask .*\.png.*maps/ folder"):
        select(world_copy)


def test_a_keyframe_without_a_camera_is_an_error(world_copy: Path, select: Select) -> None:
    path = world_copy / "v1.0-synthetic" / "sample_data.json"
    records = json.loads(path.read_text())
    lost = next(r for r in records if "CAM_BACK_LEFT" in r["filename"])
    path.write_text(json.dumps([r for r in records if r is not lost]))
    with pytest.raises(DataError, match=r"1 of 6 keyframes lack a sensor: sample .* CAM_BACK_LEFT"):
        select(world_copy)


def test_an_unwritable_home_says_which_variable_to_set(
    world_copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, select: Select
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BEVCASK_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="Set BEVCASK_HOME"):
        select(world_copy)

import copy
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes
from PIL import Image

from bevcask.config import DatasetConfig
from bevcask.data.index.arrays import SENSORS
from bevcask.data.index.frames import Frames
from bevcask.errors import BevcaskError, ConfigError, DataError
from bevcask.geometry import pose_matrix
from data.index.info_files import Info, listed, stamped, write

Pair = tuple[Frames, NuScenes]
FORMATS: dict[str, Callable[[NuScenes], Info]] = {
    "0.17": lambda devkit: listed(devkit, old=True),
    "1.0": lambda devkit: listed(devkit, old=False),
    "1.1": stamped,
}


def open_infos(path: Path, root: Path, version: str = "v1.0-synthetic", **keys: Any) -> Frames:
    keys = {"split": "all", "trust_pickle": True, **keys}
    return Frames.select(DatasetConfig(root=str(root), version=version, infos=str(path), **keys))


@pytest.fixture(params=FORMATS)
def both(request: pytest.FixtureRequest, pair: Pair, tmp_path: Path) -> tuple[Frames, Frames, str]:
    """A dataset from its tables and from an info file, in the same order; the format."""
    tables, devkit = pair
    path = write(tmp_path / "infos.pkl", FORMATS[request.param](devkit))
    infos = open_infos(path, tables.root, tables.version)
    assert len(infos) == len(tables)
    return tables, infos.in_order(tables.tokens), request.param


@pytest.fixture
def old(tiny_devkit: NuScenes) -> Info:
    return listed(tiny_devkit, old=True)


def each(content: Info, change: Callable[[Info], None]) -> Info:
    for info in content["infos"]:
        change(info)
    return content


def test_frames_poses_and_calibration_are_those_of_the_tables(
    both: tuple[Frames, Frames, str],
) -> None:
    tables, infos, form = both
    tolerance = 2e-4 if form == "1.1" else 0  # float32 metres of a map
    np.testing.assert_array_equal(infos.timestamps, tables.timestamps)
    np.testing.assert_allclose(infos.lidar_to_global, tables.lidar_to_global, atol=tolerance)
    for name in ("frame_image_size", "frame_image", "frame_time"):
        np.testing.assert_array_equal(infos.index[name][infos.rows], tables.index[name])
    cameras = infos.index["frame_camera_to_lidar"][infos.rows]
    np.testing.assert_allclose(cameras, tables.index["frame_camera_to_lidar"], atol=1e-6)
    for name, derive in (("calibration_pose", matrices), ("calibration_intrinsics", np.asarray)):
        mine = infos.index[name][infos.index["frame_calibration"][infos.rows]]
        theirs = tables.index[name][tables.index["frame_calibration"]]
        np.testing.assert_allclose(derive(mine), derive(theirs), atol=1e-6)
    ego = matrices(infos.index["frame_ego_pose"][infos.rows])
    np.testing.assert_allclose(ego, matrices(tables.index["frame_ego_pose"]), atol=2 * tolerance)


def matrices(poses: np.ndarray) -> np.ndarray:
    return np.array([pose_matrix(p[:3], p[3:]) for p in poses.reshape(-1, 7)])


def test_sweeps_are_those_of_the_tables(both: tuple[Frames, Frames, str]) -> None:
    tables, infos, _ = both
    for token in tables.tokens:
        pairs = list(zip(infos.scans(token, 10), tables.scans(token, 10), strict=True))
        for mine, theirs in pairs:
            for name in ("scan_path", "scan_time"):
                assert infos.index[name][mine] == tables.index[name][theirs]
            np.testing.assert_allclose(
                infos.sweep_to_lidar(token, mine), tables.sweep_to_lidar(token, theirs), atol=2e-4
            )
    assert infos.missing_sweeps(10) == tables.missing_sweeps(10)


def test_boxes_are_those_of_the_tables(both: tuple[Frames, Frames, str]) -> None:
    tables, infos, _ = both
    for token in tables.tokens:
        boxes, classes, points = infos.labels(token)
        expected, expected_classes, expected_points = tables.labels(token)
        np.testing.assert_allclose(boxes[:, :6], expected[:, :6], atol=1e-5)
        turned = np.abs(boxes[:, 6] - expected[:, 6])
        assert np.minimum(turned, 2 * np.pi - turned).max() < 3e-3  # roll and pitch were lost
        np.testing.assert_allclose(boxes[:, 7:], expected[:, 7:], atol=0.1)  # vertical part, too
        np.testing.assert_array_equal(classes, expected_classes)
        np.testing.assert_array_equal(points, expected_points)
        np.testing.assert_array_equal(infos.seen(token), tables.seen(token))
        assert (boxes.dtype, classes.dtype, points.dtype) == (
            expected.dtype, expected_classes.dtype, expected_points.dtype,
        )  # fmt: skip


def test_identity_of_quaternion_formats_is_that_of_the_tables_but_for_labels(
    both: tuple[Frames, Frames, str],
) -> None:
    tables, infos, form = both
    mine, theirs = (frames.identity(SENSORS, num_sweeps=3) for frames in (infos, tables))
    assert mine["tokens"] == theirs["tokens"]
    assert (mine["calibration"] == theirs["calibration"]) == (form != "1.1")
    assert (mine["poses"] == theirs["poses"]) == (form != "1.1")
    assert mine["annotations"] != theirs["annotations"]


def groups(frames: Frames) -> set[tuple[str, ...]]:
    named: dict[str, list[str]] = {}
    for token, scene in zip(frames.tokens, frames.scenes, strict=True):
        named.setdefault(scene, []).append(token)
    return {tuple(tokens) for tokens in named.values()}


@pytest.mark.parametrize("sweeps", [0, 1, 10])
def test_scenes_are_derived_from_logs_gaps_and_sweeps(
    pair: Pair, tmp_path: Path, sweeps: int
) -> None:
    tables, devkit = pair
    path = write(tmp_path / "infos.pkl", listed(devkit, old=False, sweeps=sweeps))
    assert groups(open_infos(path, tables.root, tables.version)) == groups(tables)


@pytest.mark.parametrize(
    ("sweeps", "gap", "log"),
    [(2, 0.5, "n900-2024-01-01-00-00-00+0000"), (0, 20, "n900-2024-01-01-00-00-00+0000"),
     (0, 0.5, "n901")],
    ids=["sweeps end", "gap", "log"],
)  # fmt: skip
def test_one_sign_is_enough_to_part_two_scenes(
    tiny_frames: Frames, tiny_devkit: NuScenes, tmp_path: Path, sweeps: int, gap: float, log: str
) -> None:
    content = listed(tiny_devkit, old=False, sweeps=sweeps)
    start = tiny_devkit.get("sample", tiny_frames.tokens[3])["timestamp"]
    end = tiny_devkit.get("sample", tiny_frames.tokens[2])["timestamp"]

    def follow(info: Info) -> None:
        """Put the second scene right behind the first."""
        if info["token"] in tiny_frames.tokens[3:]:
            info["lidar_path"] = f"samples/LIDAR_TOP/{log}__LIDAR_TOP__{info['timestamp']}.pcd.bin"
            for record in (info, *info["sweeps"]):
                record["timestamp"] += end - start + round(gap * 1e6)

    path = write(tmp_path / "infos.pkl", each(content, follow))
    assert groups(open_infos(path, tiny_frames.root)) == groups(tiny_frames)


def test_scene_tokens_of_forks_are_used(
    tiny_world: Path, old: Info, tiny_devkit: NuScenes, tmp_path: Path
) -> None:
    each(old, lambda i: i.update(scene_token=tiny_devkit.get("sample", i["token"])["scene_token"]))
    frames = open_infos(write(tmp_path / "infos.pkl", old), tiny_world)
    assert set(frames.scenes) == {scene["token"] for scene in tiny_devkit.scene}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("prefix", ["/home/somebody/samples/nuscenes", "data\\nuscenes", "."])
def test_paths_start_at_the_root_whoever_wrote_them(
    tiny_world: Path, tiny_devkit: NuScenes, tmp_path: Path, protocol: int, prefix: str
) -> None:
    content = listed(tiny_devkit, old=True, prefix=prefix)
    frames = open_infos(write(tmp_path / "infos.pkl", content, protocol), tiny_world)
    for scan in frames.scans(frames.tokens[-1], 3):
        assert (tiny_world / frames.index["scan_path"][scan].decode()).is_file()


def test_a_test_file_without_annotations_has_no_labels(
    tiny_world: Path, tiny_devkit: NuScenes, tmp_path: Path
) -> None:
    keys = ("gt_boxes", "gt_names", "gt_velocity", "num_lidar_pts", "num_radar_pts", "valid_flag")
    content = each(listed(tiny_devkit, old=True), lambda i: [i.pop(key) for key in keys] and None)
    assert not open_infos(write(tmp_path / "old.pkl", content), tiny_world).has_labels
    new = stamped(tiny_devkit)
    for entry in new["data_list"]:
        del entry["instances"]
    assert not open_infos(write(tmp_path / "new.pkl", new), tiny_world).has_labels


def swap_sizes(info: Info) -> None:
    info["gt_boxes"] = info["gt_boxes"][:, [0, 1, 2, 4, 3, 5, 6]]


def lower(info: Info) -> None:
    info["gt_boxes"][:, 2] -= info["gt_boxes"][:, 5] / 2


def turn(info: Info) -> None:
    info["gt_boxes"][:, 6] += np.pi


def only_walkers(info: Info) -> None:
    for key in ("gt_boxes", "gt_velocity", "num_lidar_pts", "num_radar_pts", "gt_names"):
        info[key] = info[key][info["gt_names"] == "pedestrian"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_sizes, r"ordered as mmdet3d did since v1.0.0rc0, but their yaw .* before v1.0.0rc0"),
        (lower, r"0\.0\d of their height above the ground, expected 0.5, the centre"),
        (turn, "neither reading of yaw points them where they drive"),
        (only_walkers, r"cannot tell whether its \d+ boxes follow mmdet3d before"),
    ],
)
def test_boxes_that_contradict_themselves_are_refused(
    pair: Pair, tmp_path: Path, change: Callable[[Info], None], message: str
) -> None:
    tables, devkit = pair
    path = write(tmp_path / "infos.pkl", each(listed(devkit, old=True), change))
    with pytest.raises(DataError, match=message) as caught:
        open_infos(path, tables.root, tables.version)
    assert str(path) in str(caught.value)


def test_boxes_of_two_conventions_in_one_file_are_refused(
    tiny_world: Path, tiny_devkit: NuScenes, old: Info, tmp_path: Path
) -> None:
    new = listed(tiny_devkit, old=False)
    mixed = {**old, "infos": old["infos"][::2] + new["infos"][1::2]}
    with pytest.raises(DataError, match="boxes of both were mixed"):
        open_infos(write(tmp_path / "infos.pkl", mixed), tiny_world)


def test_old_boxes_in_the_new_format_are_refused_by_name(pair: Pair, tmp_path: Path) -> None:
    tables, devkit = pair
    path = write(tmp_path / "infos.pkl", stamped(devkit, old=True))
    with pytest.raises(DataError, match=r"since v1.0.0rc0 .*but its boxes are those of mmdet3d "):
        open_infos(path, tables.root, tables.version)


def test_a_pickle_is_read_by_consent_only(tiny_world: Path, old: Info, tmp_path: Path) -> None:
    path = write(tmp_path / "infos.pkl", old)
    for _ in range(2):  # also where the index is there already
        with pytest.raises(ConfigError, match=r"pickle can run code.*dataset.trust_pickle=true"):
            open_infos(path, tiny_world, trust_pickle=False)
        open_infos(path, tiny_world)


def test_consent_is_not_recorded() -> None:
    assert "trust_pickle" not in DatasetConfig(trust_pickle=True).model_dump()


class Touch:
    """Makes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_global_that_is_no_data_is_refused_and_not_called(
    tiny_world: Path, old: Info, tmp_path: Path, protocol: int
) -> None:
    old["metadata"]["author"] = Touch(tmp_path / "made")
    path = write(tmp_path / "infos.pkl", old, protocol)
    with pytest.raises(DataError, match=r"names (posix|nt)\.mkdir, .*might run code"):
        open_infos(path, tiny_world)
    assert not (tmp_path / "made").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "made").exists()  # an ordinary reader would have


@pytest.mark.parametrize("name", [b"numpy\nload", b"builtins\neval", b"numpy\nndarray.__class__"])
def test_what_is_near_to_arrays_is_refused_too(
    tiny_world: Path, tmp_path: Path, name: bytes
) -> None:
    path = tmp_path / "infos.pkl"
    path.write_bytes(b"c" + name + b"\n.")
    with pytest.raises(DataError, match="neither a numpy array nor a builtin value"):
        open_infos(path, tiny_world)


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_truncated_pickle_is_an_error(
    tiny_world: Path, old: Info, tmp_path: Path, kept: int
) -> None:
    path = write(tmp_path / "infos.pkl", old)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=f"{path}: not a complete pickle .* again"):
        open_infos(path, tiny_world)


def test_a_missing_info_file_is_an_error(tiny_world: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"infos.pkl: no such file.*create_data.py"):
        open_infos(tmp_path / "infos.pkl", tiny_world)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a mapping with `infos` and `metadata`.*got list"),
        ({"car": []}, "got dict car"),
        ({"infos": [], "metadata": {}}, "holds no frames"),
        ({"infos": 3, "metadata": {}}, "expected a list of frames"),
        ({"infos": [3], "metadata": "v1"}, "expected a list of frames and a mapping about them"),
        ({"infos": [3], "metadata": {"version": "v1.0-synthetic"}}, "entry 0 is malformed"),
        ({"infos": [{}], "metadata": {"version": "v1.0-synthetic"}}, "entry 0 has no 'lidar_path'"),
    ],
)
def test_other_pickles_are_refused(
    tiny_world: Path, tmp_path: Path, content: object, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_infos(write(tmp_path / "infos.pkl", content), tiny_world)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i["cams"].pop("CAM_BACK"), r"entry 0 has no 'CAM_BACK'"),
        (lambda i: i.pop("gt_velocity"), r"entry 0 has no 'gt_velocity'"),
        (lambda i: i.pop("num_lidar_pts"), r"entry 0 is malformed"),
        (
            lambda i: i.update(ego2global_translation=[np.nan, 0, 0]),
            r"sample \w{32}, LIDAR_TOP: no ego pose .* 6 of 6 frames",
        ),
        (
            lambda i: i["cams"]["CAM_BACK"].update(cam_intrinsic=np.zeros((3, 3))),
            r"entry 0 is malformed: CAM_BACK: intrinsics .* are no 3x3 with focal lengths",
        ),
        (lambda i: i.update(ego2global_rotation=[1, 0, 0]), r"3 numbers|6 numbers instead"),
        (lambda i: i.update(gt_names=i["gt_names"][1:]), r"entry 0 is malformed"),
        (lambda i: i["gt_names"].put(0, "lorry"), r"class lorry is none of car, truck"),
        (lambda i: i.update(lidar_path="/scans/a.bin"), r"below neither samples/ nor sweeps/"),
        (lambda i: i.update(token="frame-1"), r"tokens are not 32 hex digits"),
        (lambda i: i.update(token=7), r"entry 0 is malformed: 7 is not a short text"),
        (lambda i: i.update(scene_token=["a"]), r"entry 0 is malformed: \['a'\] is not a short"),
        (lambda i: i.update(lidar_path="x" * 9999), r"entry 0 is malformed: x+ is not a short"),
        (lambda i: i.update(timestamp=10**40), r"entry 0 is malformed: time 10+ is no count"),
        (lambda i: i.update(token="0" * 32), r"5 of its 6 entries repeat a sample token"),
    ],
)
def test_a_wrong_entry_is_named(
    tiny_world: Path, old: Info, tmp_path: Path, change: Callable[[Info], None], message: str
) -> None:
    path = write(tmp_path / "infos.pkl", each(old, change))
    with pytest.raises(DataError, match=message) as caught:
        open_infos(path, tiny_world)
    assert str(path) in str(caught.value)


def test_another_version_is_refused(tiny_world: Path, old: Info, tmp_path: Path) -> None:
    path = write(tmp_path / "infos.pkl", old)
    open_infos(path, tiny_world)  # the index of the right version does not serve the other
    with pytest.raises(ConfigError, match=r"made from v1\.0-synthetic: pass dataset\.version="):
        open_infos(path, tiny_world, "v1.0-trainval")


def test_a_split_needs_names_of_scenes(tiny_world: Path, old: Info, tmp_path: Path) -> None:
    path = write(tmp_path / "infos.pkl", old)
    with pytest.raises(ConfigError, match=f"Known for {path}: all.*use dataset.split=all"):
        open_infos(path, tiny_world, split="train")


@pytest.mark.parametrize("known", [True, False])
def test_infos_of_another_root_are_refused(
    tiny_world: Path, old: Info, tmp_path: Path, known: bool
) -> None:
    old["metadata"]["note"] = str(tmp_path)  # an index of its own
    path = write(tmp_path / "infos.pkl", old)
    if known:
        open_infos(path, tiny_world)
    with pytest.raises(DataError, match=r"infos\.pkl names it in its first frame\. Point"):
        open_infos(path, tmp_path)


@pytest.mark.parametrize("folder", ["LIDAR_TOP", "CAM_BACK"])
def test_a_missing_first_file_is_named(
    world_copy: Path, old: Info, tmp_path: Path, folder: str
) -> None:
    for path in (world_copy / "samples" / folder).iterdir():
        path.unlink()
    with pytest.raises(DataError, match=f"{world_copy}/samples/{folder}/.*: no such file"):
        open_infos(write(tmp_path / "infos.pkl", old), world_copy)


@pytest.mark.parametrize("known", [True, False])
def test_resized_images_are_refused(
    tiny_world: Path, world_copy: Path, old: Info, tmp_path: Path, known: bool
) -> None:
    old["metadata"]["note"] = str(tmp_path)  # an index of its own
    path = write(tmp_path / "infos.pkl", old)
    if known:
        open_infos(path, tiny_world)
    for image in (world_copy / "samples" / "CAM_FRONT").iterdir():
        Image.new("RGB", (100, 56)).save(image)
    with pytest.raises(DataError, match=r"Point dataset\.root at the original"):
        open_infos(path, world_copy)


def test_a_changed_file_makes_another_index(tiny_world: Path, old: Info, tmp_path: Path) -> None:
    path = write(tmp_path / "infos.pkl", old)
    before = open_infos(path, tiny_world)
    each(old, lambda info: info["gt_boxes"].__iadd__(0.25) is None)
    after = open_infos(write(path, old), tiny_world)
    assert before.index.folder != after.index.folder
    assert before.identity()["annotations"] != after.identity()["annotations"]


def test_frames_travel_to_workers(tiny_world: Path, old: Info, tmp_path: Path) -> None:
    frames = open_infos(write(tmp_path / "infos.pkl", old), tiny_world)
    copy = pickle.loads(pickle.dumps(frames))
    assert copy.tokens == frames.tokens
    assert copy.index.source == tmp_path / "infos.pkl"


def test_no_table_is_read(world_copy: Path, old: Info, tmp_path: Path) -> None:
    shutil.rmtree(world_copy / "v1.0-synthetic")
    shutil.rmtree(world_copy / "maps")
    assert len(open_infos(write(tmp_path / "infos.pkl", old), world_copy)) == 6


def test_boxes_of_infos_that_are_none_are_left_out_and_counted(
    tiny_world: Path, old: Info, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    number = sum(len(entry["gt_names"]) for entry in old["infos"])
    old["infos"][0]["gt_boxes"][[0, 2], [3, 0]] = 0, np.nan
    frames = open_infos(write(tmp_path / "infos.pkl", old), tiny_world)
    assert f"2 of {number} boxes are left out" in caplog.text
    assert f"first box 0 of sample {old['infos'][0]['token']}" in caplog.text
    assert np.isfinite(frames.index["box_values"]).all()
    assert len(frames.index["box_values"]) == number - 2


def test_infos_without_radar_counts_are_read(tiny_world: Path, old: Info, tmp_path: Path) -> None:
    each(old, lambda info: info.pop("num_radar_pts") is None)
    frames = open_infos(write(tmp_path / "infos.pkl", old), tiny_world)
    assert frames.index.counted
    assert not frames.index["box_num_radar_points"].any()


def test_bevfusion_says_intrinsics_in_the_plural(
    tiny_world: Path, tiny_devkit: NuScenes, tmp_path: Path
) -> None:
    plain = open_infos(
        write(tmp_path / "plain.pkl", listed(tiny_devkit, old=True)), tiny_world
    ).identity()

    def rename(info: Info) -> None:
        for shot in info["cams"].values():
            shot["camera_intrinsics"] = shot.pop("cam_intrinsic")

    content = each(listed(tiny_devkit, old=True), rename)
    assert open_infos(write(tmp_path / "infos.pkl", content), tiny_world).identity() == plain


def test_a_file_that_names_no_version_is_taken_at_its_word(
    tiny_world: Path, old: Info, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    del old["metadata"]["version"]
    assert len(open_infos(write(tmp_path / "infos.pkl", old), tiny_world)) == 6
    assert "does not say which version it is of; taken for v1.0-synthetic" in caplog.text


WRONG: list[Any] = [
    None, "x", -1, 10**30, 1e300, np.nan, [], {}, [[]], True, np.zeros(0), np.zeros((2, 3)), b"x",
    [None], np.full(7, np.nan), (1, 2),
]  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Return every container and key of a tree."""
    if not isinstance(tree, dict | list):
        return []
    keys = list(tree) if isinstance(tree, dict) else range(min(len(tree), 3))
    return [(tree, key) for key in keys] + [place for key in keys for place in places(tree[key])]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("seed", range(8))
def test_whatever_an_entry_says_the_answer_is_a_message(
    form: str, seed: int, tiny_world: Path, tiny_devkit: NuScenes, tmp_path: Path
) -> None:
    random = np.random.default_rng(seed)
    content = copy.deepcopy(FORMATS[form](tiny_devkit))  # it shares lists with the devkit
    found = places(content)
    container, key = found[random.integers(len(found))]
    container[key] = WRONG[random.integers(len(WRONG))]
    path = write(tmp_path / "infos.pkl", content, 4)
    try:
        frames = open_infos(path, tiny_world)
    except BevcaskError:
        return
    for array in ("box_values", "frame_lidar_to_global", "calibration_intrinsics"):
        assert np.isfinite(frames.index[array]).all()

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud

from bevcask.data import lidar
from bevcask.data.index.frames import Frames
from bevcask.data.lidar import Scans, mention_sweeps, read_points, read_scan
from bevcask.detectors.base import Inputs
from bevcask.errors import DataError

Pair = tuple[Frames, NuScenes]
Select = Callable[..., Frames]


@pytest.mark.parametrize("num_sweeps", [1, 2, 3])
def test_points_are_the_devkits_multisweep_points(pair: Pair, num_sweeps: int) -> None:
    frames, devkit = pair
    for token in (frames.tokens[0], frames.tokens[-1]):
        num_found = len(frames.scans(token, num_sweeps))
        cloud, times = LidarPointCloud.from_file_multisweep(
            devkit, devkit.get("sample", token), "LIDAR_TOP", "LIDAR_TOP", nsweeps=num_found
        )
        points = read_points(frames, token, num_sweeps)
        num_theirs = cloud.points.shape[1]
        assert points.dtype == np.float32
        np.testing.assert_allclose(points[:num_theirs, :4], cloud.points.T, atol=2e-5)
        np.testing.assert_allclose(points[:num_theirs, 4], times[0], atol=1e-6)
        repeated = points[num_theirs:]
        keyframe = points[: len(repeated) // max(1, num_sweeps - num_found)]
        np.testing.assert_array_equal(
            repeated, np.tile(keyframe, (num_sweeps - num_found, 1))[: len(repeated)]
        )


@pytest.mark.parametrize("ego_points", ["drop", "keyframe", "keep"])
def test_points_are_those_of_sweeps_moved_one_by_one(
    tiny_frames: Frames, ego_points: Literal["drop", "keyframe", "keep"]
) -> None:
    """Bit for bit, moved in float64: caches that exist were made of these points."""
    token, index = tiny_frames.tokens[2], tiny_frames.index
    keyframe, *earlier = tiny_frames.scans(token, 99)
    parts = []
    for number, row in enumerate([keyframe, *earlier, keyframe, keyframe]):
        points = np.array(read_scan(tiny_frames.root / index["scan_path"][row].decode()))
        far = (np.abs(points[:, :2]) >= 1).any(1)
        if not (ego_points == "keep" or (ego_points == "keyframe" and number == 0)):
            points = points[far]
        if row != keyframe:
            matrix = tiny_frames.sweep_to_lidar(token, row)
            points[:, :3] = points[:, :3].astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
        points[:, 4] = (index["scan_time"][keyframe] - index["scan_time"][row]) * 1e-6
        parts.append(points)
    found = read_points(tiny_frames, token, len(parts), Inputs(ego_points=ego_points))
    np.testing.assert_array_equal(found, np.concatenate(parts))


def test_scans_that_are_kept_are_not_read_again(
    tiny_frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(lidar, "read_scan", lambda path: read.append(path) or read_scan(path))
    plain = [read_points(tiny_frames, token, 5) for token in tiny_frames.tokens[:4]]
    twice, scans = len(read), Scans(2**30)
    read.clear()
    for token, points in zip(tiny_frames.tokens, plain, strict=False):
        np.testing.assert_array_equal(read_points(tiny_frames, token, 5, scans=scans), points)
    assert len(read) == len(set(read)) < twice
    read.clear()
    read_points(tiny_frames, tiny_frames.tokens[0], 1, scans=pickle.loads(pickle.dumps(scans)))
    assert len(read) == 1  # another process begins with none


def test_as_many_scans_are_kept_as_fit_but_the_last_one_always(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.bin" for number in range(4)]
    for path in paths:
        path.write_bytes(np.ones((10, 5), np.float32).tobytes())
    scans = Scans(2 * 200)
    first = [scans.read(path) for path in paths[:2]]
    assert scans.read(paths[0]) is first[0]  # and so the latest
    scans.read(paths[2])
    assert scans.read(paths[0]) is first[0]
    assert scans.read(paths[1]) is not first[1]
    small = Scans(0)
    assert small.read(paths[0]) is small.read(paths[0])


def test_seconds_grow_backwards_and_the_keyframe_comes_first(tiny_frames: Frames) -> None:
    seconds = read_points(tiny_frames, tiny_frames.tokens[2], 3)[:, 4]
    assert seconds[0] == 0
    assert (np.diff(seconds) >= 0).all()
    np.testing.assert_allclose(np.unique(seconds), [0, 0.15, 0.35], atol=0.051)


def test_a_missing_sweep_repeats_the_keyframe(tiny_frames: Frames) -> None:
    first = tiny_frames.tokens[0]
    keyframe = read_points(tiny_frames, first, 1)
    np.testing.assert_array_equal(read_points(tiny_frames, first, 3), np.tile(keyframe, (3, 1)))


def test_points_on_the_ego_car_are_removed(pair: Pair) -> None:
    frames, _ = pair
    token = frames.tokens[0]
    path = frames.root / frames.index["scan_path"][frames.scans(token, 1)[0]].decode()
    raw = read_scan(path)
    near = (np.abs(raw[:, :2]) < 1).all(axis=1)
    points = read_points(frames, token, 1)
    assert not (np.abs(points[:, :2]) < 1).all(axis=1).any()
    assert len(points) == len(raw) - near.sum()


@pytest.mark.parametrize("cut", [1, 7, 19])
def test_a_scan_of_wrong_length_is_an_error(nuscenes_root: Path, tmp_path: Path, cut: int) -> None:
    whole = sorted((nuscenes_root / "samples" / "LIDAR_TOP").iterdir())[0].read_bytes()
    path = tmp_path / "cut.pcd.bin"
    path.write_bytes(whole[:-cut])
    with pytest.raises(DataError) as caught:
        read_scan(path)
    message = str(caught.value)
    assert (
        f"{path}: LiDAR scan of {len(whole) - cut} bytes, expected a positive multiple of 20"
        in (message)
    )
    assert "Copy or download the file again." in message


def test_an_empty_scan_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.pcd.bin").touch()
    with pytest.raises(DataError, match="of 0 bytes, expected a positive multiple of 20"):
        read_scan(tmp_path / "empty.pcd.bin")


def test_a_scan_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read LiDAR scan: Is a directory"):
        read_scan(tmp_path)


def test_a_missing_sweep_file_is_an_error(world_copy: Path, select: Select) -> None:
    frames = select(world_copy)
    token = frames.tokens[2]
    path = frames.root / frames.index["scan_path"][frames.scans(token, 2)[1]].decode()
    path.unlink()
    read_points(frames, token, 1)
    with pytest.raises(DataError, match=r"missing LiDAR scan.*sweeps archives.*num_sweeps 1"):
        read_points(frames, token, 2)


def test_sweeps_that_are_listed_but_were_never_copied_repeat_the_keyframe(
    world_copy: Path, select: Select, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(world_copy / "sweeps")
    frames = select(world_copy)
    token = frames.tokens[2]
    keyframe = read_points(frames, token, 1)
    np.testing.assert_array_equal(read_points(frames, token, 3), np.tile(keyframe, (3, 1)))
    assert frames.missing_sweeps(3) == 2 * len(frames)
    mention_sweeps(frames, 3)
    assert "2 of 2 scenes have keyframes but no LiDAR sweeps" in caplog.text
    assert f"{2 * len(frames)} times in the whole selection" in caplog.text


def test_missing_sweeps_are_never_fewer_than_none(tiny_frames: Frames) -> None:
    assert [tiny_frames.missing_sweeps(number) for number in (0, 1)] == [0, 0]
    assert tiny_frames.missing_sweeps(3) > 0


ABSURD = [np.nan, np.inf, -np.inf, 1e30]


@pytest.mark.parametrize("value", ABSURD)
@pytest.mark.parametrize("column", [0, 2, 3])
def test_points_that_are_none_are_left_out_and_said(
    tmp_path: Path, value: float, column: int, caplog: pytest.LogCaptureFixture
) -> None:
    rows = np.arange(50, dtype=np.float32).reshape(10, 5)
    path = tmp_path / "x.pcd.bin"
    path.write_bytes(rows.tobytes())
    np.testing.assert_array_equal(read_scan(path), rows)
    broken = rows.copy()
    broken[[3, 7], column] = value
    path.write_bytes(broken.tobytes())
    lidar._named.clear()
    np.testing.assert_array_equal(read_scan(path), np.delete(rows, [3, 7], 0))
    assert f"{path}: 2 of 10 LiDAR points are NaN or beyond 10 km" in caplog.text
    assert "first row 3: [" in caplog.text
    caplog.clear()
    read_scan(path)
    assert not caplog.text  # once a process


def test_only_the_first_files_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = np.ones((2, 5), np.float32)
    rows[1] = np.nan
    lidar._named.clear()
    for number in range(9):
        path = tmp_path / f"{number}.pcd.bin"
        path.write_bytes(rows.tobytes())
        assert len(read_scan(path)) == 1
    assert len(caplog.records) == 3
    assert "further files are not named" in caplog.text


def test_a_scan_without_any_point_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.pcd.bin"
    path.write_bytes(np.full((4, 5), np.nan, np.float32).tobytes())
    with pytest.raises(DataError, match=r"4 of 4 LiDAR points are NaN.*row 0.* Nothing is left"):
        read_scan(path)


def test_mmdet3ds_rules_keep_the_keyframe_whole_and_pad_only_where_there_is_nothing(
    tiny_frames: Frames,
) -> None:
    like = Inputs(num_sweeps=3, ego_points="keyframe", pad="empty")
    first, last = tiny_frames.tokens[0], tiny_frames.tokens[2]
    assert len(tiny_frames.scans(first, 3)) == 1
    num_last = len(tiny_frames.scans(last, 9))
    assert 1 < num_last < 9
    whole = read_scan(tiny_frames.root / tiny_frames.index["scan_path"][
        tiny_frames.scans(first, 1)[0]].decode())  # fmt: skip
    near = (np.abs(whole[:, :2]) < 1).all(axis=1)
    assert near.any()
    alone = read_points(tiny_frames, first, 3, like)
    assert len(alone) == len(whole) + 2 * (~near).sum()
    np.testing.assert_array_equal(alone[: len(whole), :4], whole[:, :4])
    some = read_points(tiny_frames, last, 9, like)
    full = read_points(tiny_frames, last, num_last)
    np.testing.assert_array_equal(np.unique(some[:, 4]), np.unique(full[:, 4]))
    never = Inputs(num_sweeps=3, ego_points="keep", pad="never")
    np.testing.assert_array_equal(read_points(tiny_frames, first, 3, never)[:, :4], whole[:, :4])

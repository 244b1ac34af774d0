"""Tables nobody made for us: what can be read is read and said, the rest is refused by record."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevcask.data.index.frames import Frames
from bevcask.data.index.tables import TABLES
from bevcask.errors import BevcaskError, DataError

Records = list[dict[str, Any]]
Select = Callable[..., Frames]
VERSION = "v1.0-synthetic"


@pytest.fixture
def world(tiny_world: Path, tmp_path: Path) -> Path:
    """The tiny world with tables of its own."""
    root = tmp_path / "world"
    shutil.copytree(tiny_world / VERSION, root / VERSION)
    for name in ("samples", "sweeps", "maps"):
        (root / name).symlink_to(tiny_world / name)
    return root


def edit(root: Path, table: str, change: Callable[[Records], Records | None]) -> None:
    path = root / VERSION / f"{table}.json"
    records = json.loads(path.read_text())
    path.write_text(json.dumps(change(records) or records))


def every(**values: Any) -> Callable[[Records], None]:
    return lambda records: [record.update(values) for record in records] and None


def first(**values: Any) -> Callable[[Records], None]:
    return lambda records: records[0].update(values)


def without(*fields: str) -> Callable[[Records], None]:
    def change(records: Records) -> None:
        for record in records:
            for field in fields:
                del record[field]

    return change


REFUSED: dict[str, tuple[str, Callable[[Records], Any], str]] = {
    "UUIDs": (
        "sample",
        lambda rs: [r.update(token=f"{r['token'][:8]}-{r['token'][8:]}") for r in rs] and None,
        r"sample\.json: record 0 \(token \w{8}-\w+\): token: .*hex digits, those of a UUID",
    ),
    "a repeated token": (
        "sample",
        lambda rs: [*rs, rs[0]],
        r"sample\.json: 1 of 7 records repeat the token of another",
    ),
    "no image size": (
        "sample_data",
        without("height", "width"),
        r"sample \w{32}, CAM_\w+: no image size \(sample_data\.json: height, width\), got \[0, 0\]",
    ),
    "an image size of 0": (
        "sample_data",
        every(height=0, width=0),
        r"no image size .* 6 of 6 frames",
    ),
    "no file name": (
        "sample_data",
        without("filename"),
        r"sample_data\.json: record 0 \(token \w{32}\): filename: Field required\. (\d+) of \1 ",
    ),
    "no chain of scans": (
        "sample_data",
        without("prev"),
        r"sample_data\.json: record 0 .*: prev: Field required",
    ),
    "no name of a scene": ("scene", without("name"), r"scene\.json: record 0 .*: name: Field"),
    "another channel": (
        "sensor",
        lambda rs: [r.update(channel=r["channel"].lower()) for r in rs] and None,
        r"6 of 6 keyframes lack a sensor.* sensor\.json has the channels cam_back, cam_back_left",
    ),
    "no pose": (
        "ego_pose",
        first(translation=None),
        r"ego_pose\.json: record 0 .*: translation: .* got None\. 1 of",
    ),
    "half a pose": ("ego_pose", first(translation=[1, 2]), r"record 0 .*: translation\.2: Field"),
    "a pose that is NaN": (
        "ego_pose",
        first(translation=[math.nan, 0, 0]),
        r"(sample \w{32}, \w+: no ego pose \(ego_pose\.json: .* 1 of 6 frames|pose of LiDAR scan)",
    ),
    "a pose that does not rotate": (
        "ego_pose",
        every(rotation=[0, 0, 0, 0]),
        r"no ego pose .*unit quaternion.* 6 of 6 frames",
    ),
    "a mounting that is NaN": (
        "calibrated_sensor",
        every(rotation=[math.nan] * 4),
        r"no mounting \(calibrated_sensor\.json",
    ),
    "no intrinsics": (
        "calibrated_sensor",
        without("camera_intrinsic"),
        r"CAM_\w+: no intrinsics \(calibrated_sensor\.json: camera_intrinsic\)",
    ),
    "intrinsics of another shape": (
        "calibrated_sensor",
        every(camera_intrinsic=[1, 2]),
        r"calibrated_sensor\.json|the tables cannot be read: could not broadcast",
    ),
    "a scan of nobody's pose": (
        "sample_data",
        first(ego_pose_token="0" * 32),
        r"sample_data\.json: record 0 .*ego_pose_token '0{32}' is not in ego_pose\.json\. 1 of",
    ),
    "time in words": ("sample", first(timestamp="noon"), r"record 0 .*: timestamp: .*got 'noon'"),
    "numbers for records": ("sample", lambda _: [1, 2], r"sample\.json: record 0 .*got 1\. 2 of 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_record_that_cannot_be_used_is_named(name: str, world: Path, select: Select) -> None:
    table, change, message = REFUSED[name]
    edit(world, table, change)
    with pytest.raises(DataError, match=message) as caught:
        select(world)
    assert str(world / VERSION) in str(caught.value)


def test_a_table_that_is_no_text_is_named(world: Path, select: Select) -> None:
    (world / VERSION / "sample.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"sample\.json: not readable as JSON"):
        select(world)


@pytest.mark.parametrize(
    "change",
    [every(num_lidar_pts=0, num_radar_pts=0), without("num_lidar_pts", "num_radar_pts")],
    ids=["zero", "absent"],
)
def test_boxes_whose_points_nobody_counted_are_kept_and_said(
    change: Callable[[Records], None],
    world: Path,
    select: Select,
    caplog: pytest.LogCaptureFixture,
) -> None:
    edit(world, "sample_annotation", change)
    frames = select(world)
    assert all(frames.seen(token).all() for token in frames.tokens)
    assert "boxes has a counted LiDAR or radar point" in caplog.text
    caplog.clear()
    select(world)  # once a process is enough
    assert not caplog.text


def test_a_dataset_with_counts_keeps_its_rule(tiny_frames: Frames) -> None:
    assert any(not tiny_frames.seen(token).all() for token in tiny_frames.tokens)


def test_radar_counts_may_be_missing(world: Path, tiny_frames: Frames, select: Select) -> None:
    edit(world, "sample_annotation", without("num_radar_pts"))
    frames = select(world)
    for token in frames.tokens:
        np.testing.assert_array_equal(frames.seen(token), frames.labels(token)[2] > 0)
    assert sum(frames.seen(t).sum() for t in frames.tokens) > 0


@pytest.mark.parametrize(
    "values",
    [
        {"size": [0, 1, 2]},
        {"size": [1, math.nan, 2]},
        {"translation": [math.nan, 0, 0]},
        {"rotation": [0, 0, 0, 0]},
    ],
    ids=repr,
)
def test_boxes_that_are_none_are_left_out_and_counted(
    values: dict[str, Any],
    world: Path,
    tiny_frames: Frames,
    select: Select,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = world / VERSION / "sample_annotation.json"
    records = json.loads(path.read_text())
    records[0].update(values)
    path.write_text(json.dumps(records))
    frames = select(world)
    number = len(tiny_frames.index["box_values"])
    assert len(frames.index["box_values"]) == number - 1
    assert np.isfinite(frames.index["box_values"]).all()
    said = rf"1 of {number} boxes are left out, .* first annotation {records[0]['token']}"
    assert re.search(said, caplog.text)


def test_annotations_of_no_known_class_are_said(
    world: Path, select: Select, caplog: pytest.LogCaptureFixture
) -> None:
    edit(world, "category", every(name="car"))
    assert not select(world).has_labels
    assert "annotations is of the ten detection classes; category.json has car" in caplog.text


def test_scenes_of_one_name_stay_apart(world: Path, tiny_frames: Frames, select: Select) -> None:
    edit(world, "scene", every(name="scene-0916"))
    frames = select(world)
    assert len(set(frames.scenes)) == 2
    assert {scene.partition("@")[0] for scene in frames.scenes} == {"scene-0916"}
    together = {
        frozenset(t for t, s in zip(frames.tokens, frames.scenes, strict=True) if s == one)
        for one in set(frames.scenes)
    }
    assert together == {frozenset(tiny_frames.tokens[:3]), frozenset(tiny_frames.tokens[3:])}
    for start in (0, 3):
        rows = range(start, start + 3)
        assert [frames.previous_row(row, 1) for row in rows] == [start, start, start + 1]
    assert len(select(world, scenes=["scene-0916"])) == 6
    assert len(select(world, scenes=[frames.scenes[0]])) == 3
    assert len(select(world, split="mini_val")) == 6  # scene-0916 is one of its two


WRONG: list[Any] = [
    None, "x", -1, 10**30, 1e300, math.nan, [], {}, [[]], True, [None], [1, 2], "0" * 32, "",
    [[1, 2], [3, 4]],
]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_whatever_a_record_says_the_answer_is_a_message(
    seed: int, world: Path, select: Select
) -> None:
    random = np.random.default_rng(seed)
    names = [name for name in TABLES if name not in ("visibility", "attribute", "log")]
    path = world / VERSION / f"{random.choice(names)}.json"
    records = json.loads(path.read_text())
    chosen = records if seed % 3 else [records[random.integers(len(records))]]
    field = list(chosen[0])[random.integers(len(chosen[0]))]
    value = WRONG[random.integers(len(WRONG))]
    for record in chosen:
        record[field] = value
    path.write_text(json.dumps(records))
    try:
        frames = select(world)
    except BevcaskError:
        return
    for array in ("box_values", "frame_lidar_to_global", "calibration_intrinsics"):
        assert np.isfinite(frames.index[array]).all()

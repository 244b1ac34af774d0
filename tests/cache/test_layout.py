"""Rows, shards and what may be stored."""

import numpy as np
import pytest

from bevcask.cache import FrameTable, Layout
from bevcask.errors import DataError, TargetMismatchError
from bevcask.fingerprint import differences
from bevcask.targets.spec import Region, TapInfo, TargetSpec
from cache.example import FINGERPRINT, GRID, SPECS, frame_table

COLUMNS = ("tokens", "scenes", "timestamps", "lidar_to_global")


def test_every_scene_starts_on_a_shard_boundary() -> None:
    layout = Layout(frame_table((3, 2, 1)), SPECS, shard_rows=2)
    assert layout.num_shards == 4
    assert layout.valid.tolist() == [True, True, True, False, True, True, True, False]
    assert [list(layout.frames_of(shard)) for shard in range(4)] == [[0, 1], [2], [3, 4], [5]]
    rows = [layout.row_of[token] for token in layout.frames.tokens]
    assert rows == [0, 1, 2, 4, 5, 6]


def test_rows_of_many_tokens_at_once() -> None:
    layout = Layout(frame_table((3, 2, 1)), SPECS, shard_rows=2)
    tokens = [*reversed(layout.frames.tokens), "f" * 32, "no token"]
    assert layout.rows_of(tokens).tolist() == [6, 5, 4, 2, 1, 0, -1, -1]
    assert dict(layout.row_of) == dict(zip(layout.frames.tokens, [0, 1, 2, 4, 5, 6], strict=True))
    assert layout.row_of.get("f" * 32) is None


@pytest.mark.parametrize("num_frames", [(1,), (8, 8), (1, 9, 17, 2), (3, 1, 1, 1, 1, 40)])
@pytest.mark.parametrize("shard_rows", [1, 3, 8])
def test_rows_are_those_of_a_loop(num_frames: tuple[int, ...], shard_rows: int) -> None:
    frames = frame_table(num_frames)
    layout = Layout(frames, SPECS, shard_rows)
    row, expected, starts = 0, [], []
    for number, length in enumerate(num_frames):
        row += -row % shard_rows if number else 0
        starts.append(row // shard_rows)
        expected += list(range(row, row + length))
        row += length
    assert layout.rows_of(list(frames.tokens)).tolist() == expected
    assert layout.num_rows == row + -row % shard_rows
    assert np.flatnonzero(layout.valid).tolist() == expected
    assert layout.scene_starts == starts
    for shard in range(layout.num_shards):
        own = [f for f, place in enumerate(expected) if place // shard_rows == shard]
        assert list(layout.frames_of(shard)) == own
        assert layout.frames_per_shard[shard] == len(own)
        assert layout.tokens_of(shard) == [frames.tokens[f] for f in own]
        assert layout.scene_start(shard) == max(start for start in starts if start <= shard)


def test_pad_rows_are_zero() -> None:
    layout = Layout(frame_table((3, 2, 1)), SPECS, shard_rows=2)
    assert layout.per_row(layout.frames.timestamps).tolist() == [
        1000.5, 1001.5, 1002.5, 0, 1003.5, 1004.5, 1005.5, 0,
    ]  # fmt: skip


def test_arrays_of_all_kinds() -> None:
    layout = Layout(frame_table((3, 2, 1)), SPECS, shard_rows=2)
    found = {array.key: (array.shape, array.dtype, array.dims) for array in layout.arrays}
    assert found["targets/bev.neck/values"] == (
        (8, 3, 6, 8), "uint8", ("row", "channel", "y", "x"),
    )  # fmt: skip
    assert found["targets/bev.neck/scale"] == ((8, 3), "float32", ("row", "channel"))
    assert found["targets/head.heatmap/region"] == ((8, 6), "uint8", ("row", "byte"))
    assert found["boxes/head.boxes/count"] == ((8,), "int64", ("row",))
    assert found["queries/query.last/scale"] == ((8, 3), "float32", ("row", "channel"))
    assert found["targets/image.fpn0/values"][0] == (8, 2, 3, 4, 5)
    assert "targets/image.fpn0/scale" not in found
    assert list(found) == sorted(found)


def test_camera_and_channel_keep_their_own_scale() -> None:
    spec = TargetSpec(TapInfo("image.fpn0", "image_feature", (2, 3, 4, 5)), "int8")
    scale = Layout(frame_table(), [spec], 2).arrays[0]
    assert (scale.key, scale.shape) == ("targets/image.fpn0/scale", (8, 2, 3))
    assert scale.dims == ("row", "camera", "channel")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": ["0" * 31 + "g"] * 6}, "not 32 hex digits"),
        ({"tokens": ["0" * 32] * 6}, "5 tokens occur twice"),
        ({"scenes": ["a", "b", "a", "b", "b", "b"]}, "do not follow each other"),
        ({"timestamps": np.zeros(5)}, "6 tokens, 6 scenes, timestamps"),
        ({"lidar_to_global": np.zeros((6, 3, 4))}, "expected (6, 4, 4), got (6, 3, 4)"),
    ],
)
def test_frames_that_cannot_be_addressed(change: dict[str, object], message: str) -> None:
    sound = frame_table()
    columns = {name: getattr(sound, name) for name in COLUMNS}
    with pytest.raises(DataError) as caught:
        FrameTable(**{**columns, **change})
    assert message in str(caught.value)


def test_no_frames() -> None:
    with pytest.raises(DataError, match="no frames"):
        FrameTable([], [], np.zeros(0), np.zeros((0, 4, 4)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TargetSpec(TapInfo("a/b", "dense_bev", (3, 6, 8), GRID), "int8"), "name: expected"),
        (TargetSpec(TapInfo("a", "cloud", (3,)), "int8"), "kind: expected one of dense_bev"),
        (TargetSpec(TapInfo("a", "dense_bev", (3, 6), GRID), "int8"), "shape: expected"),
        (TargetSpec(TapInfo("a", "box_set", (5, 11)), "float16"), "stored as float32"),
        (TargetSpec(TapInfo("a", "dense_bev", (3, 6, 8), GRID), "uint8"), "use int8"),
        (
            TargetSpec(TapInfo("a", "query_set", (5, 3)), "int8", Region("confident", 0.1)),
            "needs a BEV map",
        ),
    ],
)
def test_targets_that_cannot_be_stored(spec: TargetSpec, message: str) -> None:
    with pytest.raises(TargetMismatchError) as caught:
        Layout(frame_table(), [spec], 2)
    assert message in str(caught.value)
    assert repr(spec.name) in str(caught.value)


def test_a_name_stands_for_one_target() -> None:
    with pytest.raises(TargetMismatchError, match="named twice"):
        Layout(frame_table(), [SPECS[0], SPECS[0]], 2)


def test_identity_holds_selection_targets_and_schema() -> None:
    frames = frame_table()
    tree = Layout(frames, SPECS, 2).identity(FINGERPRINT)
    assert tree["selection"]["tokens"] == list(frames.tokens)
    assert tree["targets"]["bev.neck"]["codec"] == "uint8"
    assert tree["teacher"] == FINGERPRINT["teacher"]
    other = Layout(frames, list(reversed(SPECS)), 2).identity(FINGERPRINT)
    assert differences(tree, other) == []
    longer = Layout(frames, SPECS, 3).identity(FINGERPRINT)
    assert differences(tree, longer) == [("shard_rows", 2, 3)]

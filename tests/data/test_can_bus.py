"""The network is told where the ego car is as the released loader tells it, slips included."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bevcask.data.can_bus import CanBus, mention_can_bus
from bevcask.data.index.arrays import FrameIndex
from bevcask.data.index.frames import Frames
from bevcask.data.samples import SampleReader, collate
from bevcask.detectors.base import Inputs
from bevcask.errors import DataError

# Ego poses of two keyframes of scene-0916 and what the released dataset class made of them.
RELEASED = [
    (
        [698.884285628757, 1784.8536030844143, 0.0],
        [0.14577344713407092, 0.02250726744900261, 0.0038097561033429107, -0.9890546045497501],
        [3.434236654852554, 196.7672661721773],
    ),
    (
        [696.9786896115409, 1784.493168150669, 0.0],
        [0.04827121793530173, 0.015147180615975437, 0.001609445097046418, -0.9987181094407516],
        [3.2381571716904753, 185.53273933788375],
    ),
]


class OneFrame:
    """An index of one frame with a pose of our choice and no CAN bus."""

    root = Path("nowhere")
    titles = ("scene-0916",)

    def __init__(self, position: list[float], quaternion: list[float]) -> None:
        self.arrays = {
            "frame_ego_pose": np.array([[[*position, *quaternion]]]),
            "frame_scene": np.zeros(1, np.int32),
            "frame_time": np.zeros(1, np.int64),
        }

    def __getitem__(self, name: str) -> Any:
        return self.arrays[name]


@pytest.mark.parametrize("frame", [0, 1])
def test_pose_and_yaw_are_those_of_the_release(frame: int) -> None:
    position, quaternion, yaw = RELEASED[frame]
    index: Any = OneFrame(position, quaternion)
    values = CanBus(index).values(0)
    assert values[:7].tolist() == position + [quaternion[0]] * 4
    assert not values[7:16].any()
    np.testing.assert_allclose(values[16:], yaw, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("degrees", "told"), [(0, 0), (90, 90), (180, 180), (-90, 270), (-1, 359)])
def test_yaw_is_never_negative(degrees: float, told: float) -> None:
    half = np.radians(degrees) / 2
    index: Any = OneFrame([0, 0, 0], [float(np.cos(half)), 0, 0, float(np.sin(half))])
    values = CanBus(index).values(0)
    np.testing.assert_allclose(values[16:], [np.radians(told), told], atol=1e-12)


def message(microseconds: int, number: float) -> dict[str, Any]:
    return {
        "accel": [number, 0.1, 9.8],
        "orientation": [1, 0, 0, 0],
        "pos": [1.0, 2.0, 0.0],
        "rotation_rate": [0.2, 0.3, number],
        "utime": microseconds,
        "vel": [number, 0.0, 0.0],
    }


Write = Callable[[list[dict[str, Any]]], FrameIndex]


@pytest.fixture
def write(tiny_frames: Frames, tmp_path: Path) -> Write:
    """Give the first scene of the tiny world CAN messages: `write(messages)`."""

    def expansion(messages: list[dict[str, Any]]) -> FrameIndex:
        known = tiny_frames.index
        (tmp_path / "can_bus").mkdir(exist_ok=True)
        path = tmp_path / "can_bus" / f"{known.titles[0]}_pose.json"
        path.write_text(json.dumps(messages))
        return FrameIndex(tmp_path, known.version, known.folder)

    return expansion


def test_the_first_message_after_a_frame_is_read_or_the_last(write: Write) -> None:
    times = write([])["frame_time"][:3].tolist()
    index = write([message(times[0], 1), message(times[0] + 1, 2), message(times[1] + 5, 3)])
    told = CanBus(index)
    assert [told.values(row)[7] for row in range(3)] == [2, 3, 3]
    assert told.values(0)[7:16].tolist() == [2, 0.1, 9.8, 0.2, 0.3, 2, 2, 0, 0]


def test_scenes_without_messages_are_counted_and_mentioned(
    write: Write, tiny_frames: Frames, caplog: pytest.LogCaptureFixture
) -> None:
    index = write([message(0, 1)])
    told = pickle.loads(pickle.dumps(CanBus(index)))  # into a loader worker
    assert told.without(tiny_frames.rows) == 3
    assert not told.values(3)[7:16].any()
    assert CanBus(write([])).without(tiny_frames.rows) == 6
    mention_can_bus(write([message(0, 1)]), tiny_frames.rows)
    assert "3 of 6 frames have no CAN bus messages" in caplog.text


@pytest.mark.parametrize(
    "broken",
    [
        [{"utime": 1}],
        [message(1, 1) | {"vel": [1.0]}],
        [message(1, 1) | {"vel": ["fast", 0, 0]}],
        [message(1, float("nan"))],
        {"utime": 1},
    ],
)
def test_a_damaged_file_is_named(write: Write, broken: Any) -> None:
    with pytest.raises(DataError, match=r"_pose\.json: .*Unpack"):
        CanBus(write(broken)).values(0)


def test_a_file_that_is_no_json_is_named(write: Write, tmp_path: Path) -> None:
    index = write([])
    (tmp_path / "can_bus" / f"{index.titles[0]}_pose.json").write_text("[")
    with pytest.raises(DataError, match=r"_pose\.json: cannot be read"):
        CanBus(index).values(0)


def test_batches_carry_it_where_it_is_asked_for(tiny_frames: Frames) -> None:
    told, token = CanBus(tiny_frames.index), tiny_frames.tokens[2]
    reader = SampleReader(tiny_frames, Inputs(history=1, memory=True, can_bus=True), None, 0)
    batch = collate([reader.read(token)])
    for shown, row in ((batch, 2), (batch.history[0], 1)):
        assert isinstance(shown.can_bus_B18, Tensor)
        assert shown.can_bus_B18.dtype == torch.float64
        assert shown.can_bus_B18[0].tolist() == told.values(row).tolist()
    there = batch.to("meta")
    for shown in (there, *there.history):
        assert shown.can_bus_B18 is not None
        assert shown.can_bus_B18.device == shown.bev_aug_B44.device == torch.device("meta")
    silent = SampleReader(tiny_frames, Inputs(history=1, memory=True), None, 0)
    assert collate([silent.read(token)]).can_bus_B18 is None


def test_what_a_reader_is_told_is_part_of_its_identity(write: Write, tiny_frames: Frames) -> None:
    assert "can_bus" not in tiny_frames.identity()
    zeros = tiny_frames.identity(can_bus=True)["can_bus"]
    there = Frames(write([message(0, 1)]), tiny_frames.rows).identity(can_bus=True)["can_bus"]
    other = Frames(write([message(0, 2)]), tiny_frames.rows).identity(can_bus=True)["can_bus"]
    assert (zeros["frames_without"], there["frames_without"]) == (6, 3)
    assert len({zeros["values"], there["values"], other["values"]}) == 3

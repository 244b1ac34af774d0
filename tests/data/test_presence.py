"""Selections of which not everything was downloaded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bevcask.data.index.frames import Frames
from bevcask.data.presence import look, readable_frames
from bevcask.detectors.base import Inputs
from bevcask.errors import DataError

Select = Callable[..., Frames]
CAMERAS = Inputs(image_size_HW=(64, 128))
LIDAR = Inputs(num_sweeps=3)


def lose(frames: Frames, token: str, sensor: int | None = None) -> Path:
    """Remove a camera's image, or the scan of a frame."""
    index, row = frames.index, frames.row(token)
    if sensor is None:
        path = frames.root / index["scan_path"][frames.scans(token, 1)[0]].decode()
    else:
        path = frames.root / index["frame_image"][row, sensor].decode()
    path.unlink()
    return path


def test_a_whole_selection_is_the_selection_itself(tiny_frames: Frames) -> None:
    assert readable_frames(tiny_frames, CAMERAS, "dataset") is tiny_frames
    assert look(tiny_frames, LIDAR).whole_scenes == sorted(set(tiny_frames.scenes))


def test_scenes_that_are_there_are_named(world_copy: Path, select: Select) -> None:
    frames = select(world_copy)
    lost = lose(frames, frames.tokens[1], 4)
    found = look(frames, CAMERAS)
    assert found.lacking == {frames.tokens[1]}
    assert found.whole_scenes == [frames.scenes[-1]]
    with pytest.raises(DataError) as caught:
        readable_frames(frames, CAMERAS, "dataset", "raise")
    assert f"{lost}: missing, of frame {frames.tokens[1]}; 1 files of 1 of 6" in str(caught.value)
    assert f"1 of 2 scenes are whole: {frames.scenes[-1]}." in str(caught.value)
    assert "dataset.scenes or dataset.limit, or leave the others out: on_missing=skip." in str(
        caught.value
    )
    assert readable_frames(frames, LIDAR, "dataset") is frames  # it reads no image


def test_frames_without_files_are_skipped_where_that_is_asked(
    world_copy: Path, select: Select, caplog: pytest.LogCaptureFixture
) -> None:
    frames = select(world_copy)
    lose(frames, frames.tokens[4])
    left = readable_frames(frames, LIDAR, "dataset", "skip")
    assert list(left.tokens) == [t for t in frames.tokens if t != frames.tokens[4]]
    assert "Frames without a file are skipped" in caplog.text


def test_a_sweep_that_is_gone_counts(world_copy: Path, select: Select) -> None:
    frames = select(world_copy)
    sweep = frames.scans(frames.tokens[2], 3)[1]
    (frames.root / frames.index["scan_path"][sweep].decode()).unlink()
    assert look(frames, LIDAR).lacking == {frames.tokens[2]}
    shutil.rmtree(frames.root / "sweeps")  # a copy of keyframes: they stand in for sweeps
    assert not look(select(world_copy), LIDAR).missing


def test_the_earlier_frame_of_two_counts(world_copy: Path, select: Select) -> None:
    frames = select(world_copy)
    lose(frames, frames.tokens[0], 0)
    assert look(frames, CAMERAS).lacking == {frames.tokens[0]}
    two = Inputs(image_size_HW=(64, 128), history=1)
    assert look(frames, two).lacking == set(frames.tokens[:3])


def test_nothing_left_cannot_be_skipped(world_copy: Path, select: Select) -> None:
    frames = select(world_copy)
    shutil.rmtree(world_copy / "samples")
    with pytest.raises(DataError, match="0 of 2 scenes are whole") as caught:
        readable_frames(frames, CAMERAS, "val", "skip")
    assert "on_missing" not in str(caught.value)

"""What a small extraction tells of a long one."""

from pathlib import Path

import pytest

from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.extraction.timing import Timing, _rate, probed


def timing(**given: float) -> Timing:
    values = {
        "start": 10.0, "per_frame": 0.5, "end": 2.0, "teacher": 0.4, "read": 0.1, "stored": 1e6,
    } | given  # fmt: skip
    return Timing(frames=8, shares={"device": 0.7, "loader": 0.2, "writer": 0.1}, **values)


def test_the_rate_is_that_of_the_later_frames() -> None:
    """Ten seconds come once, the first batches take twice as long, the others half a second."""
    ticks = [
        (10.0 + 4.0 * (n + 1) if n < 2 else 18.0 + 2.0 * (n - 1), 4 * (n + 1)) for n in range(10)
    ]
    start, per_frame = _rate(ticks, 40)
    assert per_frame == pytest.approx(0.5)
    assert start == pytest.approx(ticks[-1][0] - 40 * 0.5)


def test_views_are_passes_of_the_same_frame() -> None:
    """Forty frames, each clean and in one view: eighty passes of half a second."""
    ticks = [(0.5 * done, done) for done in range(4, 84, 4)]
    assert _rate(ticks, 40) == (pytest.approx(0), pytest.approx(1.0))


def test_seconds_by_hand() -> None:
    found = timing()
    assert found.seconds(100) == pytest.approx(10 + 2 + 50)
    assert found.seconds(100, 1e6) == pytest.approx(10 + 2 + 100)  # the disk takes a frame a second
    assert found.seconds(100, 1e9) == found.seconds(100)
    assert found.told(100, 1e6)["bound_by"] == "disk"
    assert found.told(100, 1e9)["bound_by"] == "device"


def test_it_pays_where_the_teacher_takes_longer_than_reading() -> None:
    """Extraction 62 s, an epoch saves 100 x 0.3 s: the third is the first that is ahead."""
    assert timing().pays_after(100) == pytest.approx(62 / 30)
    assert timing().told(100)["pays_from_epoch"] == 3
    assert timing(read=0.4).told(100)["pays_from_epoch"] is None


def test_frames_are_of_whole_scenes_spread(tiny_world: Path) -> None:
    dataset = DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="all")
    frames = Frames.select(dataset)
    assert len(frames) == 6
    assert list(probed(frames, 3).tokens) == list(frames.tokens)[:3]
    assert list(probed(frames, 4).tokens) == list(frames.tokens)[:4]
    assert list(probed(frames, 60).tokens) == list(frames.tokens)

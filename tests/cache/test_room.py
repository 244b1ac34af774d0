"""A disk that is too small is named early, and by how much."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from bevcask.cache import room
from bevcask.errors import DiskFullError


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with one gigabyte left."""
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000_000))


@pytest.mark.usefixtures("free")
def test_what_fits_is_not_mentioned(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    room.check_bound(str(tmp_path / "not/yet/there.zarr"), 1_000_000_000)
    room.check_projection(str(tmp_path), 1_000_000, 1, 1000)
    assert caplog.text == ""


@pytest.mark.usefixtures("free")
def test_a_bound_above_the_disk_warns(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with caplog.at_level(logging.WARNING):
        room.check_bound(str(tmp_path), 20_000_000_000)
    assert "at most 20.000 GB, the disk has 1.000 GB free: 19.000 GB less" in caplog.text


@pytest.mark.usefixtures("free")
def test_a_bound_far_above_the_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match=r"Even 5% of it is 0.500 GB more"):
        room.check_bound(str(tmp_path), 30_000_000_000)


@pytest.mark.usefixtures("free")
def test_a_projection_above_the_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError) as caught:
        room.check_projection(str(tmp_path), 8_000_000, 4, 700)
    for words in (
        "700 more frames of about 2.00 MB need 1.400 GB",
        "0.400 GB short",
        "same command",
    ):
        assert words in str(caught.value)


def test_remote_stores_have_no_end() -> None:
    assert room.free_bytes("s3://bucket/cache.zarr") is None
    room.check_bound("memory://cache", 10**18)
    room.check_projection("memory://cache", 10**18, 1, 1)


def test_a_real_disk(tmp_path: Path) -> None:
    free = room.free_bytes(f"file://{tmp_path}/x.zarr")
    assert free is not None
    assert free > 0

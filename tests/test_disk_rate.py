"""How fast a disk is: the last windows count, and nothing is left there."""

from pathlib import Path

import pytest

from bevcask import disk_rate as module
from bevcask.disk_rate import disk_rate, settled


class Disk:
    """A clock that a block moves on by so many seconds each, the last for ever."""

    def __init__(self, seconds: list[float]) -> None:
        self._seconds, self._now = seconds, 0.0

    def sync(self, place: Path) -> None:
        self._now += self._seconds.pop(0) if len(self._seconds) > 1 else self._seconds[0]

    def perf_counter(self) -> float:
        return self._now


def on(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sync", disk.sync)
    monkeypatch.setattr(module.time, "perf_counter", disk.perf_counter)
    monkeypatch.setattr(module, "_BLOCK", 1000)


def test_a_fast_beginning_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(Disk([0.01] * 60 + [0.1] * 3 + [1.0]), monkeypatch)
    found = disk_rate(tmp_path / "later" / "c.zarr", longest=100)
    assert found.bytes_per_second == pytest.approx(1000)
    assert found.settled
    assert found.folder == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_what_never_settles_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(Disk([0.5, 1.0] * 50), monkeypatch)
    found = disk_rate(tmp_path, longest=10)
    assert not found.settled
    assert 1000 <= found.bytes_per_second <= 2000


def test_a_nearly_full_disk_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(Disk([0.1]), monkeypatch)
    written: list[int] = []
    tick = module.sync

    def sync(place: Path) -> None:
        tick(place)
        written.append(place.stat().st_size)

    monkeypatch.setattr(module, "sync", sync)
    usage = type("Usage", (), {"free": 25_000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    disk_rate(tmp_path)
    assert max(written) <= 2500


def test_rates_settle_when_three_agree() -> None:
    assert settled([5.0, 1.0, 1.05, 1.02])
    assert not settled([1.0, 1.0])
    assert not settled([1.0, 1.0, 1.2])

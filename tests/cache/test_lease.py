"""Double starts, dead holders, and two that claim at once."""

import errno
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bevcask.cache import lease, verify
from bevcask.cache.files import Files
from bevcask.cache.lease import Lease, holding_small_files
from bevcask.cache.parts import Part
from bevcask.errors import CacheBusyError, DiskFullError
from cache.example import begin, build, encoded
from cache.test_writer import fill_disk_after


def lease_files(root: Path) -> list[Path]:
    return list((root / "leases").glob("*")) if (root / "leases").exists() else []


def leave_lease(root: Path, **changes: object) -> Path:
    """Leave what a process leaves that was killed while it held all shards."""
    held = Lease(Files(str(root)), range(4), "part=1/1")
    held.claim()
    (path,) = lease_files(root)
    content = json.loads(path.read_text())
    held.release()
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**content, **changes}))
    return path


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_start_of_the_same_shards_is_refused(tmp_path: Path) -> None:
    with begin(tmp_path, part=Part(1, 2)) as first:
        first.write(0, encoded(first, 0))
        half = tmp_path / "targets/bev.neck/values/c.1.0.0.0.abc.partial"
        half.write_bytes(b"being written by the first")
        with pytest.raises(CacheBusyError) as caught, begin(tmp_path, part=Part(1, 2)):
            pass
        assert half.exists()
        half.unlink()
    (path,) = [word for word in str(caught.value).split() if "/leases/" in word]
    for words in (
        "shards 0 to 1 are being filled",
        f"process {os.getpid()} on host {platform.node()} since 20",
        "(part=1/2)",
        "60 s after its last sign of life",
        f"delete {tmp_path}/leases/",
    ):
        assert words in str(caught.value)
    assert path.endswith(".json")
    assert lease_files(tmp_path) == []
    assert not (tmp_path / "leases").exists()


@pytest.mark.parametrize(("other", "refused"), [((1, 3), True), ((2, 2), False), ((1, 1), True)])
def test_other_cuts_that_overlap_are_refused(
    tmp_path: Path, other: tuple[int, int], refused: bool
) -> None:
    with begin(tmp_path, part=Part(1, 2)):
        second = begin(tmp_path, part=Part(*other))
        if refused:
            with pytest.raises(CacheBusyError, match=r"shards 0 to 1 are .*part=1/2"):
                second.__enter__()
        else:
            with second:
                assert len(lease_files(tmp_path)) == 2


def test_a_dead_process_of_this_machine_is_seen_at_once(tmp_path: Path) -> None:
    begin(tmp_path)
    left = leave_lease(tmp_path, pid=dead_pid())
    build(tmp_path)
    assert not left.exists()
    assert verify(str(tmp_path)).ok


def test_the_same_pid_elsewhere_is_not_ours_to_judge(tmp_path: Path) -> None:
    begin(tmp_path)
    leave_lease(tmp_path, pid=dead_pid(), space="another boot", host="far")
    with pytest.raises(CacheBusyError, match="on host far"), begin(tmp_path):
        pass


def test_silence_ends_a_lease(tmp_path: Path) -> None:
    begin(tmp_path)
    silent = time.time() - lease.STALE_SECONDS
    left = leave_lease(tmp_path, space="another boot", renewed=silent + 5)
    with pytest.raises(CacheBusyError, match=r"\(5\d s ago\)"), begin(tmp_path):
        pass
    left.write_text(json.dumps({**json.loads(left.read_text()), "renewed": silent - 1}))
    build(tmp_path)
    assert not left.exists()


UNBELIEVABLE = {
    "empty": "",
    "garbage": "\0" * 100,
    "deep": "[" * 5000,
    "a list": "[1, 2]",
    "one more key": {"colour": "red"},
    "one key less": {"pid": ...},
    "pid is text": {"pid": "1"},
    "pid is a process group": {"pid": -1},
    "pid is huge": {"pid": 10**30},
    "first is null": {"first": None},
    "renewed is not a number": {"renewed": "NaN"},
    "renewed never": {"renewed": float("inf")},
    "from the future": {"renewed": time.time() + 1e6},
}


def leave_unbelievable(root: Path, name: str, age: float) -> Path:
    """Leave a lease nobody can believe, written so many seconds ago (in the future if negative)."""
    content = UNBELIEVABLE[name]
    path = leave_lease(root, space="another boot")
    if isinstance(content, dict):
        whole = {**json.loads(path.read_text()), **content}
        content = json.dumps({key: value for key, value in whole.items() if value is not ...})
    path.write_text(content)
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.mark.parametrize("name", UNBELIEVABLE)
def test_an_old_lease_nobody_can_believe_holds_nobody_up(tmp_path: Path, name: str) -> None:
    begin(tmp_path)
    left = leave_unbelievable(tmp_path, name, age=lease.UNREADABLE_SECONDS + 1)
    began = time.monotonic()
    build(tmp_path)
    assert time.monotonic() - began < lease.UNREADABLE_SECONDS / 2
    assert not left.exists()
    assert verify(str(tmp_path)).ok


@pytest.mark.parametrize("age", [0.0, -1e6])
@pytest.mark.parametrize("name", ["empty", "one more key", "from the future"])
def test_a_young_one_is_waited_for_aloud_and_not_for_ever(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    age: float,
) -> None:
    begin(tmp_path)
    left = leave_unbelievable(tmp_path, name, age)
    monkeypatch.setattr(lease, "UNREADABLE_SECONDS", 0.25)
    monkeypatch.setattr(lease, "_PAUSE", 0.02)
    monkeypatch.setattr(lease, "_VOICE_SECONDS", 0.03)
    with caplog.at_level("INFO"):
        build(tmp_path)
    assert not left.exists()
    said = [record.message for record in caplog.records if "waiting for" in record.message]
    assert len(said) > 1
    assert f"waiting for the lease leases/{left.name}, which cannot be read" in said[0]
    assert re.search(r"\d+ s so far, \d+ s at most", said[0])


def test_a_store_that_tells_no_times_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files("memory://lease/untimed")
    files.put("leases/a.json", b"")
    monkeypatch.setattr(lease, "UNREADABLE_SECONDS", 0.2)
    monkeypatch.setattr(Files, "modified", lambda *_: None)
    began = time.monotonic()
    with Lease(files, range(2), "x"):
        assert time.monotonic() - began > 0.2


def test_what_is_no_lease_of_ours_is_never_removed(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    folder.mkdir()
    foreign = {folder / name for name in ("contract.pdf", "a.json", "notes.json.partial")}
    for path in foreign:
        path.write_bytes(b"somebody's")
        os.utime(path, (0, 0))
    with Lease(Files(str(tmp_path)), range(2), "x"):
        pass
    assert set(folder.iterdir()) == foreign


def test_whoever_waits_for_a_live_process_gives_up_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = Files(str(tmp_path))
    monkeypatch.setattr(lease, "WAIT_SECONDS", 0.25)
    monkeypatch.setattr(lease, "_PAUSE", 0.02)
    monkeypatch.setattr(lease, "_VOICE_SECONDS", 0.03)
    with (
        holding_small_files(files, "sealing"),
        caplog.at_level("INFO"),
        pytest.raises(CacheBusyError, match=rf"process {os.getpid()} on host .*\(sealing\)"),
        holding_small_files(files, "creating it"),
    ):
        pass
    said = [record.message for record in caplog.records]
    assert len(said) > 1
    assert f"waiting for process {os.getpid()} on host {platform.node()}" in said[0]
    assert lease_files(tmp_path) == []


@pytest.mark.parametrize("when", ["written", "renamed"])
def test_a_full_disk_leaves_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    begin(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if when == "renamed":
            patch.setattr(Path, "replace", full)
        else:
            fill_disk_after(patch, tmp_path, 10)
        with pytest.raises(DiskFullError):
            begin(tmp_path)
        with pytest.raises(DiskFullError):
            Lease(Files(str(tmp_path)), range(2), "x").claim()
    assert not (tmp_path / "leases").exists()
    build(tmp_path)


def test_a_half_written_lease_holds_nobody_up_and_goes(tmp_path: Path) -> None:
    begin(tmp_path)
    whole = leave_lease(tmp_path, pid=dead_pid())
    empty, written = (whole.with_name(f"{whole.name}.{digit * 32}.partial") for digit in "ab")
    whole.rename(written)
    empty.touch()
    build(tmp_path)
    assert lease_files(tmp_path) == [empty]  # of a process that may be alive
    os.utime(empty, (0, 0))
    with Lease(Files(str(tmp_path)), range(2), "x"):
        pass
    assert lease_files(tmp_path) == []


def test_a_writer_that_cannot_renew_its_lease_stops_before_it_can_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EndpointConnectionError(Exception):
        """Drivers raise what they like: that of S3 derives from no OSError."""

    failing = threading.Event()
    real = Files.put_volatile

    def put(files: Files, key: str, data: bytes) -> None:
        if failing.is_set():
            raise EndpointConnectionError
        real(files, key, data)

    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(lease, "GIVE_UP_SECONDS", 0.3)
    monkeypatch.setattr(Files, "put_volatile", put)
    with Lease(Files(str(tmp_path)), range(2), "x") as held:
        failing.set()
        time.sleep(0.4)
        assert held._thread.is_alive()
        with pytest.raises(CacheBusyError, match=r"could not be renewed for .* may take over"):
            held.check()
        failing.clear()
        deadline = time.monotonic() + 10
        while held._holder.silent_seconds > 0.2:
            assert time.monotonic() < deadline
        held.check()
    assert lease.GIVE_UP_SECONDS < lease.STALE_SECONDS


def test_a_lease_is_renewed_while_its_process_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    with begin(tmp_path):
        (path,) = lease_files(tmp_path)
        first = renewed(path)
        deadline = time.monotonic() + 10
        while renewed(path) == first:
            assert time.monotonic() < deadline


def renewed(path: Path) -> float:
    return float(json.loads(path.read_text())["renewed"])  # never half written


def test_who_lost_its_lease_writes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    with begin(tmp_path) as writer:
        writer.write(0, encoded(writer, 0))
        deadline = time.monotonic() + 10
        while not writer._lease._lost:  # it may just have been written again
            for path in lease_files(tmp_path):
                path.unlink(missing_ok=True)
            assert time.monotonic() < deadline
        with pytest.raises(CacheBusyError, match=r"stood still.*another took over"):
            writer.write(1, encoded(writer, 1))
    assert begin(tmp_path).missing() == [1, 2, 3]


def test_of_many_that_claim_at_once_at_most_one_is_left(tmp_path: Path) -> None:
    files, together = Files(str(tmp_path)), threading.Barrier(6)
    inside: list[int] = []
    most: list[int] = []
    winners: list[str] = []

    def claim(number: int) -> None:
        together.wait()
        try:
            with Lease(files, range(2), str(number)):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.01)
                inside.remove(number)
                winners.append(str(number))
        except CacheBusyError:
            pass

    threads = [threading.Thread(target=claim, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most, default=0) <= 1
    assert lease_files(tmp_path) == []


def test_small_files_are_waited_for(tmp_path: Path) -> None:
    files, order = Files(str(tmp_path)), []

    def second() -> None:
        with holding_small_files(files, "second"):
            order.append("second")

    with holding_small_files(files, "first"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_leases_over_fsspec() -> None:
    files = Files("memory://lease/c")
    with Lease(files, range(2), "one"):
        with pytest.raises(CacheBusyError):
            Lease(files, range(1, 3), "two").claim()
        with Lease(files, range(2, 3), "three"):
            assert len(list(files.list("leases"))) == 2
    assert list(files.list("leases")) == []

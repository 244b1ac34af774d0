"""Double starts, dead holders, and two that claim at once."""

import json
import os
import platform
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
from bevcask.errors import CacheBusyError
from cache.example import begin, build, encoded


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


def test_a_lease_cut_off_by_a_kill_names_its_file(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases/abc.json").write_text("")
    files = Files(str(tmp_path))
    with pytest.raises(CacheBusyError, match=r"leases/abc.json cannot be read.*delete"):
        Lease(files, range(1), "x").claim()


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
    while True:
        try:
            return float(json.loads(path.read_text())["renewed"])
        except ValueError:
            continue  # being written


def test_who_lost_its_lease_writes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    with begin(tmp_path) as writer:
        writer.write(0, encoded(writer, 0))
        for path in lease_files(tmp_path):
            path.unlink()
        deadline = time.monotonic() + 10
        while not writer._lease._lost:
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

"""Kill a process at each of its file operations in turn, and run the same command again.

Leases are part of it: they are renewed all the time. A point is a moment before a file or folder is
made, written (nothing, then half of it), flushed, renamed, linked or removed.

Usage: python -m cache.sweep FOLDER build|add|repair|reuse [STRIDE]
"""

import hashlib
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr  # noqa: F401  # once, before the forks

from bevcask.cache import Encoded, FrameTable, WriteQueue, create, lease, open_cache, verify
from bevcask.cache.reader import Cache
from bevcask.cache.repair import Repairer
from bevcask.cache.reuse import reuse
from bevcask.errors import CacheIncompleteError
from bevcask.geometry import Grid
from bevcask.targets.spec import Region, TapInfo, TargetSpec

LONGEST = 60.0
_GRID = Grid.square(4, 1.0)
_SPECS = (
    TargetSpec(TapInfo("bev.neck", "dense_bev", (3, 8, 8), _GRID, nonnegative=True), "uint8"),
    TargetSpec(
        TapInfo("head.heatmap", "heatmap", (2, 8, 8), _GRID, nonnegative=True),
        "float32",
        Region("confident", 0.5),
    ),
)
_SCENES = ["a"] * 3 + ["b"] * 2


def _frames(scenes: list[str]) -> FrameTable:
    tokens = [f"{number:032x}" for number in range(len(scenes))]
    poses = np.tile(np.eye(4), (len(scenes), 1, 1))
    return FrameTable(tokens, scenes, np.arange(float(len(scenes))), poses)


def _said(cache: Cache, shard: int, lie: bool = False) -> dict[str, Encoded[Any]]:
    """Return noise that depends on the shard alone, unless a lie is told about the neck."""
    noise = np.random.default_rng(shard)
    num = len(cache.layout.frames_of(shard))
    neck = noise.integers(0, 255, (num, 3, 8, 8), np.uint8)
    return {
        "bev.neck": Encoded(neck[::-1] if lie else neck, noise.random((num, 3), np.float32)),
        "head.heatmap": Encoded(
            noise.random((num, 2, 8, 8), np.float32), None, noise.random((num, 8, 8)) > 0.5
        ),
    }


def _fill(
    url: Path,
    specs: tuple[TargetSpec, ...] = _SPECS,
    scenes: list[str] = _SCENES,
    lie: int = -1,
    old: Path | None = None,
) -> None:
    writer = create(
        str(url),
        specs,
        _frames(scenes),
        shard_rows=2,
        fingerprint={"teacher": {"weights": "aa"}},
        plan={},
        provenance={},
    )
    names = {spec.key for spec in writer.specs}
    with writer:
        if old is not None:
            reuse(writer, open_cache(str(old)))
        with WriteQueue(writer, depth=1, threads=2) as waiting:
            for shard in writer.missing():
                said = _said(writer.cache, shard, lie == shard)
                waiting.put(shard, {name: said[name] for name in names})
    if not writer.unfinished():
        writer.seal()


def _repair(url: Path) -> None:
    cache = Cache(str(url), allow_unsealed=True, lenient=True)
    with (
        Repairer(cache, {0: {"bev.neck"}, 1: {"head.heatmap"}}, {"provenance": {}}) as repairer,
        WriteQueue(repairer, depth=1, threads=2) as waiting,
    ):
        for shard in repairer.missing():
            waiting.put(shard, _said(cache, shard))


def _wrong(url: Path) -> None:
    """Seal a cache that vouches for a lie in shard 0, and damage a file of shard 1."""
    _fill(url, lie=0)
    (url / "targets/head.heatmap/values/c.1.0.0.0").write_bytes(b"damaged")


COMMANDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "build": (lambda url: None, _fill),
    "add": (lambda url: _fill(url, _SPECS[:1]), _fill),
    "repair": (_wrong, _repair),
    "reuse": (
        lambda url: _fill(url.with_name("old"), scenes=_SCENES[:3]),
        lambda url: _fill(url, old=url.with_name("old")),
    ),
}
"""Name -> what is there before, and what is killed."""


class _Points:
    """Counts the moments in which a process may be killed, and kills it in one of them."""

    def __init__(self, root: Path, number: int) -> None:
        self._root, self._number, self._count = str(root), number, 0
        self._lock = threading.Lock()
        sys.addaudithook(self._hook)
        opening = Path.open

        def opened(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
            file = opening(path, mode, *rest, **more)
            return _Halves(file, self.reach) if mode == "xb" else file

        Path.open = opened  # type: ignore[method-assign, assignment]
        os.fsync = lambda _: self.reach()

    def reach(self) -> None:
        with self._lock:
            self._count += 1
            if self._count == self._number:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(LONGEST)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link")
        if event == "open":
            changes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if changes and any(str(word).startswith(self._root) for word in arguments[:2]):
            self.reach()


class _Halves:
    """A file that is written in two halves, with a moment before each and one behind."""

    def __init__(self, file: Any, reach: Callable[[], None]) -> None:
        self._file, self._reach = file, reach

    def __enter__(self) -> "_Halves":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        half = len(data) // 2
        for piece in (data[:half], data[half:]):
            self._reach()
            self._file.write(piece)
            self._file.flush()


def _run(work: Callable[[Path], None], url: Path, number: int = 0) -> int:
    """Do some work in a process of its own; return its exit code, -9 if it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            lease.RENEW_SECONDS = 0.005
            _Points(url, number)
            work(url)
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    deadline = time.monotonic() + LONGEST
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"point {number}: hangs for {LONGEST:.0f} s")
        time.sleep(0.002)


def _contents(url: Path) -> dict[str, str]:
    """Return the digests of all files but leases and provenance."""
    return {
        path.relative_to(url).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in url.rglob("*")
        if path.is_file() and path.relative_to(url).parts[0] not in ("provenance", "leases")
    }


def _check_killed(command: str, url: Path) -> None:
    """Everything that was committed, and is not being repaired, must read as it was said."""
    try:
        cache = open_cache(str(url), allow_unsealed=True)
    except CacheIncompleteError:
        assert command in ("build", "reuse"), command
        return
    for shard in cache.committed:
        if command == "repair" and shard in (0, 1):
            continue
        said = _said(cache, shard)
        for place, token in enumerate(cache.layout.tokens_of(shard)):
            for name, sample in cache.read(token).items():
                assert np.array_equal(sample.values, said[name].values[place]), (shard, name)
    if command == "repair":
        assert {2} <= cache.committed
    if command == "add":
        assert cache.sealed


def sweep(folder: Path, command: str, stride: int = 1) -> int:
    """Kill a command at every `stride`-th point; return how many points were tried.

    Raises:
        AssertionError: a byte is lost, the same command hangs or fails, or its end differs.
    """
    prepare, work = COMMANDS[command]
    before, calm = folder / "before" / "c", folder / "calm" / "c"
    assert _run(prepare, before) == 0
    before.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(before.parent, calm.parent)
    assert _run(work, calm) == 0
    expected = _contents(calm)
    for tried, number in enumerate(range(1, sys.maxsize, stride)):
        url = folder / str(number) / "c"
        shutil.copytree(before.parent, url.parent)
        code = _run(work, url, number)
        if code == 0:
            return tried
        assert code == -signal.SIGKILL, (number, code)
        _check_killed(command, url)
        assert _run(work, url) == 0, number
        assert _contents(url) == expected, number
        report = verify(str(url), workers=1)
        assert report.ok, (number, report.problems)
        assert not [p for p in url.rglob("*.partial") if p.parent.name != "leases"], number
        shutil.rmtree(url.parent)
    raise AssertionError("no end")


if __name__ == "__main__":
    print(sweep(Path(sys.argv[1]), sys.argv[2], int((*sys.argv, "1")[3])))  # noqa: T201

"""Writing: whole shards, resume, refusal, determinism, a full disk, the queue."""

import errno
import filecmp
import hashlib
import json
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevcask.cache import Encoded, WriteQueue, Writer, concatenate, objects, open_cache, verify
from bevcask.cache.layout import commit_key
from bevcask.errors import (
    CacheIdentityError,
    CacheIncompleteError,
    DiskFullError,
    TargetMismatchError,
)
from bevcask.geometry import Grid
from bevcask.targets.spec import TapInfo, TargetSpec
from cache.example import FINGERPRINT, SPECS, begin, build, commit_folder, encoded, frame_table


def different_files(left: Path, right: Path) -> list[str]:
    """Return the keys that differ or are on one side only, as `diff -r -x provenance` would."""

    def keys(root: Path) -> set[str]:
        found = {p.relative_to(root).as_posix() for p in root.rglob("*")}
        return {key for key in found if key.partition("/")[0] != "provenance"}

    both = keys(left) & keys(right)
    files = {key for key in both if (left / key).is_file()}
    differ = {k for k in files if not filecmp.cmp(left / k, right / k, shallow=False)}
    return sorted(differ | (keys(left) ^ keys(right)))


def test_two_runs_differ_in_provenance_alone(sealed: str, tmp_path: Path) -> None:
    again = build(tmp_path / "again", provenance={"host": "elsewhere"})
    assert different_files(Path(sealed), Path(again)) == []
    third = build(tmp_path / "third", provenance={"host": "elsewhere"}, specs=SPECS[::-1])
    assert different_files(Path(third), Path(again)) == []


def test_order_of_shards_and_resume_leave_no_trace(sealed: str, tmp_path: Path) -> None:
    url = tmp_path / "c"
    with begin(url) as writer:
        for shard in (2, 0):
            writer.write(shard, encoded(writer, shard))
    neck = url / "targets/bev.neck/values"
    (neck / "c.3.0.0.0").write_bytes(b"an object without a commit")
    (neck / "c.1.0.0.0.abc.partial").write_bytes(b"half an object")
    (commit_folder(url) / "c.1.0.0.abc.partial").write_bytes(b"half a commit")
    (url / "frames/valid/c.0.abc.partial").write_bytes(b"half a small file")
    with begin(url) as resumed:
        assert resumed.missing() == [1, 3]
        assert not (neck / "c.3.0.0.0").exists()
        assert not list(url.rglob("*.partial"))
        for shard in resumed.missing():
            resumed.write(shard, encoded(resumed, shard))
    resumed.seal()
    assert different_files(Path(sealed), url) == []
    assert begin(url).missing() == []
    begin(url).seal()


def test_partial_files_of_committed_shards_are_not_ours_to_remove(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    writer.write(0, encoded(writer, 0))
    other = tmp_path / "targets/bev.neck/values/c.0.0.0.0.abc.partial"
    other.write_bytes(b"of another process")
    with begin(tmp_path):
        assert other.exists()


def test_half_made_metadata_is_completed(sealed: str, tmp_path: Path) -> None:
    url = tmp_path / "c"
    (url / "frames").mkdir(parents=True)
    (url / "frames/zarr.json").write_bytes((Path(sealed) / "frames/zarr.json").read_bytes())
    (url / "frames/zarr.json.abc.partial").write_bytes(b"{")
    build(url)
    assert different_files(Path(sealed), url) == []


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(CacheIdentityError, match=r"not empty.*thesis.tex"):
        begin(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_commits_do_not_share_files(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    writer.write(0, encoded(writer, 0))
    commit = commit_folder(tmp_path)
    first = (commit / "c.0.0.0").stat().st_ino, (commit / "c.0.0.0").read_bytes()
    writer.write(1, encoded(writer, 1))
    names = sorted(path.name for path in commit.iterdir())
    assert names == ["c.0.0.0", "c.1.0.0", "zarr.json"]
    assert ((commit / "c.0.0.0").stat().st_ino, (commit / "c.0.0.0").read_bytes()) == first


def test_objects_reach_the_disk_before_their_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, events = begin(tmp_path), []
    replace, sync = Path.replace, os.fsync

    def renamed(path: Path, target: Path) -> Path:
        events.append(("rename", target.relative_to(tmp_path).as_posix()))
        return replace(path, target)

    def synced(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        name = path.relative_to(tmp_path).as_posix()
        events.append(("sync", name.rsplit(".", 2)[0] if name.endswith(".partial") else name))
        sync(descriptor)

    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(os, "fsync", synced)
    writer.write(1, encoded(writer, 1))
    keys = [name for event, name in events if event == "rename"]
    assert len(keys) == len(set(keys)) > 8
    last = commit_key(writer.cache.id, 1)
    assert keys[-1] == last
    commit = events.index(("sync", last))
    for key in keys[:-1]:
        content = events.index(("sync", key))
        rename = events.index(("rename", key))
        folder = events.index(("sync", key.rpartition("/")[0]), rename)
        assert content < rename < folder < commit
    assert events[-2:] == [("rename", last), ("sync", last.rpartition("/")[0])]


def test_a_silent_shard_writes_no_file_and_says_so(sealed: str) -> None:
    root = Path(sealed)
    assert not (root / "targets/bev.silent/values/c.0.0.0.0").exists()
    names = json.loads((commit_folder(root) / "zarr.json").read_bytes())["attributes"]["arrays"]
    entry = open_cache(sealed).commit[0][names.index("targets/bev.silent/values")]
    assert (entry.length, entry.sha256) == (0, hashlib.sha256(b"").digest())


def test_seal_needs_every_shard(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    writer.write(0, encoded(writer, 0))
    with pytest.raises(CacheIncompleteError, match="3 of 4 shards are missing, first 1"):
        writer.seal()


def test_every_run_is_recorded(tmp_path: Path) -> None:
    with begin(tmp_path, provenance={"host": "first"}) as writer:
        writer.write(2, encoded(writer, 2))
    build(tmp_path, provenance={"host": "second"})
    build(tmp_path, provenance={"host": "third, with nothing to do"})
    cache = open_cache(str(tmp_path))
    assert cache.provenance == {"host": "first"}
    said = [(run["provenance"]["host"], run["shards_written"]) for run in cache.runs]
    assert sorted(said) == [("first", 1), ("second", 3)]
    assert {run["part"] for run in cache.runs} == {"part=1/1"}
    assert verify(str(tmp_path)).ok


def changed(**changes: Any) -> dict[str, Any]:
    """Return the example fingerprint with dotted leaves replaced."""
    tree = json.loads(json.dumps(FINGERPRINT))
    for dotted, value in changes.items():
        *path, leaf = dotted.split("__")
        node = tree
        for part in path:
            node = node[part]
        node[leaf] = value
    return tree  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "leaf"),
    [
        ({"fingerprint": changed(teacher__weights="dd" * 32)}, "teacher.weights: expected dddd"),
        ({"fingerprint": changed(teacher__config__cell=0.1)}, "teacher.config.cell: expected 0.1"),
        (
            {"fingerprint": changed(dataset__calibration__CAM_FRONT="ee")},
            "dataset.calibration.CAM_FRONT: expected ee",
        ),
        ({"shard_rows": 3}, "shard_rows: expected 3 (this run), got 2 (the cache)"),
        ({"frames": frame_table((3, 2))}, "selection.num_frames: expected 5 (this run), got 6"),
        ({"frames": frame_table((3, 1, 2))}, "selection.scenes: expected"),
    ],
)
def test_another_identity_is_refused_by_leaf(
    copied: Path, change: dict[str, Any], leaf: str
) -> None:
    with pytest.raises(CacheIdentityError) as caught:
        begin(copied, **change)
    assert leaf in str(caught.value)
    assert "another URL" in str(caught.value)
    assert verify(str(copied)).ok


def test_state_may_differ(copied: Path) -> None:
    writer = begin(copied, provenance={"host": "other"}, plan={"total_bytes": 1})
    assert writer.missing() == []
    assert open_cache(str(copied)).provenance == {"host": "here"}


def test_wrong_arrays_are_refused_together_and_nothing_is_written(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    arrays = encoded(writer, 0)
    del arrays["bev.silent"]
    arrays["bev.extra"] = arrays["bev.neck"]
    arrays["bev.neck"] = Encoded(arrays["bev.neck"].values[:1], arrays["bev.neck"].scale)
    arrays["bev.signed"] = Encoded(arrays["bev.signed"].values)
    with pytest.raises(TargetMismatchError) as caught:
        writer.write(0, arrays)
    for words in (
        "bev.silent: missing",
        "bev.extra: not a target",
        "targets/bev.neck/values: expected (2, 3, 6, 8) uint8, got (1, 3, 6, 8) uint8",
        "targets/bev.signed/scale: expected (2, 3) float32, got nothing",
    ):
        assert words in str(caught.value)
    assert [path.name for path in (tmp_path / "targets/bev.neck/values").iterdir()] == ["zarr.json"]


def fill_disk_after(monkeypatch: pytest.MonkeyPatch, root: Path, num_bytes: int) -> None:
    """Let the file system take this many more bytes, then answer as a full disk does."""
    left = [num_bytes]
    opening = Path.open

    class Full:
        def __init__(self, file: Any) -> None:
            self._file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, data: bytes) -> None:
            self._file.write(data[: max(0, left[0])])
            left[0] -= len(data)
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")

    def opened(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        file = opening(path, mode, *rest, **more)
        return Full(file) if mode == "xb" and root in path.parents else file

    monkeypatch.setattr(Path, "open", opened)


def test_a_full_disk_loses_nothing(sealed: str, tmp_path: Path) -> None:
    writer = begin(tmp_path)
    writer.write(0, encoded(writer, 0))
    with pytest.MonkeyPatch.context() as patch:
        fill_disk_after(patch, tmp_path, 600)
        with pytest.raises(DiskFullError, match=r"disk full.*Every committed shard is safe"):
            writer.write(1, encoded(writer, 1))
    assert not list(tmp_path.rglob("*.partial"))
    cache = open_cache(str(tmp_path), allow_unsealed=True)
    assert cache.committed == {0}
    cache.read(cache.frames.tokens[1])
    build(tmp_path)
    assert different_files(Path(sealed), tmp_path) == []


def test_other_write_errors_keep_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = begin(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "I/O")))
    with pytest.raises(OSError, match="I/O") as caught:
        writer.write(0, encoded(writer, 0))
    assert not isinstance(caught.value, DiskFullError)


def test_concatenate_joins_batches(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    whole = encoded(writer, 0)["head.heatmap"]
    halves = [
        Encoded(whole.values[i : i + 1], whole.scale[i : i + 1], whole.region[i : i + 1])
        for i in (0, 1)
    ]
    joined = concatenate(halves)
    np.testing.assert_array_equal(joined.values, whole.values)
    np.testing.assert_array_equal(joined.region, whole.region)
    assert isinstance(joined.scale, np.ndarray)
    assert joined.count is None


class SlowWriter:
    """A writer that waits for the test before each shard."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.tokens, self.missing = writer.tokens, writer.missing
        self.cache, self.specs, self.encode = writer.cache, writer.specs, writer.encode
        self.allowed = threading.Semaphore(0)
        self.failure: Exception | None = None

    def commit(self, shard: int, objects: Any) -> int:
        self.allowed.acquire()
        if self.failure is not None:
            raise self.failure
        return self._writer.commit(shard, objects)


def test_queue_writes_everything(sealed: str, tmp_path: Path) -> None:
    writer = begin(tmp_path)
    with WriteQueue(writer, depth=2) as waiting:
        for shard in writer.missing():
            waiting.put(shard, encoded(writer, shard))
    assert waiting.num_shards == 4
    writer.seal()
    assert different_files(Path(sealed), tmp_path) == []
    stored = open_cache(str(tmp_path))
    assert waiting.num_bytes == sum(stored.stored_bytes(name) for name in stored.specs)


@pytest.mark.parametrize("threads", [2, 5])
def test_bytes_do_not_depend_on_the_number_of_threads(
    sealed: str, tmp_path: Path, threads: int
) -> None:
    writer = begin(tmp_path)
    with WriteQueue(writer, depth=2, threads=threads) as waiting:
        for shard in writer.missing():
            waiting.put(shard, encoded(writer, shard))
    writer.seal()
    assert different_files(Path(sealed), tmp_path) == []


@pytest.mark.parametrize("threads", [1, 4])
def test_bytes_in_flight_are_bounded(tmp_path: Path, threads: int) -> None:
    """Count what has been handed over and is still held by anybody, encoded or not."""
    depth, num_shards, side = 2, 12, 64
    grid = Grid.square(side / 2, 1.0)
    tap = TapInfo("bev.neck", "dense_bev", (8, side, side), grid, nonnegative=True)
    writer = begin(tmp_path, specs=[TargetSpec(tap, "uint8")], frames=frame_table((24,)))
    noise = np.random.default_rng(0).integers(0, 255, (2, 8, side, side), np.uint8)
    flying, peak = [0], [0]

    def land() -> None:
        flying[0] -= 1

    with WriteQueue(writer, depth, threads) as waiting:
        for shard in range(num_shards):
            values = noise.copy()
            weakref.finalize(values, land)
            waiting.put(shard, {"bev.neck": Encoded(values, np.ones((2, 8), np.float32))})
            del values
            flying[0] += 1
            peak[0] = max(peak[0], flying[0])
    assert waiting.num_shards == num_shards
    assert flying[0] == 0
    assert peak[0] <= depth + 1


def test_an_encoders_error_stops_and_what_was_before_stays(
    sealed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, encode_chunk = begin(tmp_path), objects.encode_chunk
    bad = encoded(writer, 2)["image.fpn0"].numpy().values[0]

    def encode(values: Any) -> bytes:
        if values.shape == bad.shape and np.array_equal(values, bad):
            raise MemoryError("no room for row 4")
        return encode_chunk(values)

    def produce() -> None:
        with WriteQueue(writer, depth=1, threads=3) as waiting:
            for shard in writer.missing():
                waiting.put(shard, encoded(writer, shard))

    with monkeypatch.context() as patch:
        patch.setattr(objects, "encode_chunk", encode)
        with pytest.raises(MemoryError, match="row 4"):
            produce()
    cache = open_cache(str(tmp_path), allow_unsealed=True)
    assert cache.committed == {0, 1}
    assert not list(tmp_path.glob("*/*/values/c.[23].*"))
    build(tmp_path)
    assert different_files(Path(sealed), tmp_path) == []


def test_queue_is_bounded(tmp_path: Path) -> None:
    writer = SlowWriter(begin(tmp_path))
    accepted: list[int] = []

    def produce() -> None:
        with WriteQueue(writer, depth=1) as waiting:
            for shard in range(4):
                waiting.put(shard, encoded(writer, shard))
                accepted.append(shard)

    thread = threading.Thread(target=produce)
    thread.start()
    deadline = time.monotonic() + 10
    while len(accepted) < 2 and time.monotonic() < deadline:
        thread.join(0.01)
    thread.join(0.05)
    assert accepted == [0, 1]  # one being written, one waiting, the producer holds the third
    for _ in range(4):
        writer.allowed.release()
    thread.join()
    assert accepted == [0, 1, 2, 3]
    assert writer.missing() == []


def test_whoever_waits_for_a_slow_store_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bevcask.cache.writer._VOICE_SECONDS", 0.02)
    writer = SlowWriter(begin(tmp_path))
    release = threading.Timer(0.3, writer.allowed.release, (4,))
    with caplog.at_level("INFO"), WriteQueue(writer, depth=1) as waiting:
        release.start()
        for shard in range(4):
            waiting.put(shard, encoded(writer, shard))  # type: ignore[arg-type]
    assert waiting.num_shards == 4
    said = [record.message for record in caplog.records]
    assert any("waiting for the store to take a shard, 0 s so far" in line for line in said)


def test_queue_raises_the_writers_error_in_the_producer(tmp_path: Path) -> None:
    writer = SlowWriter(begin(tmp_path))
    writer.failure = DiskFullError("full")
    for _ in range(99):
        writer.allowed.release()

    def produce() -> None:
        with WriteQueue(writer, depth=1) as waiting:
            for _ in range(99):
                waiting.put(0, encoded(writer, 0))

    with pytest.raises(DiskFullError, match="full"):
        produce()


def test_queue_raises_the_writers_error_on_leaving(tmp_path: Path) -> None:
    writer = SlowWriter(begin(tmp_path))
    writer.failure = DiskFullError("full")

    def produce() -> None:
        with WriteQueue(writer, depth=2) as waiting:
            waiting.put(0, encoded(writer, 0))
            writer.allowed.release()

    with pytest.raises(DiskFullError, match="full"):
        produce()


def test_ctrl_c_keeps_what_was_handed_over(tmp_path: Path) -> None:
    writer = begin(tmp_path)

    def produce() -> None:
        with WriteQueue(writer, depth=2, threads=2) as waiting:
            waiting.put(0, encoded(writer, 0))
            waiting.put(1, encoded(writer, 1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        produce()
    assert begin(tmp_path).missing() == [2, 3]
    assert not [one for one in threading.enumerate() if one.name.startswith("bevcask-")]


def test_a_second_ctrl_c_waits_for_nothing_but_running_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SlowWriter(begin(tmp_path))

    def produce() -> None:
        with WriteQueue(writer, depth=2, threads=2) as waiting:
            waiting.put(0, encoded(writer, 0))  # type: ignore[arg-type]
            monkeypatch.setattr(waiting, "_say", interrupted)
            monkeypatch.setattr("bevcask.cache.writer._VOICE_SECONDS", 0.01)
            raise KeyboardInterrupt

    def interrupted(began: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        produce()
    assert not [one for one in threading.enumerate() if one.name.startswith("bevcask-encoder")]
    writer.allowed.release()

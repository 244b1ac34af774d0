"""The queue: order, bounds, bytes, errors, Ctrl-C."""

import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevcask.cache import Encoded, WriteQueue, Writer, objects, open_cache
from bevcask.errors import DiskFullError, TargetMismatchError
from bevcask.geometry import Grid
from bevcask.targets.spec import TapInfo, TargetSpec
from cache.example import begin, build, encoded, frame_table
from cache.test_writer import different_files


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


def test_pieces_that_follow_each_other_are_as_good_as_the_whole(
    sealed: str, tmp_path: Path
) -> None:
    writer = begin(tmp_path)
    with WriteQueue(writer, depth=2, threads=2) as waiting:
        for shard in writer.missing():
            rows = range(len(writer.tokens(shard)))
            said = encoded(writer, shard).items()
            waiting.put(shard, {name: [all_.sample([row]) for row in rows] for name, all_ in said})
    writer.seal()
    assert different_files(Path(sealed), tmp_path) == []


@pytest.mark.parametrize(
    ("spoil", "got"),
    [
        (lambda said: [said], r"got \(1, 3, 6, 8\) uint8"),
        (lambda said: [said, said, said], r"got \(3, 3, 6, 8\) uint8"),
        (lambda said: [said, Encoded(said.values.float(), said.scale)], "float32"),
        (lambda said: [said, Encoded(said.values[:, :2], said.scale)], r"got \(2, 2, 6, 8\)"),
        (
            lambda said: [said, Encoded(said.values)],
            r"scale: expected \(2, 3\) float32, got \(1",
        ),
        (lambda said: [], "got nothing"),
    ],
)
def test_wrong_pieces_are_refused_at_once(tmp_path: Path, spoil: Any, got: str) -> None:
    writer = begin(tmp_path)
    said: dict[str, Any] = dict(encoded(writer, 0))
    said["bev.neck"] = spoil(said["bev.neck"].sample([0]))
    with WriteQueue(writer, depth=1) as waiting:
        for _ in range(3):  # none of them takes a place
            with pytest.raises(TargetMismatchError, match=got):
                waiting.put(0, said)
        waiting.put(0, encoded(writer, 0))
    assert writer.missing() == [1, 2, 3]


def test_two_threads_encode_two_rows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, encode_chunk, both = begin(tmp_path), objects.encode_chunk, threading.Barrier(2)

    def encode(values: Any) -> bytes:
        if values.ndim > 2:  # the rows of maps: an even number a shard
            both.wait(timeout=10)
        return encode_chunk(values)

    monkeypatch.setattr(objects, "encode_chunk", encode)
    with WriteQueue(writer, depth=2, threads=2) as waiting:
        waiting.put(0, encoded(writer, 0))
    assert waiting.num_shards == 1


def test_the_next_shard_is_encoded_while_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, encode_chunk = SlowWriter(begin(tmp_path)), objects.encode_chunk
    first, second = (encoded(writer, shard) for shard in (0, 1))
    row, seen = second["bev.neck"].numpy().values[0], threading.Event()

    def encode(values: Any) -> bytes:
        if np.array_equal(values, row):
            seen.set()
        return encode_chunk(values)

    monkeypatch.setattr(objects, "encode_chunk", encode)
    with WriteQueue(writer, depth=1) as waiting:
        waiting.put(0, first)
        waiting.put(1, second)
        ahead = seen.wait(timeout=10)
        for _ in range(2):
            writer.allowed.release()
    assert ahead
    assert writer.missing() == [2, 3]


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
    monkeypatch.setattr("bevcask.cache.write_queue._VOICE_SECONDS", 0.02)
    writer = SlowWriter(begin(tmp_path))
    release = threading.Timer(0.3, writer.allowed.release, (4,))
    with caplog.at_level("INFO"), WriteQueue(writer, depth=1) as waiting:
        release.start()
        for shard in range(4):
            waiting.put(shard, encoded(writer, shard))
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
            waiting.put(0, encoded(writer, 0))
            monkeypatch.setattr(waiting, "_say", interrupted)
            monkeypatch.setattr("bevcask.cache.write_queue._VOICE_SECONDS", 0.01)
            raise KeyboardInterrupt

    def interrupted(began: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        produce()
    assert not [one for one in threading.enumerate() if one.name.startswith("bevcask-encoder")]
    writer.allowed.release()

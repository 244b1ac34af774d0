"""Copies near by: asked once, believed never, bounded always."""

import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bevcask.cache import open_cache
from bevcask.cache.chunks import encode_plain
from bevcask.cache.files import Files, Span
from bevcask.cache.near import Near, NearCopy
from bevcask.cache.stored import Part
from bevcask.errors import CacheCorruptError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    """The spans that the cache itself is asked for."""
    spans: list[Span] = []
    real = Files.get_ranges

    def counted(self: Files, wanted: Sequence[Span]) -> object:
        spans.extend(wanted)
        return real(self, wanted)

    monkeypatch.setattr(Files, "get_ranges", counted)
    return spans


def copies(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_nothing_is_asked_for_twice(sealed: str, tmp_path: Path, asked: list[Span]) -> None:
    near = Near(tmp_path / "near", 10**7)
    plain = open_cache(sealed)
    tokens = plain.frames.tokens
    expected = {name: target.floats() for name, target in plain.read_batch(tokens).items()}
    asked.clear()
    for number in range(3):  # the third, as a loader's worker gets it
        cache = open_cache(sealed, near=near)
        cache = pickle.loads(pickle.dumps(cache)) if number == 2 else cache
        found = cache.read_batch(tokens)
        assert all(np.array_equal(found[name].floats(), expected[name]) for name in expected)
        assert bool(asked) == (number == 0)
        asked.clear()
    assert len(copies(tmp_path / "near")) > 10


def test_a_damaged_copy_is_fetched_again(sealed: str, tmp_path: Path) -> None:
    near = Near(tmp_path / "near", 10**7)
    plain = open_cache(sealed)
    tokens = plain.frames.tokens
    open_cache(sealed, near=near).read_batch(tokens)
    said = plain.read_batch(tokens)
    for number, path in enumerate(copies(tmp_path / "near")[::5]):
        open_cache(sealed, near=near).read_batch(tokens)
        whole = path.read_bytes()
        damaged = (whole[:-1], bytes(len(whole)), whole[:2] + b"\0" + whole[3:])[number % 3]
        path.write_bytes(damaged)
        found = open_cache(sealed, near=near).read_batch(tokens)
        assert all(np.array_equal(found[name].values, said[name].values) for name in said)
        assert not path.exists() or path.read_bytes() == whole


def test_a_wrong_index_is_fetched_again(sealed: str, tmp_path: Path) -> None:
    """Its checksum holds: only the rows that it leads to tell."""
    near = Near(tmp_path / "near", 10**7)
    cache = open_cache(sealed, near=near)
    cache.read_batch(cache.frames.tokens)
    array = next(a for a in cache.layout.arrays if a.key == "boxes/head.boxes/values")
    span = cache._stored._index_span(Part(array, 0))
    path = near.folder / span.sha256.hex() / f"{span.start}-{span.stop}"
    index = path.read_bytes()
    path.write_bytes(encode_plain(index[16:32] + index[:16]))
    assert open_cache(sealed, near=near).read_batch(cache.frames.tokens)


def test_damage_of_the_cache_is_not_kept(copied: Path, tmp_path: Path) -> None:
    near = Near(tmp_path / "near", 10**7)
    path = copied / "targets/bev.neck/values/c.0.0.0.0"
    whole = path.read_bytes()
    path.write_bytes(whole[:5] + b"\0\0\0" + whole[8:])
    cache = open_cache(str(copied), near=near)
    with pytest.raises(CacheCorruptError):
        cache.read_batch(cache.frames.tokens, ["bev.neck"])
    path.write_bytes(whole)
    assert cache.read_batch(cache.frames.tokens, ["bev.neck"])


def test_copies_stay_below_the_bound_whoever_writes(tmp_path: Path) -> None:
    files, folder, bound = Files(str(tmp_path / "store")), tmp_path / "near", 64_000
    files.put("a", bytes(1000) * 400)
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "0-1").write_bytes(bytes(70_000))
    spans = [Span("a", n * 800, n * 800 + 800, bytes([n % 7]) * 32) for n in range(400)]
    writers = [NearCopy(files, Near(folder, bound)) for _ in range(8)]
    largest = 0
    for number, span in enumerate(spans):
        assert list(writers[number % 8].get_ranges([span])) == [bytes(800)]
        largest = max(largest, sum(path.stat().st_size for path in copies(folder)) - 70_000)
    assert bound / 2 < largest <= bound
    assert (folder / "mine" / "0-1").exists()


def test_the_longest_unused_go_first(tmp_path: Path, asked: list[Span]) -> None:
    files, folder = Files(str(tmp_path / "store")), tmp_path / "near"
    files.put("a", bytes(100_000))
    near = NearCopy(files, Near(folder, 6400))
    spans = [Span("a", n, n + 100, bytes([n]) * 32) for n in range(100)]
    for number, span in enumerate(spans):
        list(near.get_ranges([spans[0]]))
        list(near.get_ranges([span]))
        os.utime(folder / span.sha256.hex() / f"{span.start}-{span.stop}", (number, number))
    assert asked.count(spans[0]) == 1
    asked.clear()
    list(near.get_ranges(spans))
    assert spans[0] not in asked
    assert spans[1] in asked
    assert spans[99] not in asked


def test_a_full_disk_near_by_stops_copying_alone(
    sealed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "near").write_bytes(b"a file, no folder")
    cache = open_cache(sealed, near=Near(tmp_path / "near", 10**7))
    assert cache.read_batch(cache.frames.tokens)
    assert caplog.text.count("no more copies are kept") == 1

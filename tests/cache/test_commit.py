"""The commit: the same answers from many small objects and from the one they become."""

from pathlib import Path

import numpy as np
import pytest

from bevcask.cache import open_cache
from bevcask.cache.chunks import encode_chunk, join_rows
from bevcask.cache.commit import Committed
from bevcask.cache.files import Files
from bevcask.cache.layout import ArraySpec, commit_key
from bevcask.cache.reader import Cache
from bevcask.errors import CacheCorruptError, StoreError
from cache.example import begin, build, commit_folder, damage_commit, encoded


@pytest.mark.parametrize("scheme", ["path", "memory"])
def test_packed_says_what_the_single_ones_said(tmp_path: Path, scheme: str) -> None:
    url = f"{tmp_path}/c" if scheme == "path" else "memory://commit/c"
    with begin(url) as writer:
        for shard in writer.missing():
            writer.write(shard, encoded(writer, shard))
    single = open_cache(url, allow_unsealed=True).commit
    before = [single[shard] for shard in range(4)]
    chunks = single.chunks()
    writer.seal()
    packed = open_cache(url).commit
    assert [packed[shard] for shard in range(4)] == before
    assert packed.chunks() == chunks
    np.testing.assert_array_equal(packed.lengths_SA, single.lengths_SA)
    lengths = [[entry.length for entry in row] for row in before]
    assert packed.lengths_SA.tolist() == lengths
    assert np.count_nonzero(lengths) > 20


def test_a_shard_nobody_committed_is_missing(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    for shard in (3, 1):
        writer.write(shard, encoded(writer, shard))
    commit = open_cache(str(tmp_path), allow_unsealed=True).commit
    assert (len(commit), commit.missing) == (2, [0, 2])
    assert 3 in commit
    assert 2 not in commit
    assert not commit.lengths_SA[[0, 2]].any()


@pytest.mark.parametrize("place", [0, 5, 170, -1, -70])
def test_a_flipped_byte_of_the_packed_commit_is_found_on_opening(copied: Path, place: int) -> None:
    path = commit_folder(copied) / "c.0.0.0"
    data = bytearray(path.read_bytes())
    data[place] ^= 16
    path.write_bytes(data)
    with pytest.raises(CacheCorruptError, match=r"commit/\w{16}/c.0.0.0: does not match"):
        open_cache(str(copied))


@pytest.mark.parametrize("change", [b"", b"more"])
def test_another_length_of_the_packed_commit_is_found(copied: Path, change: bytes) -> None:
    path = commit_folder(copied) / "c.0.0.0"
    path.write_bytes(path.read_bytes() + change if change else path.read_bytes()[:-30])
    with pytest.raises(CacheCorruptError, match="does not match"):
        open_cache(str(copied))


def test_lenient_opening_leaves_out_the_damaged_shard_alone(copied: Path) -> None:
    before = open_cache(str(copied)).commit
    damage_commit(copied, 2)
    commit = Cache(str(copied), lenient=True).commit
    assert (commit.missing, commit.damaged, commit.intact) == ([2], [2], False)
    assert commit[3] == before[3]


def test_a_damaged_commit_of_an_unsealed_cache_is_found(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    for shard in (1, 2):
        writer.write(shard, encoded(writer, shard))
    path = tmp_path / commit_key(writer.cache.id, 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CacheCorruptError, match=r"\.open/c.1.0.0: checksum or length"):
        open_cache(str(tmp_path), allow_unsealed=True)
    commit = Cache(str(tmp_path), allow_unsealed=True, lenient=True).commit
    assert (commit.missing, commit.damaged) == ([0, 1, 3], [1])


def test_the_packed_commit_is_read_in_pieces(sealed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_cache(sealed).commit
    monkeypatch.setattr("bevcask.cache.commit._PIECE", 1)
    np.testing.assert_array_equal(open_cache(sealed).commit.lengths_SA, whole.lengths_SA)


def test_a_store_that_is_away_is_no_damage(sealed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(files: Files, key: str, start: int, stop: int) -> bytes:
        raise StoreError(f"{key}: away")

    monkeypatch.setattr(Files, "get_range", fail)
    with pytest.raises(StoreError, match=r"commit/\w{16}/c.0.0.0: away"):
        open_cache(sealed)


def test_no_single_commit_is_left_in_a_sealed_cache(tmp_path: Path) -> None:
    build(tmp_path)
    assert [path.name for path in sorted(commit_folder(tmp_path).iterdir())] == [
        "c.0.0.0",
        "zarr.json",
    ]


def test_commit_entry_round_trips() -> None:
    array = ArraySpec("a/scale", (4, 3), "float32", ("row", "channel"))
    entry = Committed.of(b"abc", array, 2)
    data = entry.to_bytes()
    assert len(data) == 48
    assert data[32:] == b"\x03" + b"\0" * 15
    assert Committed.from_bytes(data) == entry


def test_an_entry_holds_what_ends_every_row() -> None:
    values = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    values[2] = 0
    data = join_rows([encode_chunk(row) for row in values])
    array = ArraySpec("a/values", (8, 2, 3), "uint8", ("row", "y", "x"), 1)
    rows = [encode_chunk(row)[-4:] or bytes(4) for row in values]
    assert Committed.of(data, array, 4).rows == b"".join(rows)
    assert rows[2] == bytes(4)
    assert Committed.of(b"", array, 4).rows == bytes(16)
    with pytest.raises(CacheCorruptError, match="a/values"):
        Committed.of(data[:-1], array, 4)

"""No byte of a cache can change unseen: `verify` names it, and no read serves it."""

import errno
import os
import zlib
from pathlib import Path

import pytest

from bevcask.cache import files, open_cache, verify
from bevcask.cache.files import Files
from bevcask.cache.layout import packed_key
from bevcask.errors import BevcaskError, CacheCorruptError, CacheIncompleteError
from cache.example import begin, build, commit_folder, damage_commit, encoded


def read_everything(url: Path) -> None:
    cache = open_cache(str(url))
    for token in cache.frames.tokens:
        cache.read(token)
    assert len(cache.frames.timestamps) == len(cache.frames.lidar_to_global) == 6
    assert len(cache.runs) == 1


def files_of(url: Path) -> list[Path]:
    return sorted(path for path in url.rglob("*") if path.is_file())


def flip(path: Path, place: int, bit: int = 1) -> bytes:
    """Flip one bit of a file; return what was there."""
    before = path.read_bytes()
    after = bytearray(before)
    after[place] ^= bit
    path.write_bytes(after)
    return before


def test_sound_cache(sealed: str) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(sealed, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert report.to_dict()["problems"] == []
    assert report.num_files == len(files_of(Path(sealed)))
    assert report.num_bytes > 10_000
    assert seen[-1] == (report.num_bytes, report.num_bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert all(done <= total for done, total in seen)
    read_everything(Path(sealed))


def test_a_flipped_byte_in_every_file_is_found(copied: Path) -> None:
    paths = files_of(copied)
    assert len(paths) > 100
    for path in paths:
        key = path.relative_to(copied).as_posix()
        chance = zlib.crc32(key.encode())
        before = flip(path, chance % path.stat().st_size, 1 << chance % 8)
        report = verify(str(copied), workers=1)
        assert key in {problem.key for problem in report.problems}
        with pytest.raises(BevcaskError):
            read_everything(copied)
        path.write_bytes(before)
    assert verify(str(copied)).ok


@pytest.mark.parametrize("name", ["zarr.json", "provenance/zarr.json"])
def test_every_byte_of_the_self_digested_files_counts(copied: Path, name: str) -> None:
    """These two vouch for themselves: also white space, key names and the digest."""
    path = copied / name
    stride = 1 if name.startswith("provenance") else 29
    for place in range(0, path.stat().st_size, stride):
        before = flip(path, place, 0x20)
        with pytest.raises(BevcaskError):
            open_cache(str(copied))
        path.write_bytes(before)


def test_missing_and_extra_files_are_listed(copied: Path) -> None:
    (copied / "targets/bev.neck/values/c.0.0.0.0").unlink()
    (copied / "targets/bev.silent/values/c.0.0.0.0").write_bytes(b"12")
    found = {problem.key: problem.what for problem in verify(str(copied)).problems}
    assert found["targets/bev.neck/values/c.0.0.0.0"] == "missing"
    assert "extra" in found["targets/bev.silent/values/c.0.0.0.0"]
    (copied / "frames/valid/c.0").unlink()
    (commit_folder(copied) / "c.0.0.0").unlink()
    (copied / "notes.txt").write_text("mine")
    found = {problem.key: problem.what for problem in verify(str(copied)).problems}
    assert found["frames/valid/c.0"] == "missing"
    assert [found[key] for key in found if key.startswith("commit/")] == ["missing"]
    assert "extra" in found["notes.txt"]
    shards = [p.shard for p in verify(str(copied)).problems if p.key.startswith("commit/")]
    assert shards == [0, 1, 2, 3]


def test_swapped_shards_and_wrong_lengths_are_found(copied: Path) -> None:
    first = copied / "targets/bev.signed/values/c.0.0.0.0"
    other = copied / "targets/bev.signed/values/c.2.0.0.0"
    first.write_bytes(other.read_bytes())
    longer = copied / "targets/bev.neck/values/c.1.0.0.0"
    longer.write_bytes(longer.read_bytes() + b"\0")
    found = {problem.key: problem.what for problem in verify(str(copied)).problems}
    assert set(found) == {
        first.relative_to(copied).as_posix(),
        longer.relative_to(copied).as_posix(),
    }
    size = longer.stat().st_size
    assert found["targets/bev.neck/values/c.1.0.0.0"] == f"expected {size - 1} bytes, got {size}"


def test_a_damaged_file_is_traced_to_its_shard_and_target(copied: Path) -> None:
    flip(copied / "targets/bev.signed/scale/c.2.0", 5)
    commit = damage_commit(copied, 1)
    flip(copied / "frames/valid/c.0", 5)
    found = {p.key: (p.shard, p.target, p.token) for p in verify(str(copied)).problems}
    assert found == {
        "targets/bev.signed/scale/c.2.0": (2, "bev.signed", None),
        commit.relative_to(copied).as_posix(): (1, None, None),
        "frames/valid/c.0": (None, None, None),
    }


@pytest.mark.parametrize("scheme", ["path", "memory"])
def test_files_larger_than_a_piece_are_hashed_in_pieces(
    tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = build(f"{tmp_path}/c" if scheme == "path" else "memory://pieces/c")
    monkeypatch.setattr(files, "_PIECE", 100)
    monkeypatch.setattr(files, "_REMOTE_PIECE", 100)
    assert verify(url).ok
    key, store = "targets/bev.signed/values/c.0.0.0.0", files.Files(url)
    before = store.get(key) or b""
    size = len(before)
    assert size > 300
    for place in (50, 150, size - 1):
        after = bytearray(before)
        after[place] ^= 1
        store.put(key, bytes(after))
        (problem,) = verify(url).problems
        assert problem.what == "bytes differ from what was committed"
    store.put(key, before[:-1])
    (problem,) = verify(url).problems
    assert problem.what == f"expected {size} bytes, got {size - 1}"
    store.delete(key)
    (problem,) = verify(url).problems
    assert problem.what == "missing"


def test_an_unsealed_cache_is_not_ok_but_its_work_in_progress_is(tmp_path: Path) -> None:
    writer = begin(tmp_path / "c")
    writer.write(1, encoded(writer, 1))
    neck = tmp_path / "c/targets/bev.neck/values"
    (neck / "c.0.0.0.0").write_bytes(b"whole, not committed")
    (neck / "c.2.0.0.0.abc.partial").write_bytes(b"half")
    report = verify(str(tmp_path / "c"))
    assert [(p.key, p.what) for p in report.problems] == [
        ("zarr.json", "not sealed: 1 of 4 shards are committed")
    ]


def test_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(CacheIncompleteError):
        verify(str(tmp_path))


def test_verify_over_fsspec() -> None:
    import fsspec

    url = build("memory://verify/c")
    assert verify(url).ok
    commit = packed_key(open_cache(url).id)
    with fsspec.open(f"{url}/{commit}", "wb") as file:
        file.write(b"x")
    assert {problem.key for problem in verify(url).problems} == {commit}


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_files_that_cannot_be_read_are_damaged_and_no_end(
    copied: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run = open_cache(str(copied))._files.list("provenance")
    commit = packed_key(open_cache(str(copied)).id)
    bad = {
        "targets/bev.neck/values/c.0.0.0.0": (0, "bev.neck"),
        "boxes/head.boxes/count/c.3": (3, "head.boxes"),
        "frames/valid/c.0": (None, None),
        next(key for key in run if key.count("/") == 2): (None, None),
    }
    opening = Files._open

    def opened(store: Files, key: str) -> int:
        if key in bad:
            raise OSError(number, os.strerror(number))
        return opening(store, key)

    monkeypatch.setattr(Files, "_open", opened)
    flip(copied / "targets/bev.signed/scale/c.2.0", 5)
    report = verify(str(copied))
    found = {p.key: (p.shard, p.target) for p in report.problems}
    assert found == {**bad, "targets/bev.signed/scale/c.2.0": (2, "bev.signed")}
    assert sum(os.strerror(number) in problem.what for problem in report.problems) == len(bad)
    bad[commit] = (None, None)
    shards = [p.shard for p in verify(str(copied)).problems if p.key == commit]
    assert shards == [0, 1, 2, 3]


def test_folders_in_the_place_of_files_are_damaged_and_no_end(copied: Path) -> None:
    keys = ("targets/bev.neck/values/c.0.0.0.0", "frames/valid/c.0", "provenance/zarr.json")
    for key in keys:
        (copied / key).unlink()
        (copied / key).mkdir()
    assert {problem.key for problem in verify(str(copied)).problems} == set(keys)
    with pytest.raises(CacheCorruptError, match="gone"):
        open_cache(str(copied))

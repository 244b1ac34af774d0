"""Bytes under keys, on a local path and over fsspec."""

import errno
import os
from pathlib import Path

import pytest

from bevcask.cache.files import Files
from bevcask.errors import DiskFullError


@pytest.fixture(params=["path", "file", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    places = {"path": "{}", "file": "file://{}", "memory": "memory://files{}"}
    return Files(places[request.param].format(tmp_path / "store"))


def test_put_get_list_delete(files: Files) -> None:
    assert list(files.list()) == []
    files.put("a/b/c.0", b"0123456789")
    files.put_many({"a/d": b"x", "e": b""})
    assert sorted(files.list()) == ["a/b/c.0", "a/d", "e"]
    assert files.get("a/b/c.0") == b"0123456789"
    assert files.get_range("a/b/c.0", 2, 5) == b"234"
    assert files.get_range("a/b/c.0", 8, 20) == b"89"
    assert files.get_many(["a/d", "no", "e"]) == {"a/d": b"x", "no": None, "e": b""}
    files.put("a/d", b"other")
    assert files.get("a/d") == b"other"
    files.delete("a/d")
    files.delete("a/d")
    assert files.get("a/d") is None
    assert files.get_range("a/d", 0, 1) is None


def test_keys_that_are_folders_or_below_files_are_absent(tmp_path: Path) -> None:
    files = Files(str(tmp_path))
    files.put("a/b", b"x")
    assert files.get("a") is None
    assert files.get("a/b/c") is None
    assert files.get_range("a/b/c", 0, 1) is None


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(str(tmp_path))
    files.put("a", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"room for a and 1 more files \(4 bytes, [\d,]+ free"):
        files.put_many({"a": b"new", "b": b"1"})
    assert files.get("a") == b"old"
    assert list(files.list()) == ["a"]


def test_a_full_remote_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files("memory://full/c")

    def full(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(type(files._remote), "pipe_file", full)
    with pytest.raises(DiskFullError, match="memory://full/c has no room"):
        files.put("a", b"x")


def test_a_store_may_not_know_when_a_key_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """As fsspec's file systems that have no times say it: over HTTP, say."""

    def unknown(*_: object) -> None:
        raise NotImplementedError

    files = Files("memory://timeless/c")
    files.put("a", b"x")
    assert files.modified("a") is not None
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.modified", unknown)
    assert files.modified("a") is None

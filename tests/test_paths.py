"""Files are written whole or not at all, and only local URLs are paths."""

import os
from pathlib import Path

import pytest

from bevcask.paths import PARTIAL, local_path, write_whole


@pytest.mark.parametrize("url", ["s3://bucket/a.zarr", "memory://a", "simplecache::s3://b/c"])
def test_another_store_has_no_path(url: str) -> None:
    assert local_path(url) is None


@pytest.mark.parametrize("url", ["/x/a.zarr", "file:///x/a.zarr"])
def test_a_local_url_is_a_path(url: str) -> None:
    assert local_path(url) == Path("/x/a.zarr")


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["a.json"]


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert not list(tmp_path.glob(f"*{PARTIAL}"))

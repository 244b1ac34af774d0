"""The border of a store: whatever a disk or a driver says becomes one error with what to do."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from bevcask.cache import open_cache, stored_targets, verify
from bevcask.cache.files import Files, is_key
from bevcask.cache.verify_values import check_values
from bevcask.errors import (
    BevcaskError,
    CacheCorruptError,
    DiskFullError,
    MissingDependencyError,
    StoreError,
)
from cache.example import begin, build


class EndpointConnectionError(Exception):
    """As botocore's: no OSError."""


class NoCredentialsError(Exception):
    """As botocore's."""


class FlexibleChecksumError(Exception):
    """As botocore's."""


FAILURES: dict[str, Exception] = {
    "endpoint down": EndpointConnectionError("Could not connect to the endpoint URL"),
    "forbidden": PermissionError("Forbidden"),
    "no credentials": NoCredentialsError("Unable to locate credentials"),
    "checksum": FlexibleChecksumError("Expected checksum x did not match y"),
    "timeout": TimeoutError("timed out"),
    "input/output": OSError(errno.EIO, "Input/output error"),
    "a word": RuntimeError("Event loop is closed"),
}


class Failing(MemoryFileSystem):  # type: ignore[misc]
    """A store that answers every call with the same failure."""

    protocol = "failing"
    failure: Exception = RuntimeError()

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise type(self).failure

    cat_file = find = size = info = pipe_file = rm_file = modified = _fail


@pytest.fixture(params=FAILURES)
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    fsspec.register_implementation("failing", Failing, clobber=True)
    monkeypatch.setattr(Failing, "failure", FAILURES[request.param])
    yield request.param
    Failing.clear_instance_cache()


CALLS: dict[str, Callable[[str], object]] = {
    "get": lambda url: Files(url).get("a"),
    "get_many": lambda url: Files(url).get_many(["a", "b"]),
    "get_range": lambda url: Files(url).get_range("a", 0, 1),
    "digest": lambda url: Files(url).digest("a"),
    "size": lambda url: Files(url).size("a"),
    "modified": lambda url: Files(url).modified("a"),
    "list": lambda url: list(Files(url).list()),
    "list_below": lambda url: list(Files(url).list("a")),
    "put": lambda url: Files(url).put("a", b"x"),
    "put_volatile": lambda url: Files(url).put_volatile("a", b"x"),
    "delete": lambda url: Files(url).delete("a"),
    "open": open_cache,
    "verify": verify,
    "create": begin,
    "stored targets": stored_targets,
}


@pytest.mark.parametrize("call", CALLS)
def test_every_failure_of_a_driver_is_one_error(failing: str, call: str) -> None:
    with pytest.raises(StoreError) as caught:
        CALLS[call]("failing://bucket/c.zarr")
    said = str(caught.value)
    assert "failing://bucket/c.zarr" in said
    assert str(FAILURES[failing]) in said
    assert "credentials" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("nonsense://bucket/c", StoreError, "Protocol not known: nonsense"),
        ("missingdriver://bucket/c", MissingDependencyError, "install the missing driver"),
    ],
)
def test_a_scheme_nobody_knows_or_has_is_one_error(
    monkeypatch: pytest.MonkeyPatch, url: str, error: type[BevcaskError], words: str
) -> None:
    driver = {"class": "no_such_package.Store", "err": "Please install the missing driver"}
    monkeypatch.setitem(known_implementations, "missingdriver", driver)
    for call in (open_cache, verify, begin, stored_targets):
        with pytest.raises(error, match=words):
            call(url)


LOCAL = {
    "get": ("open", CALLS["get"]),
    "get_range": ("open", CALLS["get_range"]),
    "digest": ("open", CALLS["digest"]),
    "list": ("scandir", CALLS["list"]),
    "put": ("fsync", CALLS["put"]),
    "create": ("fsync", begin),
    "open": ("open", open_cache),
}


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EROFS, errno.ESTALE])
@pytest.mark.parametrize("call", LOCAL)
def test_every_failure_of_a_disk_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    name, work = LOCAL[call]
    real = getattr(os, name)

    def fail(place: Any, *rest: Any, **more: Any) -> Any:
        if isinstance(place, str | Path) and str(tmp_path) not in str(place):
            return real(place, *rest, **more)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(StoreError, match=os.strerror(number)) as caught:
        work(str(tmp_path))
    assert not isinstance(caught.value, DiskFullError)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.partial"))
    assert not (tmp_path / "leases").exists()


@pytest.mark.parametrize(
    "key", ["", ".", "..", "../a", "a/../b", "a/./b", "/etc/passwd", "a//b", "a/", "a\0b"]
)
def test_no_key_leads_out_of_a_store(tmp_path: Path, key: str) -> None:
    assert not is_key(key)
    for files in (Files(str(tmp_path / "c")), Files("memory://border/c")):
        for call in (
            lambda files=files: files.get(key),
            lambda files=files: files.get_range(key, 0, 1),
            lambda files=files: files.digest(key),
            lambda files=files: files.size(key),
            lambda files=files: files.put(key, b"x"),
            lambda files=files: files.delete(key),
        ):
            with pytest.raises(CacheCorruptError, match="leads out of the store"):
                call()


@pytest.mark.parametrize("inner", ["linked", "a/linked"])
def test_nothing_is_changed_or_listed_through_a_linked_folder(tmp_path: Path, inner: str) -> None:
    """Also where a link appears after the store was looked through."""
    precious = tmp_path / "precious"
    (precious / "empty").mkdir(parents=True)
    (precious / "x").write_bytes(b"mine")
    files, link = Files(str(tmp_path / "c")), tmp_path / "c" / inner
    link.parent.mkdir(parents=True)
    link.symlink_to(precious)
    for call in (
        lambda: files.put(f"{inner}/x", b"theirs"),
        lambda: files.put(f"{inner}/new/y", b"theirs"),
        lambda: files.put_volatile(f"{inner}/x", b"theirs"),
        lambda: files.delete(f"{inner}/x"),
        lambda: files.delete_below(inner),
        lambda: files.link_many({f"{inner}/y": precious / "x"}),
        lambda: list(files.list(inner)),
    ):
        with pytest.raises(CacheCorruptError, match=f"symbolic links: {inner}"):
            call()
    files.remove_empty(f"{inner}/empty")
    assert sorted(path.name for path in precious.iterdir()) == ["empty", "x"]
    assert (precious / "x").read_bytes() == b"mine"


def test_dots_in_names_are_names() -> None:
    assert all(map(is_key, ("a", "a/b.c", "targets/a..b/values/c.0.0", "...", ".hidden/x")))


def test_a_cache_one_may_only_read_is_opened_read_and_verified(
    sealed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A colleague's: no write is even tried."""

    def write(*_: object, **__: object) -> None:
        pytest.fail("a write into a store that one may only read")

    for name in ("put_many", "put_volatile", "link_many", "delete", "delete_below", "remove_empty"):
        monkeypatch.setattr(Files, name, write)
    opening = os.open

    def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        assert flags & os.O_ACCMODE == os.O_RDONLY
        return opening(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", opened)
    cache = open_cache(sealed)
    for token in cache.frames.tokens:
        cache.read(token)
    assert cache.runs
    assert cache.frames.timestamps.shape == (6,)
    assert cache.xarray("bev.neck")["values"].compute().shape[0] == 6
    assert verify(sealed).ok
    assert check_values(cache).statistics
    assert stored_targets(sealed)
    build(sealed)  # nothing is missing

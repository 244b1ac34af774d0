"""A cache in a bucket: moto's server on this machine, S3's own driver, and a network that fails."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bevcask.cache import open_cache, signed, verify
from bevcask.cache.files import Files, Span
from bevcask.cache.parts import Part
from bevcask.errors import CacheBusyError, CacheCorruptError, StoreError
from bucket import BUCKET, Proxy, bucket
from cache.example import SPECS, begin, build, encoded

pytest.importorskip("moto.server")
FEW = SPECS[:1]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with bucket() as server:
        yield server


@pytest.fixture(scope="module")
def url(endpoint: str) -> str:
    """A sealed cache of one target."""
    return build(f"s3://{BUCKET}/sealed.zarr", specs=FEW)


def test_keys_and_ranges_are_those_of_a_disk(endpoint: str, tmp_path: Path) -> None:
    for files in (Files(f"s3://{BUCKET}/files"), Files(str(tmp_path))):
        assert list(files.list()) == []
        files.put_many({"a/b": b"0123", "a/c": b"x", "ab": b""})
        assert sorted(files.list()) == ["a/b", "a/c", "ab"]
        assert sorted(files.list("a")) == ["a/b", "a/c"]
        assert files.get_many(["a/b", "no", "ab"]) == {"a/b": b"0123", "no": None, "ab": b""}
        assert files.get("ab") == files.get_range("a/b", 4, 8) == files.get_range("ab", 0, 4) == b""
        spans = [Span("a/b", 1, 3), Span("no", 0, 1), Span("a/b", 3, 9), Span("a/b", 5, 9)]
        assert list(files.get_ranges(spans)) == [b"12", None, b"3", b""]
        assert files.digest("no") is files.size("no") is files.modified("no") is None
        before = files.digest("a/b")
        Files(files.url).put("a/b", b"01234")  # another process, between a listing and a question
        assert files.size("a/b") == 5
        assert files.digest("a/b") != before
        files.delete_below("a")
        files.delete("ab")
        files.delete("ab")
        assert list(files.list()) == []


def test_a_cache_in_a_bucket_is_that_of_a_disk(url: str, tmp_path: Path) -> None:
    disk = open_cache(build(tmp_path / "c", specs=FEW))
    cache = open_cache(url)
    assert cache.id == disk.id
    theirs, ours = (c.read_batch(c.frames.tokens)["bev.neck"] for c in (disk, cache))
    assert np.array_equal(theirs.values, ours.values)
    assert np.array_equal(theirs.scale, ours.scale)  # type: ignore[arg-type]


def test_a_network_that_fails_costs_time_and_no_byte(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.02)  # botocore's pauses
    contents = {f"a/{number}": bytes([number]) * 1000 for number in range(8)}
    with Proxy(endpoint, rate=0.12, pause=0.01) as proxy:
        files = Files(f"s3://{BUCKET}/shaken")
        files.put_many(contents)
        assert sorted(files.list()) == sorted(contents)
        assert files.get_many(contents) == contents
        for key, data in contents.items():
            assert files.get_range(key, 3, 8) == data[3:8]
        files.delete_below("a")
        assert list(files.list()) == []
    failed = [fate for fate in proxy.fates.elements() if fate.startswith(("error", "cut"))]
    assert len(failed) >= 5


@pytest.mark.slow
def test_a_cache_written_through_a_failing_network(endpoint: str, url: str) -> None:
    with Proxy(endpoint, rate=0.03) as proxy:
        shaken = build(f"s3://{BUCKET}/shaken.zarr", specs=FEW)
        assert verify(shaken).ok
    assert proxy.fates["well"] < 0.95 * proxy.fates.total()
    files, calm = Files(shaken), Files(url)
    keys = [key for key in calm.list() if not key.startswith("provenance/")]
    assert files.get_many(keys) == calm.get_many(keys)


def test_ranges_need_no_driver_where_all_is_well(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3fs import S3FileSystem

    asked: list[str] = []
    real = S3FileSystem._cat_file

    async def noted(self: S3FileSystem, path: str, **more: int) -> bytes:
        asked.append(path)
        return await real(self, path, **more)  # type: ignore[no-any-return]

    monkeypatch.setattr(S3FileSystem, "_cat_file", noted)
    key = "targets/bev.neck/values/c.0.0.0.0"
    whole = Files(url).get(key)
    assert whole is not None
    asked.clear()
    spans = [Span(key, start, start + 9) for start in range(20)]
    assert list(Files(url).get_ranges(spans)) == [whole[n : n + 9] for n in range(20)]
    assert asked == []
    assert list(Files(url).get_ranges([*spans[:1], Span("none", 0, 1)])) == [whole[:9], None]
    assert [path.rpartition("/")[2] for path in asked] == ["none"]


def test_a_driver_reads_on_where_addresses_are_refused(
    endpoint: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signed, "_STRIKES", 2)
    with Proxy(endpoint) as proxy:
        proxy.refuses = "X-Amz-Signature="
        spans = [Span("zarr.json", start, start + 5) for start in range(6)]
        files = Files(url)
        expected = [files.get_range(*span[:3]) for span in spans]
        for span, data in zip(spans, expected, strict=True):
            assert list(files.get_ranges([span])) == [data]
    assert proxy.fates["refused"] == 2


def test_a_bucket_that_is_not_there_is_named(endpoint: str) -> None:
    for call in (open_cache, verify, begin):
        with pytest.raises(StoreError, match=r"there is no bucket nowhere .*AWS_ENDPOINT_URL"):
            call("s3://nowhere/c.zarr")


def test_who_is_refused_is_told_what_is_needed(endpoint: str, url: str) -> None:
    with Proxy(endpoint, denies=True):
        for call in (open_cache, verify, begin, lambda at: list(Files(at).list())):
            with pytest.raises(StoreError, match=r"refuses it \(403, .*list the bucket"):
                call(url)


def test_a_shortened_object_is_damage_and_no_failure_of_the_store(url: str) -> None:
    files, cache = Files(url), open_cache(url)
    key = "targets/bev.neck/values/c.0.0.0.0"
    data = files.get(key)
    assert data is not None
    files.put(key, data[:3])
    with pytest.raises(CacheCorruptError, match=key):
        cache.read(cache.frames.tokens[0])
    assert [problem.key for problem in verify(url).problems] == [key]
    files.put(key, data)
    assert cache.read(cache.frames.tokens[0])


@pytest.mark.slow
def test_two_writers_share_a_bucket(endpoint: str) -> None:
    place = f"s3://{BUCKET}/both.zarr"
    writers = [begin(place, specs=FEW, part=Part(number, 2)) for number in (1, 2)]
    with writers[0], writers[1]:
        with pytest.raises(CacheBusyError), begin(place, specs=FEW):
            pass
        for writer in writers:
            for shard in writer.missing():
                writer.write(shard, encoded(writer, shard))
    for writer in writers:
        writer.seal()
    assert verify(place).ok

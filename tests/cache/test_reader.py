"""Reading: what was said is what is read, by token, and nothing else is served."""

import json
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from bevcask.cache import Cache, FrameTable, dequantize, open_cache
from bevcask.cache.commit import Committed, encode_row
from bevcask.cache.files import Files
from bevcask.cache.seal import seal
from bevcask.errors import (
    CacheCorruptError,
    CacheIdentityError,
    CacheIncompleteError,
    TokenNotCachedError,
    UnknownNameError,
)
from bevcask.fingerprint import digest
from cache.example import (
    FINGERPRINT,
    PLAN,
    SPECS,
    begin,
    build,
    commit_folder,
    count_of,
    encoded,
    truth,
)


def assert_says_the_truth(cache: Cache, frame: int) -> None:
    read = cache.read(cache.frames.tokens[frame])
    assert set(read) == {spec.name for spec in SPECS}
    for spec in SPECS:
        sample, said = read[spec.name], truth(spec, frame)
        assert sample.values.dtype == spec.codec
        scale = None if sample.scale is None else torch.from_numpy(sample.scale)
        got = dequantize(torch.from_numpy(sample.values), scale)
        if spec.region.name == "confident":
            region = said.amax(dim=0) > spec.region.threshold
            assert torch.equal(torch.from_numpy(sample.region), region)
            assert 0 < region.sum() < region.numel()
            said = said * region
        else:
            assert sample.region is None
        error = (got - said).abs()
        bound = said.abs() * 2**-11 if scale is None else scale.max() * 0.5001
        assert (error <= bound).all(), spec.name
        if spec.codec == "float32":
            assert torch.equal(got, said)
        if spec.tap.kind.endswith("_set"):
            assert int(sample.count) == count_of(frame)
        else:
            assert sample.count is None


@pytest.mark.parametrize("scheme", ["path", "file", "memory"])
def test_every_kind_round_trips(scheme: str, tmp_path: Path) -> None:
    url = {"path": f"{tmp_path}/c", "file": f"file://{tmp_path}/c", "memory": "memory://round/c"}
    cache = open_cache(build(url[scheme]))
    for frame in reversed(range(6)):
        assert_says_the_truth(cache, frame)


def test_a_batch_is_its_samples_stacked(sealed: str) -> None:
    cache = open_cache(sealed)
    tokens = [cache.frames.tokens[frame] for frame in (4, 0, 4, 5)]
    batch = cache.read_batch(tokens)
    samples = [cache.read(token) for token in tokens]
    assert set(batch) == set(samples[0])
    for name, target in batch.items():
        for part, stacked in vars(target).items():
            singles = [getattr(sample[name], part) for sample in samples]
            if stacked is None:
                assert singles == [None] * 4
            else:
                assert stacked.dtype == np.stack(singles).dtype
                np.testing.assert_array_equal(stacked, np.stack(singles))
    assert not np.array_equal(batch["bev.neck"].values[0], batch["bev.neck"].values[1])


def test_names_limit_what_is_read(sealed: str) -> None:
    cache = open_cache(sealed)
    assert list(cache.read(cache.frames.tokens[0], ["bev.signed"])) == ["bev.signed"]
    with pytest.raises(UnknownNameError, match=r"no target 'bev.nek'. Did you mean 'bev.neck'\?"):
        cache.read(cache.frames.tokens[0], ["bev.nek"])
    with pytest.raises(UnknownNameError):
        cache.dask("bev.nek")


def test_what_a_caller_does_to_a_sample_stays_with_the_caller(sealed: str) -> None:
    cache = open_cache(sealed)
    token = cache.frames.tokens[1]
    for sample in cache.read(token).values():
        for array in (sample.values, sample.scale, sample.region, sample.count):
            if isinstance(array, np.ndarray) and array.ndim:
                array[...] = 0
    assert_says_the_truth(cache, 1)


def test_attributes(sealed: str) -> None:
    cache = open_cache(sealed)
    assert isinstance(cache.frames, FrameTable)
    assert list(cache.frames.scenes) == ["scene-0"] * 3 + ["scene-1"] * 2 + ["scene-2"]
    assert cache.frames.timestamps.tolist() == [1000.5 + i for i in range(6)]
    assert cache.frames.lidar_to_global[:, 0, 3].tolist() == list(range(6))
    assert cache.specs == {spec.name: spec for spec in SPECS}
    assert (cache.fingerprint, cache.plan) == (FINGERPRINT, PLAN)
    assert cache.provenance == {"host": "here"}
    assert cache.sealed
    assert cache.id == digest(cache.identity)
    assert cache.coverage == {"scene-0": (3, 3), "scene-1": (2, 2), "scene-2": (1, 1)}


def test_bytes(sealed: str) -> None:
    cache = open_cache(sealed)
    on_disk = sum(
        path.stat().st_size
        for array in ("values", "scale")
        for path in (Path(sealed) / "targets/bev.neck" / array).glob("c.*")
    )
    assert cache.stored_bytes("bev.neck") == on_disk
    assert cache.stored_bytes("bev.silent") == 0


def test_unknown_token(sealed: str) -> None:
    with pytest.raises(TokenNotCachedError, match="6 frames of 3 scenes"):
        open_cache(sealed).read("f" * 32)


def test_no_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheIncompleteError, match=r"no cache at .*teacher-extract"):
        open_cache(str(tmp_path / "nothing"))
    with pytest.raises(CacheIncompleteError, match="no cache at memory"):
        open_cache("memory://nothing/here")


def test_unsealed_is_refused_unless_asked_for(tmp_path: Path) -> None:
    writer = begin(tmp_path / "c")
    writer.write(2, encoded(writer, 2))
    for opening in (open_cache, Cache):
        with pytest.raises(CacheIncompleteError, match=r"1 of 4 shards .*teacher-extract"):
            opening(str(tmp_path / "c"))
    cache = open_cache(str(tmp_path / "c"), allow_unsealed=True)
    assert cache.coverage == {"scene-0": (0, 3), "scene-1": (2, 2), "scene-2": (0, 1)}
    assert_says_the_truth(cache, 4)
    with pytest.raises(CacheIncompleteError, match="shard 0 is not committed"):
        cache.read(cache.frames.tokens[0])
    with pytest.raises(CacheIncompleteError):
        cache.dask("bev.neck").compute(scheduler="synchronous")


def test_pickle_and_fork(sealed: str) -> None:
    cache = open_cache(sealed)
    cache.read(cache.frames.tokens[0])
    again = pickle.loads(pickle.dumps(cache))
    assert_says_the_truth(again, 5)
    child = os.fork()
    if child == 0:
        os._exit(0 if (cache.read(cache.frames.tokens[3])["bev.neck"].values > 0).any() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_another_schema_version_is_refused(copied: Path) -> None:
    from bevcask.cache.metadata import seal_json

    root = copied / "zarr.json"
    document = json.loads(root.read_bytes())
    document["attributes"]["schema_version"] = 99
    root.write_bytes(seal_json(document))
    with pytest.raises(CacheIdentityError, match="expected format bevcask schema_version 4, got"):
        open_cache(str(copied))


def test_missing_objects_are_found(copied: Path) -> None:
    cache = open_cache(str(copied))
    (copied / "targets/bev.neck/values/c.0.0.0.0").unlink()
    (copied / "targets/bev.neck/scale/c.2.0").unlink()
    with pytest.raises(CacheCorruptError, match=r"values/c.0.0.0.0: committed, but gone"):
        cache.read(cache.frames.tokens[0])
    with pytest.raises(CacheCorruptError, match=r"scale/c.2.0: committed, but gone"):
        cache.read(cache.frames.tokens[3])
    (copied / "frames/timestamp/c.0").unlink()
    with pytest.raises(CacheCorruptError, match=r"frames/timestamp/c.0: committed, but gone"):
        _ = cache.frames.timestamps
    (commit_folder(copied) / "c.0.0.0").unlink()
    with pytest.raises(CacheCorruptError, match=r"commit/\w{16}/c.0.0.0: sealed, but gone"):
        open_cache(str(copied))


def test_truncated_object_is_found(copied: Path) -> None:
    path = copied / "targets/bev.neck/values/c.0.0.0.0"
    path.write_bytes(path.read_bytes()[:-7])
    cache = open_cache(str(copied))
    with pytest.raises(CacheCorruptError):
        cache.read(cache.frames.tokens[0])


def test_opening_touches_few_files_and_little_memory_however_many_rows(tmp_path: Path) -> None:
    """20,000 rows: as many files as for 80, a fraction of what the tokens would take as strings."""
    opened: dict[int, list[str]] = {}
    get = Files.get
    for num in (80, 20_000):
        url = sealed_of_nothing(tmp_path / str(num), num)
        keys = opened.setdefault(num, [])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Files, "get", lambda *call, log=keys: log.append(call[1]) or get(*call))
            tracemalloc.start()
            cache = open_cache(url)
            row = cache.layout.row_of[f"{num - 1:032x}"]
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert row == num - 1
    assert len(opened[80]) == len(opened[20_000]) < 40
    assert not any("lidar_to_global/c." in key for key in opened[20_000])
    assert peak < 80 * 20_000


def test_floats_are_what_was_said_and_sets_end_where_they_do(sealed: str) -> None:
    cache = open_cache(sealed)
    for frame, token in enumerate(cache.frames.tokens[:3]):
        for name, values in cache.read_float(token, ["head.boxes", "bev.neck"]).items():
            [spec] = [spec for spec in SPECS if spec.name == name]
            said = truth(spec, frame).numpy()[: count_of(frame) if name == "head.boxes" else None]
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, said, atol=said.max() / 255)


def sealed_of_nothing(url: Path, num: int) -> str:
    """Seal a cache of one silent target without ever writing a shard."""
    frames = FrameTable(
        [f"{i:032x}" for i in range(num)],
        [f"scene-{i // 40}" for i in range(num)],
        np.arange(float(num)),
        np.zeros((num, 4, 4)),
    )
    cache = begin(url, specs=SPECS[:1], frames=frames, shard_rows=8).cache
    row = encode_row([Committed.of(b"", array, 8) for array in cache.layout.arrays])
    seal(cache, [row] * cache.layout.num_shards)
    return str(url)


def test_poses_are_read_when_they_are_asked_for(copied: Path) -> None:
    path = copied / "frames/lidar_to_global/c.0.0.0"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    cache = open_cache(str(copied))
    cache.read(cache.frames.tokens[0])
    with pytest.raises(CacheCorruptError, match=r"lidar_to_global/c.0.0.0: its bytes do not match"):
        _ = cache.frames.lidar_to_global
    path.write_bytes(before)
    assert cache.frames.lidar_to_global is cache.frames.lidar_to_global


@pytest.mark.parametrize("allow_unsealed", [False, True])
def test_a_cache_sealed_while_it_is_opened_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allow_unsealed: bool
) -> None:
    with begin(tmp_path) as writer:
        for shard in writer.missing():
            writer.write(shard, encoded(writer, shard))
    listing = Files.list

    def sealed_meanwhile(self: Files, below: str = "") -> list[str]:
        found = list(listing(self, below))
        if below.endswith(".open"):
            monkeypatch.setattr(Files, "list", listing)
            writer.seal()
        return found

    monkeypatch.setattr(Files, "list", sealed_meanwhile)
    cache = open_cache(str(tmp_path), allow_unsealed)
    assert cache.sealed
    assert_says_the_truth(cache, 2)


@pytest.mark.parametrize("sealed_meanwhile", [False, True])
def test_a_cache_that_grows_is_followed(tmp_path: Path, sealed_meanwhile: bool) -> None:
    url = str(tmp_path / "c")
    with begin(url) as writer:
        first, *others = writer.missing()
        writer.write(first, encoded(writer, first))
        cache = open_cache(url, allow_unsealed=True)
        near = pickle.loads(pickle.dumps(cache))
        with pytest.raises(CacheIncompleteError):
            cache.read(cache.frames.tokens[-1])
        for shard in others:
            writer.write(shard, encoded(writer, shard))
    if sealed_meanwhile:
        writer.seal()
    whole = open_cache(url, allow_unsealed=True)
    for follower in (cache, near):
        found, expected = (c.read_batch(c.frames.tokens) for c in (follower, whole))
        assert all(np.array_equal(found[name].values, expected[name].values) for name in expected)

"""No read serves the bytes of another shard, nor those of an older version of its own."""

import itertools
import random
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from bevcask.cache import Encoded, open_cache, verify
from bevcask.cache.chunks import encode_plain
from bevcask.errors import CacheCorruptError
from bevcask.geometry import Grid
from bevcask.targets.spec import Region, TapInfo, TargetSpec
from cache.example import begin, frame_table

GRID = Grid.square(4, 1.0)
SPECS = (
    TargetSpec(TapInfo("bev.neck", "dense_bev", (4, 8, 8), GRID, nonnegative=True), "uint8"),
    TargetSpec(
        TapInfo("head.heatmap", "heatmap", (2, 8, 8), GRID, nonnegative=True),
        "float32",
        Region("confident", 0.5),
    ),
    TargetSpec(TapInfo("head.boxes", "box_set", (5, 11)), "float32"),
)


def fill(url: Path, version: int) -> Path:
    """Seal a cache of noise: it does not compress, so files of one array have one length."""
    with begin(url, specs=SPECS, frames=frame_table((4, 4, 4))) as writer:
        for shard in writer.missing():
            noise = np.random.default_rng([version, shard])
            floats = noise.random((2, 2, 8, 8), np.float32)
            writer.write(
                shard,
                {
                    "bev.neck": Encoded(
                        noise.integers(0, 255, (2, 4, 8, 8), np.uint8),
                        noise.random((2, 4), np.float32),
                    ),
                    "head.heatmap": Encoded(floats, None, noise.random((2, 8, 8)) > 0.5),
                    "head.boxes": Encoded(
                        noise.random((2, 5, 11), np.float32), None, None, noise.integers(1, 6, 2)
                    ),
                },
            )
    writer.seal()
    return url


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("swapped")
    return [fill(folder / f"{version}.zarr", version) for version in range(2)]


@pytest.fixture
def url(versions: list[Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(versions[1], tmp_path / "c.zarr"))


def objects_of(url: Path) -> list[str]:
    cache = open_cache(str(url))
    shards = range(cache.layout.num_shards)
    return [a.object_key(shard) for a, shard in itertools.product(cache.layout.arrays, shards)]


def served(url: Path) -> dict[str, list[bytes]]:
    """Return the bytes of every frame that a read serves."""
    cache, found = open_cache(str(url)), {}
    for token in cache.frames.tokens:
        for name in cache.specs:
            with suppress(CacheCorruptError):
                sample = cache.read(token, [name])[name]
                parts = (sample.values, sample.scale, sample.region, sample.count)
                found[f"{token} {name}"] = [b"" if p is None else p.tobytes() for p in parts]
    return found


def test_no_swap_of_two_files_is_served(url: Path) -> None:
    truth = served(url)
    seeded = random.Random(0)
    keys = objects_of(url)
    pairs = [
        (a, b)
        for a, b in itertools.combinations(keys, 2)
        if a.rpartition("/")[0] == b.rpartition("/")[0]
    ]
    same_length = 0
    for one, other in seeded.sample(pairs, 50):
        first, second = (url / one).read_bytes(), (url / other).read_bytes()
        assert first != second
        same_length += len(first) == len(second)
        (url / one).write_bytes(second)
        (url / other).write_bytes(first)
        left = served(url)
        assert len(truth) - len(left) == 4, (one, other)
        assert all(truth[name] == sample for name, sample in left.items())
        (url / one).write_bytes(first)
        (url / other).write_bytes(second)
    assert same_length > 20
    assert verify(str(url)).ok


def test_no_older_version_of_a_file_is_served(url: Path, versions: list[Path]) -> None:
    truth = served(url)
    seeded = random.Random(1)
    keys = [k for k in objects_of(url) if (url / k).read_bytes() != (versions[0] / k).read_bytes()]
    for key in seeded.sample(keys, 15):
        before = (url / key).read_bytes()
        (url / key).write_bytes((versions[0] / key).read_bytes())
        left = served(url)
        assert len(truth) - len(left) == 2, key
        assert all(truth[name] == sample for name, sample in left.items())
        (url / key).write_bytes(before)


def test_no_row_that_has_gone_from_a_file_is_served_as_nothing(url: Path) -> None:
    """An index without the row is a lawful index: only the commit knows that there was one."""
    key = "boxes/head.boxes/values/c.0.0.0"
    data = (url / key).read_bytes()
    index = bytearray(data[-36:-4])
    index[:16] = b"\xff" * 16
    (url / key).write_bytes(data[:-36] + encode_plain(bytes(index)))
    with pytest.raises(CacheCorruptError, match="not the bytes that were committed: damaged, or"):
        open_cache(str(url)).read(f"{0xABC0:032x}", ["head.boxes"])
    assert not [name for name in served(url) if name.startswith(f"{0xABC0:032x} head.boxes")]

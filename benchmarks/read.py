"""How fast do random samples of targets become a batch, and how many bytes do they take?

    python benchmarks/read.py FOLDER [--size tiny|paper] [--frames N] [--rounds N]

FOLDER gets a synthetic world, a cache, and the same samples in nine other kinds of store: once as
the cache holds them (`stored`: integers and scales), once as their users would (`float16`: the
values themselves). Every arm reads the same random samples into stacked torch tensors, in batches
of four, in one thread; WebDataset, which cannot, streams through its shuffle buffer.

    warm        every file of the store is in the page cache
    cold        none is: the store is opened, then its files are dropped (POSIX_FADV_DONTNEED)
    believing   the same cache, read without the check that bytes are those that were committed
    codec       what no reader of these bytes can beat: crc32c and zstd of them in memory

`tiny` is the trained teacher of the demo, `paper` a CenterPoint of published size with random
weights, whose dense maps compress worse than a trained one's.
"""

import argparse
import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import google_crc32c
import numpy as np
import torch
from measure import ground, interleave, make_world, ratio, report
from numcodecs.zstd import Zstd
from stores import PEERS, Arrays, Believing, Bevcask, Store, flat

from bevcask.cache import open_cache
from bevcask.cache.chunks import encode_chunk
from bevcask.cache.quantize import dequantize
from bevcask.compose import compose
from bevcask.stages import teacher_extract
from bevcask.verbs import ExtractConfig

SEED = 0
BATCH = 4
OURS = "bevcask"
BELIEVING = "bevcask, believing"


@dataclass(frozen=True)
class Size:
    """One configuration, fixed before anything is timed.

    Attributes:
        words: the extraction's configuration.
        weights: where the teacher's come from.
        num_frames: frames of the world and rows of every store.
        num_reads: samples an arm reads a round.
    """

    words: tuple[str, ...]
    weights: str
    num_frames: int
    num_reads: int


SIZES = {
    "tiny": Size(
        (
            "teacher=centerpoint_tiny",
            "teacher.checkpoint=catalog:centerpoint_tiny_synthetic",
            "method=distillbev",
            "loader.batch_size=4",
        ),
        weights="trained on a synthetic world (catalog:centerpoint_tiny_synthetic)",
        num_frames=128,
        num_reads=32,
    ),
    "paper": Size(
        ("teacher=centerpoint", "method=distillbev", "loader.batch_size=2"),
        weights="random, seeded",
        num_frames=24,
        num_reads=8,
    ),
}


def make_cache(size: Size, folder: Path) -> Path:
    """Write a world and run the teacher over it; goes on where an earlier run stopped."""
    root = folder / "world"
    if not root.exists():
        make_world(root, size.num_frames, image_width=64)
    url = folder / "cache.zarr"
    data = ["dataset=synthetic", f"dataset.root={root}", "dataset.split=all"]
    limit = f"dataset.limit={size.num_frames}"
    words = [*size.words, *data, limit, f"seed={SEED}", f"cache={url}"]
    teacher_extract.run(compose(ExtractConfig, words))
    return url


def stored_samples(url: Path) -> list[Arrays]:
    """Return what the cache holds of every frame, as `TAP/PART`."""
    cache = open_cache(str(url))
    whole = [flat(cache.read(token)) for token in cache.frames.tokens]
    return [{key: np.asarray(array) for key, array in sample.items()} for sample in whole]


def as_float16(sample: Arrays) -> Arrays:
    """Return the values of integers with a scale as float16; the rest stays."""
    found = {}
    for key, array in sample.items():
        scale = sample.get(key.replace("/values", "/scale"))
        if key.endswith("/values") and scale is not None:
            values = dequantize(torch.from_numpy(array), torch.from_numpy(scale))
            found[key] = values.half().numpy()
        elif not key.endswith("/scale"):
            found[key] = array
    return found


def make_stores(url: Path, folder: Path) -> dict[str, Store]:
    """Write every peer; return all stores by `NAME, PAYLOAD`, bevcask first."""
    stored = stored_samples(url)
    payloads = {"stored": stored, "float16": [as_float16(sample) for sample in stored]}
    stores: dict[str, Store] = {OURS: Bevcask(url)}
    for (payload, samples), (name, make) in product(payloads.items(), PEERS.items()):
        place = folder / "peers" / f"{name}.{payload}".replace(" ", "_")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        stores[f"{name}, {payload}"] = store = make(place)
        store.write(samples)
        check_contents(store, samples)
        sys.stderr.write(f"wrote {place.name}: {num_bytes(store) / 1e6:.1f} MB\n")
    os.sync()  # pages that are not on the disk yet cannot be dropped
    return stores


def check_contents(store: Store, samples: list[Arrays]) -> None:
    """Make sure that a store gives back what it was given, bit for bit."""
    store.open()
    order = random.Random(SEED).sample(range(len(samples)), min(2 * BATCH, len(samples)))
    for numbers, batch in store.batches(order, BATCH):
        for place, number in enumerate(numbers):
            assert set(batch) == set(samples[number])
            for key, array in samples[number].items():
                assert batch[key].dtype == array.dtype, (store.folder, key)
                assert np.array_equal(batch[key][place], array), (store.folder, key)
    store.close()


def files_of(store: Store) -> list[Path]:
    """Return every file of a store."""
    return [path for path in sorted(store.folder.rglob("*")) if path.is_file()]


def num_bytes(store: Store) -> int:
    """Return the bytes of all files of a store, metadata included."""
    return sum(path.stat().st_size for path in files_of(store))


def drop(store: Store) -> None:
    """Drop a store's files from the page cache."""
    for path in files_of(store):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


class Clocks:
    """One clock an arm; in a round all of them read the same samples."""

    def __init__(self, stores: dict[str, Store], num_samples: int, num_reads: int) -> None:
        self._stores = stores
        self._num_samples, self._num_reads = num_samples, num_reads
        self._turns: dict[str, int] = {}
        self._chunks = _chunks(stores[OURS])
        self._zstd = Zstd(level=1)

    def arms(self) -> dict[str, Callable[[], float]]:
        """Return seconds-a-sample clocks: every store warm and cold, and the codec."""
        arms: dict[str, Callable[[], float]] = {"codec": self._decode}
        for name in self._stores:
            arms[f"{name}, warm"] = lambda name=name: self._warm(name)  # type: ignore[misc]
            arms[f"{name}, cold"] = lambda name=name: self._cold(name)  # type: ignore[misc]
        return arms

    def _order(self, arm: str) -> list[int]:
        turn = self._turns[arm] = self._turns.get(arm, -1) + 1
        return random.Random(turn).sample(range(self._num_samples), self._num_reads)

    def _read(self, store: Store, order: list[int]) -> None:
        for _, batch in store.batches(order, BATCH):
            for array in batch.values():
                torch.from_numpy(array)

    def _warm(self, name: str) -> float:
        store, order = self._stores[name], self._order(f"{name}, warm")
        for path in files_of(store):
            path.read_bytes()
        store.open()
        self._read(store, order[:BATCH])  # indexes and allocators, as after the first steps
        start = perf_counter()
        self._read(store, order)
        seconds = perf_counter() - start
        store.close()
        return seconds / len(order)

    def _cold(self, name: str) -> float:
        store, order = self._stores[name], self._order(f"{name}, cold")
        store.open()
        drop(store)
        start = perf_counter()
        self._read(store, order)
        seconds = perf_counter() - start
        store.close()
        return seconds / len(order)

    def _decode(self) -> float:
        order = self._order("codec")
        start = perf_counter()
        for number in order:
            for chunk, out in self._chunks[number]:
                google_crc32c.value(chunk)
                self._zstd.decode(memoryview(chunk)[:-4], out=out)
        return (perf_counter() - start) / len(order)


def _chunks(ours: Store) -> list[list[tuple[bytes, Any]]]:
    """Return every sample's maps as they are on the disk, and arrays to decode them into."""
    samples = stored_samples(ours.folder)
    values = [[a for key, a in s.items() if key.endswith("/values")] for s in samples]
    outs = [np.empty_like(array) for array in values[0]]
    encoded = [[encode_chunk(array) for array in arrays] for arrays in values]
    return [
        [(chunk, out) for chunk, out in zip(chunks, outs, strict=True) if chunk]
        for chunks in encoded
    ]


def measure(size: Size, folder: Path, rounds: int) -> dict[str, Any]:
    """Write everything, time all arms; return seconds, bytes, ratios and what they stand on."""
    result = ground(torch.device("cpu"), [*size.words, f"batch={BATCH}"], SEED)
    stores = make_stores(make_cache(size, folder), folder)
    torch.set_num_threads(1)
    num_frames = len(open_cache(str(stores[OURS].folder)).frames.tokens)
    bytes_a_sample = {name: num_bytes(store) / num_frames for name, store in stores.items()}
    arms = {**stores, BELIEVING: Believing(stores[OURS].folder)}
    clocks = Clocks(arms, num_frames, min(size.num_reads, num_frames))
    seconds = interleave(clocks.arms(), rounds, SEED)

    def times(slow: str, fast: str, goal: str | None = None) -> dict[str, Any]:
        pairs = zip(seconds[slow], seconds[fast], strict=True)
        return ratio(f"{slow} / {fast}", [a / b for a, b in pairs], goal)

    peers = [name for name in stores if name != OURS]
    ratios = {
        (name, state): times(f"{name}, {state}", f"{OURS}, {state}")
        for name, state in product(peers, ("warm", "cold"))
    }
    return result | {
        "weights": size.weights,
        "frames": num_frames,
        "bytes_a_sample": bytes_a_sample,
        "both_smaller_and_faster": [
            f"{name}, {state}"
            for (name, state), row in ratios.items()
            if bytes_a_sample[name] < bytes_a_sample[OURS] and row["median"] < 1
        ],
        "seconds": seconds,
        "ratios": [
            times(f"{OURS}, warm", "codec", "<= 1.25"),
            times(f"{OURS}, warm", f"{BELIEVING}, warm", "<= 1.05"),
            times(f"{OURS}, cold", f"{BELIEVING}, cold", "<= 1.05"),
            *ratios.values(),
        ],
    }


def table(result: dict[str, Any]) -> str:
    """Return the result as a Markdown table, ratios to bevcask."""
    own = result["bytes_a_sample"][OURS]
    medians = {row["name"]: row["median"] for row in result["ratios"]}
    lines = [
        "| store | bytes a sample | samples/s warm | speed warm | speed cold |",
        "|---|---|---|---|---|",
    ]
    for name, size in result["bytes_a_sample"].items():
        speeds = [
            1 / medians.get(f"{name}, {state} / {OURS}, {state}", 1.0) for state in ("warm", "cold")
        ]
        rate = 1 / median(result["seconds"][f"{name}, warm"])
        lines.append(
            f"| {name} | {size:,.0f} ({size / own:.2f}) | {rate:,.0f} | {speeds[0]:.2f} "
            f"| {speeds[1]:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="for the world, the cache and the other stores")
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="JSON file (default: results/NAME.json)")
    options = parser.parse_args()
    os.environ["BEVCASK_HOME"] = str(options.folder / "home")
    result = measure(SIZES[options.size], options.folder, options.rounds)
    print(table(result))
    print("both smaller and faster than bevcask:", result["both_smaller_and_faster"] or "none")
    report("read" if options.size == "tiny" else f"read_{options.size}", result, options.out)


if __name__ == "__main__":
    main()

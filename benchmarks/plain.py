"""How fast is a cache for those who open it without bevcask, and do they read what is there?

`make` writes a cache of a trained tiny teacher, and beside it what bevcask's reader says of it.
`read` then takes random batches of rows through each way that this environment has: bevcask's
reader, bevcask's dask arrays, and zarr-python with the codec pipelines that are installed. It needs
numpy and zarr alone, so that an environment of another zarr can answer too. `--compare N` holds N
random selections of each pipeline against the reader's bytes.

    python benchmarks/plain.py make FOLDER
    python benchmarks/plain.py read FOLDER --compare 10000
    OTHER/bin/python benchmarks/plain.py read FOLDER --name plain_next
"""

import argparse
import importlib
import importlib.util
import json
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

TARGETS = ("bev.neck", "head.heatmap")
BATCH = 4
PIPELINES = {
    "zarr, default": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "zarr, fused": "zarr.core.codec_pipeline.FusedCodecPipeline",
    "zarr, zarrs": "zarrs.ZarrsCodecPipeline",
}
Values = npt.NDArray[Any]


def make(folder: Path, frames: int) -> None:
    """Write `cache.zarr` and `reference.npz` (values as stored, by target)."""
    from measure import make_world

    from bevcask.cache import open_cache
    from bevcask.compose import compose
    from bevcask.stages import teacher_extract
    from bevcask.verbs import ExtractConfig

    world, url = make_world(folder / "world", frames, 160), str(folder / "cache.zarr")
    words = [f"dataset.root={world}", "dataset=synthetic", "dataset.split=all", "device=cpu"]
    words += ["teacher=centerpoint_tiny", "teacher.checkpoint=catalog:centerpoint_tiny_synthetic"]
    words += ["method=distillbev_tiny", f"cache={url}"]
    teacher_extract.run(compose(ExtractConfig, words))
    cache = open_cache(url)
    stored = cache.read_batch(cache.frames.tokens, TARGETS)
    rows = np.array([cache.layout.row_of[token] for token in cache.frames.tokens])
    np.savez(folder / "reference.npz", rows=rows, **{n: stored[n].values for n in TARGETS})


def pipelines() -> dict[str, str]:
    """Return the codec pipelines that can be imported here."""
    found = {}
    for name, path in PIPELINES.items():
        module, _, attribute = path.rpartition(".")
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            continue
        if hasattr(importlib.import_module(module), attribute):
            found[name] = path
    return found


def arrays(url: str, pipeline: str) -> dict[str, Any]:
    """Open the values of the targets under a codec pipeline."""
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        group = zarr.open_group(url, mode="r")
        return {name: group[f"targets/{name}/values"] for name in TARGETS}


def ways(url: str, rows: Values) -> dict[str, Callable[[Values], dict[str, Values]]]:
    """Return what reads a batch of frames, by name."""
    found: dict[str, Callable[[Values], dict[str, Values]]] = {}
    if importlib.util.find_spec("bevcask") is not None:
        from bevcask.cache import open_cache

        cache = open_cache(url)
        lazy = {name: cache.dask(name, frames=1) for name in TARGETS}

        def by_reader(frames: Values) -> dict[str, Values]:
            tokens = [cache.frames.tokens[frame] for frame in frames]
            return {name: own.values for name, own in cache.read_batch(tokens, TARGETS).items()}

        def by_dask(frames: Values) -> dict[str, Values]:
            return {n: own[frames].compute(scheduler="sync") for n, own in lazy.items()}

        found |= {"bevcask": by_reader, "bevcask, dask": by_dask}
    for name, path in pipelines().items():
        opened = arrays(url, path)

        def by_zarr(frames: Values, opened: dict[str, Any] = opened) -> dict[str, Values]:
            return {n: np.stack([own[rows[f]] for f in frames]) for n, own in opened.items()}

        found[name] = by_zarr
    return found


def measure(folder: Path, rounds: int, reads: int) -> dict[str, list[float]]:
    """Return samples a second of each way, a number a round."""
    with np.load(folder / "reference.npz") as reference:
        rows = reference["rows"]
    order, found = np.random.default_rng(0), ways(str(folder / "cache.zarr"), rows)
    rates: dict[str, list[float]] = {name: [] for name in found}
    for number in range(-1, rounds):
        batches = [order.choice(len(rows), BATCH, replace=False) for _ in range(reads)]
        for name in random.Random(number).sample(sorted(found), len(found)):
            start = time.perf_counter()
            for frames in batches:
                found[name](frames)
            if number >= 0:
                rates[name].append(BATCH * reads / (time.perf_counter() - start))
    return rates


def compare(folder: Path, count: int) -> dict[str, int]:
    """Return how many of `count` random selections of each pipeline are not the reader's bytes."""
    with np.load(folder / "reference.npz") as reference:
        whole = {name: reference[name] for name in TARGETS}
        rows = reference["rows"]
    wrong = {}
    for pipeline, path in pipelines().items():
        draw, opened = np.random.default_rng(1), arrays(str(folder / "cache.zarr"), path)
        wrong[pipeline] = 0
        for number in range(count):
            name = TARGETS[number % len(TARGETS)]
            frame = int(draw.integers(len(rows)))
            boxed = tuple(_part(draw, size) for size in whole[name].shape[1:])
            same = np.array_equal(
                opened[name][(int(rows[frame]), *boxed)], whole[name][frame][boxed]
            )
            wrong[pipeline] += not same
    return wrong


def _part(draw: np.random.Generator, size: int) -> slice:
    start = int(draw.integers(size))
    return slice(start, int(draw.integers(start, size)) + 1, int(draw.integers(1, 4)))


def main() -> None:
    """Parse the command line; make, or measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("make", "read"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--reads", type=int, default=8, help="batches a round")
    parser.add_argument("--compare", type=int, default=0, help="random selections a pipeline")
    parser.add_argument("--name", default="plain", help="results/NAME.json")
    args = parser.parse_args()
    if args.what == "make":
        make(args.folder, args.frames)
        return
    rates = measure(args.folder, args.rounds, args.reads)
    wrong = compare(args.folder, args.compare) if args.compare else {}
    for name, own in rates.items():
        said = f", {wrong[name]} of {args.compare} selections wrong" if name in wrong else ""
        print(f"{name:16}{median(own):8.1f} samples/s ({min(own):.1f} .. {max(own):.1f}){said}")
    record = {
        "versions": {m: _version(m) for m in ("zarr", "zarrs", "numpy", "bevcask")},
        "python": platform.python_version(),
        "targets": TARGETS,
        "batch": BATCH,
        "rates": rates,
        "compared": args.compare,
        "wrong": wrong,
    }
    out = Path(__file__).parent / "results" / f"{args.name}.json"
    out.write_text(json.dumps(record, indent=2) + "\n")


def _version(module: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(module)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()

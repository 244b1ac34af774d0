"""Would clipping outliers, or fewer channels, make a cache smaller at the same error?

For every map DistillBEV reads, of the trained tiny teacher on frames of a synthetic world: bytes a
frame (zstd, as in a cache) and the error of the values, relative to their norm. Three families:

    peak      what bevcask does: the largest value of a channel is the top of its scale
    clip Q    the top is the Q quantile of the channel's non-zero values; what is above is cut
    rank R    R principal channels, 8 bits each, clamped to values >= 0 after decoding; the basis is
              that of the keyframes between, which favours it, and is not counted

    python benchmarks/codec_front.py

`front` is what no other row of its tap beats in both.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from measure import RESULTS, WORLD_SEED, ground, make_world
from numcodecs.zstd import Zstd

from bevcask.cache import open_cache
from bevcask.compose import compose
from bevcask.stages import teacher_extract
from bevcask.verbs import ExtractConfig

TAPS = ("bev.block1", "bev.block2", "bev.neck")
BITS = (8, 6, 4)
QUANTILES = (0.999, 0.99)
SHARES = (2, 4)
WORDS = [
    "teacher=centerpoint_tiny",
    "teacher.checkpoint=catalog:centerpoint_tiny_synthetic",
    "method=distillbev",
    "dataset=synthetic",
    "dataset.split=all",
    "store.codec=float32",
    "seed=0",
]
Floats = npt.NDArray[np.float32]
_ZSTD = Zstd(level=1)


def quantize(values_CYX: Floats, top_C: Floats, levels: int, low: int) -> tuple[int, Floats]:
    """Return the bytes of one frame and what comes back."""
    scale_C11 = (top_C / levels)[:, None, None]
    safe_C11 = np.where(scale_C11 > 0, scale_C11, np.inf)
    stored = np.clip(np.rint(values_CYX / safe_C11), low, levels)
    packed = stored.astype(np.int8 if low < 0 else np.uint8)
    return len(_ZSTD.encode(packed)), (stored * scale_C11).astype(np.float32)


def families(
    own_FCYX: Floats, other_FCYX: Floats
) -> Iterator[tuple[str, list[tuple[int, Floats]]]]:
    """Return every codec's name with bytes and values of all frames."""
    for bits in BITS:
        levels = 2**bits - 1
        peaks = [v.max(axis=(1, 2)) for v in own_FCYX]
        yield (
            f"peak, {bits} bits",
            [quantize(v, top, levels, 0) for v, top in zip(own_FCYX, peaks, strict=True)],
        )
        for quantile in QUANTILES:
            tops = [upper(v, quantile) for v in own_FCYX]
            yield (
                f"clip {quantile}, {bits} bits",
                [quantize(v, top, levels, 0) for v, top in zip(own_FCYX, tops, strict=True)],
            )
    channels = own_FCYX.shape[1]
    flat_CN = np.moveaxis(other_FCYX, 1, 0).reshape(channels, -1)
    _, vectors_CC = np.linalg.eigh(flat_CN @ flat_CN.T)
    for share in SHARES:
        basis_CR = vectors_CC[:, -channels // share :].astype(np.float32)
        yield f"rank C/{share}, 8 bits", [project(v, basis_CR) for v in own_FCYX]


def upper(values_CYX: Floats, quantile: float) -> Floats:
    """Return a quantile of every channel's non-zero values, float32 (C,); 0 for an empty one."""
    return np.array(
        [np.quantile(v[v > 0], quantile) if (v > 0).any() else 0.0 for v in values_CYX], np.float32
    )


def project(values_CYX: Floats, basis_CR: Floats) -> tuple[int, Floats]:
    """Return the bytes of one frame's principal channels and what comes back."""
    reduced_RYX = np.tensordot(basis_CR.T, values_CYX, axes=1)
    size, back_RYX = quantize(reduced_RYX, np.abs(reduced_RYX).max(axis=(1, 2)), 127, -127)
    return size, np.maximum(np.tensordot(basis_CR, back_RYX, axes=1), 0)


def measure(url: str) -> list[dict[str, Any]]:
    """Return one row a tap and codec."""
    rows: list[dict[str, Any]] = []
    for tap in TAPS:
        frames_FCYX = open_cache(url).dask(tap).compute()
        own, other = frames_FCYX[::2], frames_FCYX[1::2]
        found = [
            {
                "tap": tap,
                "codec": name,
                "bytes": float(np.mean([size for size, _ in coded])),
                "error": float(
                    np.linalg.norm(np.stack([back for _, back in coded]) - own)
                    / np.linalg.norm(own)
                ),
            }
            for name, coded in families(own, other)
        ]
        for row in found:
            row["front"] = not any(
                o["bytes"] <= row["bytes"] and o["error"] < row["error"] for o in found
            )
        rows += found
    return rows


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=16, help="half of them for the basis")
    parser.add_argument("--out", type=Path, default=RESULTS / "codec_front.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BEVCASK_HOME"] = folder
        world = make_world(Path(folder) / "world", given.frames, 800)
        words = [*WORDS, f"dataset.root={world}", f"cache={folder}/float32.zarr"]
        teacher_extract.run(compose(ExtractConfig, words))
        rows = measure(f"{folder}/float32.zarr")
    for row in rows:
        mark = "front" if row["front"] else ""
        print(f"{row['tap']:12}{row['codec']:20}{row['bytes']:12,.0f}{row['error']:10.1e}  {mark}")
    record = ground(torch.device("cpu"), WORDS, 0) | {
        "data": f"synthetic world, seed {WORLD_SEED}",
        "weights": "trained on a synthetic world (data_catalog)",
        "rows": rows,
    }
    given.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

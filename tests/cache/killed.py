"""What tests kill in a process of its own: it fills a cache of bulky shards."""

import numpy as np

from bevcask.cache import Encoded, FrameTable, WriteQueue, Writer, create
from bevcask.cache.parts import Part
from bevcask.geometry import Grid
from bevcask.targets.spec import Region, TapInfo, TargetSpec

_SIDE = 96
_GRID = Grid.square(_SIDE / 2, 1.0)
_BULKY = TapInfo("bev.neck", "dense_bev", (64, _SIDE, _SIDE), _GRID, nonnegative=True)
_SPECS = (
    TargetSpec(_BULKY, "uint8"),
    TargetSpec(TapInfo("bev.other", "dense_bev", (64, _SIDE, _SIDE), _GRID), "int8"),
    TargetSpec(
        TapInfo("head.heatmap", "heatmap", (2, 8, 8), Grid.square(4, 1.0), nonnegative=True),
        "float32",
        Region("confident", 0.5),
    ),
    TargetSpec(TapInfo("head.boxes", "box_set", (5, 11)), "float32"),
)


def frames() -> FrameTable:
    """Three scenes, five shards, four pad rows."""
    scenes = ["a"] * 5 + ["b"] * 4 + ["c"] * 7
    tokens = [f"{number:032x}" for number in range(16)]
    return FrameTable(tokens, scenes, np.arange(16.0), np.tile(np.eye(4), (16, 1, 1)))


def _arrays(writer: Writer, shard: int) -> dict[str, Encoded[np.ndarray]]:
    """Return noise that depends on the shard alone and does not compress: slow to write."""
    random = np.random.default_rng(shard)
    num = len(writer.tokens(shard))
    return {
        "bev.neck": Encoded(
            random.integers(0, 255, (num, *_BULKY.shape), np.uint8),
            random.random((num, 64), np.float32),
        ),
        "bev.other": Encoded(
            random.integers(-127, 127, (num, *_BULKY.shape), np.int8),
            random.random((num, 64), np.float32),
        ),
        "head.heatmap": Encoded(
            random.random((num, 2, 8, 8), np.float32), None, random.random((num, 8, 8)) > 0.5
        ),
        "head.boxes": Encoded(
            random.random((num, 5, 11), np.float32), None, None, np.full(num, shard % 5)
        ),
    }


def fill(url: str, part: str = "1/1", num_targets: str = "4") -> None:
    """Create, resume or extend, write what is missing of a part, seal if nothing is left."""
    writer = create(
        url,
        _SPECS[-int(num_targets) :],
        frames(),
        shard_rows=4,
        fingerprint={"teacher": {"weights": "aa"}},
        plan={},
        provenance={"process": "any"},
        part=Part.parse(part),
    )
    names = {spec.name for spec in writer.specs}
    with writer, WriteQueue(writer, depth=1, threads=3) as waiting:
        for shard in writer.missing():
            said = _arrays(writer, shard)
            waiting.put(shard, {name: said[name] for name in names})
    if not writer.unfinished():
        writer.seal()

"""What the numbers in a cache look like, per channel: one pass by dask, a shard in memory a worker.

Statistics are of dequantised values of committed frames; padded entries of sets do not count, cells
outside a stored region count as the zeros they are read as. A channel is dead if it has one and the
same value everywhere.
"""

from typing import Any

import dask.array
import dask.base
import numpy as np
import numpy.typing as npt
from dask.callbacks import Callback

from bevcask.cache import Cache
from bevcask.cache.encoded import valid_entries
from bevcask.cache.layout import dims_of
from bevcask.progress import Ticker, progress_bar

# dask ships type information without types; these three are called as if it shipped none.
_Callback: Any = Callback
_compute: Any = dask.base.compute
_map_blocks: Any = dask.array.map_blocks

_SILENT_SECONDS = 2.0
_MOMENTS = ("weight", "mean", "variance", "min", "max", "zeros")
_SCORE, _CLASS = 9, 10  # columns of a box set


def statistics(cache: Cache) -> dict[str, dict[str, Any]]:
    """Summarise every target of a cache.

    Returns:
        Target name -> for box sets `frames`, `boxes`, `most` (in one frame), `mean_score`,
        `max_score`, `per_class`; for all others `mean`, `std`, `min`, `max`, `zeros` (share of
        exact zeros), `num_channels`, `dead` (channel numbers) and `per_channel` (lists of the first
        five). Empty for a target without a committed entry, and for the matrices of views, which
        have no channels.
    """
    shards = sorted(cache.committed)
    if not shards:
        return {name: {} for name in cache.specs}
    partial = {
        name: _partial(cache, name, shards)
        for name, spec in cache.specs.items()
        if spec.tap.kind == "box_set" or "channel" in dims_of(spec)
    }
    with progress_bar("statistics", 0, silent_for=_SILENT_SECONDS) as ticker, _Tasks(ticker):
        (computed,) = _compute(partial)
    found = {
        name: _boxes(table, cache.specs[name].tap.classes)
        if cache.specs[name].tap.kind == "box_set"
        else _channels(table)
        for name, table in computed.items()
    }
    return {name: found.get(name, {}) for name in cache.specs}


class _Tasks(_Callback):  # type: ignore[misc]
    """Shows the tasks of a dask graph."""

    def __init__(self, ticker: Ticker) -> None:
        super().__init__()
        self._ticker = ticker

    def _posttask(self, key: Any, value: Any, graph: Any, state: Any, worker: Any) -> None:
        done = len(state["finished"])
        parts = ("ready", "waiting", "running")
        self._ticker.move_to(done, done + sum(len(state[part]) for part in parts))


def _partial(cache: Cache, name: str, shards: list[int]) -> Any:
    """Return one lazy row of sums a committed shard."""
    dataset = cache.xarray(name)
    values = dataset["values"]
    blocks = [values.data.blocks[shards]]
    if "count" in dataset:
        count = dataset["count"].data.blocks[shards]
        blocks.append(count[(slice(None), *(None,) * (values.ndim - 1))])
    num_shards = len(shards)
    if cache.specs[name].tap.kind == "box_set":
        num_classes = len(cache.specs[name].tap.classes)
        return _map_blocks(
            _summarise_boxes, *blocks, num_classes, dtype=np.float64,
            drop_axis=2, chunks=((1,) * num_shards, (5 + num_classes,)),
        )  # fmt: skip
    axis = values.dims.index("channel")
    num_channels = values.shape[axis]
    return _map_blocks(
        _summarise_channels, *blocks, axis=axis, dtype=np.float64,
        drop_axis=list(range(3, values.ndim)), chunks=((1,) * num_shards, (num_channels,), (6,)),
    )  # fmt: skip


def _summarise_channels(
    values: npt.NDArray[np.float32], count: npt.NDArray[np.int64] | None = None, *, axis: int
) -> npt.NDArray[np.float64]:
    """Return (1, C, 6) `_MOMENTS` of a shard; `count` cuts the entries of padded sets."""
    if count is not None:
        along = values.ndim - 3  # queries lie before channels
        own = zip(values, count.reshape(-1), strict=True)
        values = np.concatenate([valid_entries(frame, n, along) for frame, n in own], along)[None]
    channels = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    table = np.zeros((1, len(channels), len(_MOMENTS)))
    if channels.shape[1]:
        for row, channel in zip(table[0], channels, strict=True):
            exact = channel.astype(np.float64)
            row[:] = (
                exact.size, exact.mean(), exact.var(), exact.min(), exact.max(),
                np.count_nonzero(exact == 0) / exact.size,
            )  # fmt: skip
    return table


def _channels(table: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Merge (shard, C, 6) moments: total variance = mean of variances + variance of means."""
    table = table[table[:, 0, 0] > 0]
    if not len(table):
        return {}
    weight = table[..., 0]
    share = weight / weight.sum(0)
    mean = (share * table[..., 1]).sum(0)
    variance = (share * (table[..., 2] + (table[..., 1] - mean) ** 2)).sum(0)
    per_channel = {
        "mean": mean,
        "std": np.sqrt(variance),
        "min": table[..., 3].min(0),
        "max": table[..., 4].max(0),
        "zeros": (share * table[..., 5]).sum(0),
    }
    return {
        "mean": float(mean.mean()),
        "std": float(np.sqrt(variance.mean() + mean.var())),
        "min": float(per_channel["min"].min()),
        "max": float(per_channel["max"].max()),
        "zeros": float(per_channel["zeros"].mean()),
        "num_channels": len(mean),
        "dead": np.flatnonzero(per_channel["min"] == per_channel["max"]).tolist(),
        "per_channel": {key: column.tolist() for key, column in per_channel.items()},
    }


def _summarise_boxes(
    boxes: npt.NDArray[np.float32], count: npt.NDArray[np.int64], num_classes: int
) -> npt.NDArray[np.float64]:
    """Return (1, 5 + K): frames, boxes, most in one, sum and maximum of scores, class counts."""
    counts = count.reshape(-1)
    valid = np.concatenate([frame[: int(n)] for frame, n in zip(boxes, counts, strict=True)])
    classes = np.bincount(valid[:, _CLASS].astype(np.int64), minlength=num_classes)
    scores = valid[:, _SCORE].astype(np.float64)
    head = [len(counts), len(valid), counts.max(), scores.sum(), scores.max(initial=0.0)]
    return np.concatenate([head, classes])[None].astype(np.float64)


def _boxes(table: npt.NDArray[np.float64], classes: tuple[str, ...]) -> dict[str, Any]:
    frames, boxes, _, scores = table[:, :4].sum(0)
    return {
        "frames": int(frames),
        "boxes": int(boxes),
        "most": int(table[:, 2].max()),
        "mean_score": float(scores / boxes) if boxes else 0.0,
        "max_score": float(table[:, 4].max()),
        "per_class": {
            name: int(number) for name, number in zip(classes, table[:, 5:].sum(0), strict=True)
        },
    }

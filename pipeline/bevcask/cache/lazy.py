"""A cache as dask arrays and xarray datasets: lazy, dequantised, without pad rows."""

from functools import partial
from typing import TYPE_CHECKING, Any

import dask.array
import numpy as np
import numpy.typing as npt
import xarray

from bevcask.cache.layout import dims_of, is_set

if TYPE_CHECKING:
    from bevcask.cache.reader import Cache


def lazy_values(cache: "Cache", name: str) -> dask.array.Array:
    """Return the dequantised values of a target, float32 (frame, *shape), a dask chunk a shard."""
    return _lazy(cache, name, "values", cache.specs[name].tap.shape, np.dtype("float32"))


def lazy_dataset(cache: "Cache", name: str) -> xarray.Dataset:
    """Return `values` (and `region`, `count` where stored) with coordinates.

    Coordinates: `sample_token`, `scene`, `timestamp` (seconds) along `frame`; `y`, `x` (metres,
    cell centres) where the target has a BEV grid.
    """
    spec = cache.specs[name]
    dims = ("frame", *dims_of(spec)[1:])
    variables: dict[str, Any] = {"values": (dims, lazy_values(cache, name))}
    if spec.region.name != "all":
        cells = _lazy(cache, name, "region", spec.tap.shape[-2:], np.dtype(bool))
        variables["region"] = (("frame", *dims[-2:]), cells)
    if is_set(spec):
        variables["count"] = (("frame",), _lazy(cache, name, "count", (), np.dtype("int64")))
    frames = cache.frames
    coordinates: dict[str, Any] = {
        "sample_token": ("frame", np.array(list(frames.tokens))),
        "scene": ("frame", np.array(frames.scenes.names)[frames.scenes.codes_N]),
        "timestamp": ("frame", frames.timestamps, {"long_name": "time", "unit": "seconds"}),
    }
    if spec.tap.grid is not None:
        centres_YX2 = spec.tap.grid.centres()
        coordinates["x"] = ("x", centres_YX2[0, :, 0], {"units": "m", "long_name": "right"})
        coordinates["y"] = ("y", centres_YX2[:, 0, 1], {"units": "m", "long_name": "forward"})
    if spec.tap.kind == "heatmap" and spec.tap.classes:
        coordinates["channel"] = ("channel", np.array(spec.tap.classes))
    attributes = {"kind": spec.tap.kind, "codec": spec.codec, "cache": cache.id}
    return xarray.Dataset(variables, coordinates, attributes)


def _lazy(
    cache: "Cache", name: str, part: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> dask.array.Array:
    layout = cache.layout
    rows = tuple(layout.frames_per_shard.tolist())
    blocks: dask.array.Array = dask.array.map_blocks(  # type: ignore[no-untyped-call]
        partial(_load, cache, name, part),
        name=f"bevcask-{cache.id}-{name}-{part}",
        chunks=(rows, *((size,) for size in shape)),
        dtype=dtype,
        meta=np.empty((0,) * (1 + len(shape)), dtype),
    )
    return blocks


def _load(cache: "Cache", name: str, part: str, block_id: tuple[int, ...]) -> npt.NDArray[Any]:
    """Read one shard's frames at once."""
    stored = cache.read_batch(cache.layout.tokens_of(block_id[0]), [name])[name]
    return stored.floats() if part == "values" else np.asarray(getattr(stored, part))

"""A cache as dask arrays and xarray datasets: lazy, dequantised, without pad rows."""

from functools import partial
from typing import TYPE_CHECKING, Any

import dask.array
import numpy as np
import numpy.typing as npt
import xarray

from bevcask.cache.layout import dims_of, is_set
from bevcask.geometry import BOX_FIELDS, CAMERAS
from bevcask.targets.spec import TargetSpec

if TYPE_CHECKING:
    from bevcask.cache.reader import Cache


def lazy_values(cache: "Cache", name: str, frames: int | None = None) -> dask.array.Array:
    """Return the dequantised values of a target (frame, *shape), see `Encoded.floats`.

    A dask chunk is so many frames of one shard, which is what is read for any part of it; without a
    number it is all of them.
    """
    spec = cache.specs[name]
    dtype = np.dtype("int64" if spec.codec == "int64" else "float32")
    return _lazy(cache, name, "values", spec.tap.shape, dtype, frames)


def lazy_dataset(cache: "Cache", name: str, frames: int | None = None) -> xarray.Dataset:
    """Return `values` (and `region`, `count` where stored) with coordinates.

    Chunks are those of `lazy_values`.

    Coordinates: `sample_token`, `scene`, `timestamp` (seconds) along `frame`; `y`, `x` (metres,
    cell centres) where the target has a BEV grid, `z` where it has layers; `field` of boxes,
    `camera` of image features, `channel` of heatmaps. Attributes say what it is, how it is stored,
    who said it and in which frame coordinates are.
    """
    spec = cache.specs[name]
    dims = ("frame", *dims_of(spec)[1:])
    variables: dict[str, Any] = {"values": (dims, lazy_values(cache, name, frames))}
    if spec.region.name != "all":
        cells = _lazy(cache, name, "region", spec.tap.shape[-2:], np.dtype(bool), frames)
        variables["region"] = (("frame", *dims[-2:]), cells)
    if is_set(spec):
        variables["count"] = (
            ("frame",),
            _lazy(cache, name, "count", (), np.dtype("int64"), frames),
        )
    table = cache.frames
    coordinates: dict[str, Any] = {
        "sample_token": ("frame", np.array(list(table.tokens))),
        "scene": ("frame", np.array(table.scenes.names)[table.scenes.codes_N]),
        "timestamp": ("frame", table.timestamps, {"long_name": "time", "unit": "seconds"}),
    }
    if spec.tap.grid is not None and "y" in dims:
        centres_YX2 = spec.tap.grid.centres()
        coordinates["x"] = ("x", centres_YX2[0, :, 0], {"units": "m", "long_name": "right"})
        coordinates["y"] = ("y", centres_YX2[:, 0, 1], {"units": "m", "long_name": "forward"})
    if "z" in dims:
        coordinates["z"] = ("z", np.array(spec.tap.bins), {"units": "m", "long_name": "up"})
    if spec.tap.kind in ("heatmap", "occupancy") and spec.tap.classes:
        coordinates["channel"] = ("channel", np.array(spec.tap.classes))
    if spec.tap.kind == "box_set":
        coordinates["field"] = ("field", np.array([*BOX_FIELDS, "score", "class"]))
    if "camera" in dims and spec.tap.shape[dims.index("camera") - 1] == len(CAMERAS):
        coordinates["camera"] = ("camera", np.array(CAMERAS))
    return xarray.Dataset(variables, coordinates, _attributes(cache, spec))


def _attributes(cache: "Cache", spec: TargetSpec) -> dict[str, str | int]:
    teacher = cache.fingerprint["teacher"]
    return {
        "target": spec.key,
        "kind": spec.tap.kind,
        "codec": spec.codec,
        "region": str(spec.region),
        "alignment": spec.alignment,
        "view": spec.view,
        "context": spec.tap.reads,
        "teacher": str(teacher.get("type")),
        "weights": str(teacher["weights"]),
        "cache": cache.id,
        "frame": "canonical LIDAR_TOP of the keyframe: x right, y forward, z up, metres",
    }


def _lazy(
    cache: "Cache",
    name: str,
    part: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    frames: int | None,
) -> dask.array.Array:
    blocks: list[list[str]] = []
    for shard in range(cache.layout.num_shards):
        tokens = list(cache.layout.tokens_of(shard))
        size = frames or len(tokens)
        blocks += [tokens[start : start + size] for start in range(0, len(tokens), size)]
    lazy: dask.array.Array = dask.array.map_blocks(  # type: ignore[no-untyped-call]
        partial(_load, cache, name, part, blocks),
        name=f"bevcask-{cache.id}-{name}-{part}-{frames}",
        chunks=(tuple(map(len, blocks)), *((size,) for size in shape)),
        dtype=dtype,
        meta=np.empty((0,) * (1 + len(shape)), dtype),
    )
    return lazy


def _load(
    cache: "Cache", name: str, part: str, blocks: list[list[str]], block_id: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Read one block's frames at once."""
    stored = cache.read_batch(blocks[block_id[0]], [name])[name]
    return stored.floats() if part == "values" else np.asarray(getattr(stored, part))

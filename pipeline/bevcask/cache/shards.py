"""From a shard's encoded frames to the bytes of its objects."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.cache.layout import ArraySpec, Encoded, Layout, arrays_of, group_of, is_set
from bevcask.cache.objects import encode_chunk, encode_shard
from bevcask.errors import TargetMismatchError
from bevcask.targets.spec import TargetSpec


def objects_of(
    layout: Layout, names: Collection[str], shard: int, arrays: Mapping[str, Encoded[Any]]
) -> dict[str, bytes]:
    """Return the file of every array of some targets, by array key; empty where all is zero.

    Args:
        layout: of the cache.
        names: the targets that are expected.
        shard: which one.
        arrays: target name -> encoded frames of the shard, tensors or arrays.

    Raises:
        TargetMismatchError: a target is missing, unknown or of the wrong shape or dtype; all
            mismatches in one message.
    """
    contents = _rows_of(layout, names, shard, arrays)
    return {
        array.key: _object(array, contents.pop(array.key))
        for array in layout.arrays
        if array.key in contents
    }


def _rows_of(
    layout: Layout, names: Collection[str], shard: int, arrays: Mapping[str, Encoded[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """Return the whole shard of every array, pad rows zero."""
    problems = [f"{name}: missing" for name in names if name not in arrays]
    problems += [f"{name}: not a target to be written" for name in arrays if name not in names]
    num = len(layout.frames_of(shard))
    contents: dict[str, npt.NDArray[Any]] = {}
    for name in set(names) & set(arrays):
        parts = _parts(layout.specs[name], arrays[name].numpy())
        for array in arrays_of(layout.specs[name], layout.num_rows):
            part = parts[array.key]
            expected = (num, *array.shape[1:])
            if part is None or part.shape != expected or part.dtype != array.dtype:
                got = "nothing" if part is None else f"{part.shape} {part.dtype}"
                problems.append(f"{array.key}: expected {expected} {array.dtype}, got {got}")
                continue
            contents[array.key] = np.zeros((layout.shard_rows, *array.shape[1:]), array.dtype)
            contents[array.key][:num] = part
    if problems:
        raise TargetMismatchError(f"shard {shard}: {'; '.join(sorted(problems))}.")
    return contents


def _object(array: ArraySpec, content: npt.NDArray[Any]) -> bytes:
    """Return the file of a shard; empty where all is fill value."""
    return encode_chunk(content) if array.inner_rows is None else encode_shard(content)


def _parts(
    spec: TargetSpec, encoded: Encoded[npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any] | None]:
    """Return an encoded batch by array key."""
    group = group_of(spec)
    region = encoded.region
    if region is not None:
        region = np.packbits(region.reshape(len(region), -1), axis=1, bitorder="little")
    return {
        f"{group}/values": encoded.values,
        f"{group}/scale": encoded.scale,
        f"{group}/region": region,
        f"{group}/count": encoded.count if is_set(spec) else None,
    }

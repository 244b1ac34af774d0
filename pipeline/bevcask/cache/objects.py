"""The files of a shard in the making, by any number of threads.

A row is encoded by whatever thread is free. Whoever encodes the last row of a file joins and
digests it, so that no thread waits for another.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.cache.chunks import encode_chunk, join_rows
from bevcask.cache.commit import Committed
from bevcask.cache.encoded import Encoded
from bevcask.cache.layout import ArraySpec, Layout, arrays_of, group_of, is_set
from bevcask.errors import TargetMismatchError
from bevcask.targets.spec import TargetSpec

Each = Callable[..., Iterable[Any]]
"""`map`, or that of a pool of threads, which begins at once."""
Pieces = Encoded[Any] | Sequence[Encoded[Any]]
"""Encoded frames of a shard, tensors or arrays: at once, or in pieces that follow each other."""


class ShardObjects:
    """The files of some targets of a shard; their bytes do not depend on who encodes them.

    Args:
        layout: of the cache.
        names: the targets that are expected.
        shard: which one.
        arrays: target name -> encoded frames of the shard. They are read until `wait` returns.
        each: encodes the rows: `map` does so in `wait`, that of a pool of threads from now on.

    Raises:
        TargetMismatchError: a target is missing, unknown or of the wrong shape or dtype; all
            mismatches in one message.
    """

    def __init__(
        self,
        layout: Layout,
        names: Collection[str],
        shard: int,
        arrays: Mapping[str, Pieces],
        each: Each = map,
    ) -> None:
        chunks = _chunks_of(layout, names, shard, arrays)
        self._objects = [
            _Object(array, layout.shard_rows, len(chunks[array.key]))
            for array in layout.arrays
            if array.key in chunks
        ]
        work = [
            (one, place, values)
            for one in self._objects
            for place, values in enumerate(chunks[one.key])
        ]
        self._ends = each(_Object.encode, *zip(*work, strict=True))

    def wait(self) -> tuple[dict[str, bytes], dict[str, Committed]]:
        """Return by array key the files, empty where all is zero, and what vouches for them."""
        for _ in self._ends:
            pass
        return (
            {one.key: one.data for one in self._objects},
            {one.key: one.entry for one in self._objects},
        )


class _Object:
    """One file, whose chunks are encoded in any order."""

    data: bytes
    entry: Committed

    def __init__(self, array: ArraySpec, shard_rows: int, num_chunks: int) -> None:
        self.key = array.key
        self._array = array
        self._shard_rows = shard_rows
        self._chunks = [b""] * (1 if array.inner_rows is None else shard_rows)
        self._left = num_chunks
        self._lock = Lock()

    def encode(self, place: int, values: npt.NDArray[Any]) -> None:
        """Encode one chunk; after the last the file is whole."""
        self._chunks[place] = encode_chunk(values)
        with self._lock:
            self._left -= 1
            left = self._left
        if left:
            return
        self.data = self._chunks[0] if self._array.inner_rows is None else join_rows(self._chunks)
        self._chunks.clear()
        self.entry = Committed.of(self.data, self._array, self._shard_rows)


def _chunks_of(
    layout: Layout, names: Collection[str], shard: int, arrays: Mapping[str, Pieces]
) -> dict[str, list[npt.NDArray[Any]]]:
    """Return what is to be encoded, by array key: the rows, or the one chunk with its pad rows."""
    problems = [f"{name}: missing" for name in names if name not in arrays]
    problems += [f"{name}: not a target to be written" for name in arrays if name not in names]
    num = len(layout.frames_of(shard))
    chunks: dict[str, list[npt.NDArray[Any]]] = {}
    for name in set(names) & set(arrays):
        said = arrays[name]
        pieces = [said] if isinstance(said, Encoded) else said
        parts = [_parts(layout.specs[name], piece.numpy()) for piece in pieces]
        for array in arrays_of(layout.specs[name], layout.num_rows):
            found = [part[array.key] for part in parts if array.key in part]
            if wrong := _mismatch(array, num, found):
                problems.append(wrong)
            elif array.inner_rows is None:
                whole = np.zeros((layout.shard_rows, *array.shape[1:]), array.dtype)
                np.concatenate(found, out=whole[:num])
                chunks[array.key] = [whole]
            else:
                chunks[array.key] = [row for part in found for row in part]
    if problems:
        raise TargetMismatchError(f"shard {shard}: {'; '.join(sorted(problems))}.")
    return chunks


def _mismatch(array: ArraySpec, num: int, pieces: Sequence[npt.NDArray[Any]]) -> str:
    """Say where shape or dtype are not those of so many rows of an array; "" where they are."""
    expected = (num, *array.shape[1:])
    total = sum(len(piece) for piece in pieces if piece.ndim)
    said = "" if pieces else "nothing"
    for piece in pieces:
        got = (total, *piece.shape[1:])
        if got != expected or piece.dtype != array.dtype:
            said = f"{got} {piece.dtype}"
    return said and f"{array.key}: expected {expected} {array.dtype}, got {said}"


def _parts(spec: TargetSpec, encoded: Encoded[npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return what there is of an encoded batch, by array key."""
    group = group_of(spec)
    region = encoded.region
    if region is not None:
        region = np.packbits(region.reshape(len(region), -1), axis=1, bitorder="little")
    parts = {
        f"{group}/values": encoded.values,
        f"{group}/scale": encoded.scale,
        f"{group}/region": region,
        f"{group}/count": encoded.count if is_set(spec) else None,
    }
    return {key: part for key, part in parts.items() if part is not None}

"""What is where in a cache: rows, shards, arrays and their names. No bytes, no torch.

`README.md` beside this file is the format for people; this is the format for the code. A change
here that changes a file on disk raises `SCHEMA_VERSION`.
"""

import hashlib
import math
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.cache.frames import FrameTable
from bevcask.errors import TargetMismatchError
from bevcask.fingerprint import canonical, canonical_text
from bevcask.targets.spec import LEVELS, TapInfo, TargetSpec, stored_dtype

FORMAT = "bevcask"
SCHEMA_VERSION = 4
MAX_ROWS = 1 << 23
"""Of a cache, pad rows included: tokens and poses of all of them are held in memory."""
_PIECE = 1 << 9
_MAX_BYTES = 1 << 30  # of a row, and of a shard's scales
_SETS = {
    "box_set": ("boxes", ("row", "box", "field")),
    "polylines": ("polylines", ("row", "polyline", "field")),
    "query_set": ("queries", ("row", "query", "channel")),
    "query_layers": ("queries", ("row", "layer", "query", "channel")),
    "track_ids": ("queries", ("row", "query")),
    "query_places": ("queries", ("row", "query", "place")),
    "query_points": ("queries", ("row", "query", "point")),
    "point_set": ("points", ("row", "point", "channel")),
}
_DENSE = {
    "dense_bev": ("row", "channel", "y", "x"),
    "heatmap": ("row", "channel", "y", "x"),
    "box_code": ("row", "channel", "y", "x"),
    "occupancy": ("row", "channel", "z", "y", "x"),
    "voxel_labels": ("row", "channel", "z", "y", "x"),
    "image_feature": ("row", "camera", "channel", "v", "u"),
    "channel_moments": ("row", "moment", "channel"),
    "image_transform": ("row", "camera", "to", "from"),
}
_CHUNK = re.compile(r"c\.(0|[1-9][0-9]*)(?:\.0)*")
_TAP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def chunk_name(first: int, num_dims: int) -> str:
    """Return the file name of the chunk (first, 0, 0, ...): `c.7.0.0` in three dimensions."""
    return ".".join(["c", str(first), *["0"] * (num_dims - 1)])


@dataclass(frozen=True)
class ArraySpec:
    """One Zarr array of a cache.

    Attributes:
        key: path below the cache, e.g. `targets/bev.neck/values`.
        shape: of the whole array; the first axis is `row` for arrays written shard by shard.
        dtype: numpy name.
        dims: dimension names.
        inner_rows: rows of an inner chunk; None where the shard's object is one chunk.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    inner_rows: int | None = None

    def object_key(self, shard: int) -> str:
        """Return the key of the object that holds a shard."""
        return f"{self.key}/{chunk_name(shard, len(self.shape))}"


def group_of(spec: TargetSpec) -> str:
    """Return the group of a target, e.g. `targets/bev.neck` or `boxes/head.boxes`."""
    top = _SETS[spec.tap.kind][0] if spec.tap.kind in _SETS else "targets"
    return f"{top}/{spec.key}"


def dims_of(spec: TargetSpec) -> tuple[str, ...]:
    """Return the dimension names of a target's values, `row` first."""
    return _SETS[spec.tap.kind][1] if spec.tap.kind in _SETS else _DENSE[spec.tap.kind]


def scale_axes(spec: TargetSpec) -> tuple[int, ...]:
    """Return the axes of a sample's tensor that keep a scale: cameras, layers, channels."""
    dims, own = dims_of(spec)[1:], ("camera", "layer", "channel", "field")
    return tuple(axis for axis, dim in enumerate(dims) if dim in own)


def entry_axis(tap: TapInfo) -> int:
    """Return the axis of a padded set's tensor that its count cuts."""
    return 1 if tap.kind == "query_layers" else 0


def is_scaled(spec: TargetSpec) -> bool:
    """Tell whether values are integers that come with a scale."""
    return spec.codec in LEVELS


def is_set(spec: TargetSpec) -> bool:
    """Tell whether a target is a padded set with a count."""
    return spec.tap.kind in _SETS


def check_spec(spec: TargetSpec) -> None:
    """Check that a target can be stored.

    Raises:
        TargetMismatchError: kind, shape, codec, region or name cannot be stored; all problems.
    """
    tap = spec.tap
    problems = []
    if tap.kind not in _SETS and tap.kind not in _DENSE:
        problems.append(f"kind: expected one of {', '.join([*_DENSE, *_SETS])}, got {tap.kind!r}")
    elif len(tap.shape) != len(dims_of(spec)) - 1 or min(tap.shape) < 1:
        problems.append(f"shape: expected {dims_of(spec)[1:]}, got {tap.shape}")
    elif math.prod(tap.shape) * np.dtype(stored_dtype(spec.codec)).itemsize > _MAX_BYTES:
        problems.append(f"shape: {tap.shape} is more than {_MAX_BYTES:,} bytes a frame")
    elif "y" in dims_of(spec) and tap.grid is not None and tap.grid.shape_YX != tap.shape[-2:]:
        problems.append(f"grid: of {tap.grid.shape_YX} cells, for a shape of {tap.shape}")
    if not _TAP_NAME.fullmatch(tap.name):
        problems.append("name: expected letters, digits, `.`, `_`, `-`")
    if tap.kind == "box_set" and spec.codec != "float32":
        problems.append(f"codec: boxes are stored as float32, got {spec.codec}")
    if (spec.codec == "int64") != (tap.kind == "track_ids"):
        problems.append(f"codec: int64 is for track_ids and nothing else, got {spec.codec}")
    if spec.codec.startswith("u") and not tap.nonnegative:
        problems.append(f"codec: {spec.codec} holds no negative values; use int8 for a signed tap")
    if spec.region.name != "all" and "y" not in _DENSE.get(tap.kind, ()):
        problems.append(f"region: {spec.region.name!r} needs a BEV map, got a {tap.kind}")
    if problems:
        raise TargetMismatchError(f"target {tap.name!r} cannot be stored: {'; '.join(problems)}.")


def arrays_of(spec: TargetSpec, num_rows: int) -> list[ArraySpec]:
    """Return the arrays of one target."""
    group, dims, shape = group_of(spec), dims_of(spec), spec.tap.shape
    arrays = [ArraySpec(f"{group}/values", (num_rows, *shape), stored_dtype(spec.codec), dims, 1)]
    if is_scaled(spec):
        axes = scale_axes(spec)
        kept = (num_rows, *(shape[axis] for axis in axes))
        names = ("row", *(dims[axis + 1] for axis in axes))
        arrays.append(ArraySpec(f"{group}/scale", kept, "float32", names))
    if spec.region.name != "all":
        num_bytes = -(-shape[-2] * shape[-1] // 8)
        arrays.append(ArraySpec(f"{group}/region", (num_rows, num_bytes), "uint8", ("row", "byte")))
    if is_set(spec):
        arrays.append(ArraySpec(f"{group}/count", (num_rows,), "int64", ("row",)))
    return arrays


def arrays_in_order(specs: Sequence[TargetSpec], num_rows: int) -> list[ArraySpec]:
    """Return the arrays of all targets in the order of the commit's `array` axis."""
    arrays = [array for spec in specs for array in arrays_of(spec, num_rows)]
    return sorted(arrays, key=lambda array: array.key)


def commit_bytes(shard_rows: int) -> int:
    """Return the bytes of a commit entry: SHA-256, length (uint64), a CRC-32C (uint32) a row."""
    return 40 + 4 * shard_rows


def commit_array(cache_id: str) -> str:
    """Return the key of the array that commits the shards of one identity, once all are there.

    It is named after the identity, so that targets can be added beside those that are there.
    """
    return f"commit/{cache_id[:16]}"


def packed_key(cache_id: str) -> str:
    """Return the key of the one object that commits all shards of a sealed cache."""
    return f"{commit_array(cache_id)}/{chunk_name(0, 3)}"


def open_array(cache_id: str) -> str:
    """Return the key of the array that commits shards one by one until all are there."""
    return f"{commit_array(cache_id)}.open"


def commit_key(cache_id: str, shard: int) -> str:
    """Return the key of a shard's own commit, as it is until the cache is sealed."""
    return f"{open_array(cache_id)}/{chunk_name(shard, 3)}"


def shard_of(name: str) -> int | None:
    """Return the shard of a file name made by `chunk_name`, None of another name."""
    found = _CHUNK.fullmatch(name)
    return int(found[1]) if found else None


class Layout:
    """Rows and shards of a selection, and the arrays that hold its targets."""

    def __init__(self, frames: FrameTable, specs: Sequence[TargetSpec], shard_rows: int) -> None:
        for spec in specs:
            check_spec(spec)
        names = [spec.key for spec in specs]
        if len(set(names)) != len(names):
            raise TargetMismatchError(f"targets are named twice: {', '.join(sorted(names))}.")
        self.frames = frames
        self.specs = {spec.key: spec for spec in sorted(specs, key=lambda spec: spec.key)}
        self.shard_rows = shard_rows
        counts = np.bincount(frames.scenes.codes_N)
        shards = -(-counts // shard_rows)
        self._first_frame = np.concatenate([[0], np.cumsum(counts)])
        self._first_shard = np.concatenate([[0], np.cumsum(shards)])

    @property
    def num_rows(self) -> int:
        return self.num_shards * self.shard_rows

    @property
    def num_shards(self) -> int:
        return int(self._first_shard[-1])

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """(row,) bool, False on pad rows."""
        found = np.zeros(self.num_rows, bool)
        found[self._rows()] = True
        return found

    @property
    def row_of(self) -> Mapping[str, int]:
        """Token -> row."""
        return _RowOf(self)

    def rows_of(self, tokens: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the row of each of some tokens, int64 (n,); -1 of a token that has none."""
        frame_n = self.frames.tokens.positions(tokens)
        scene_n = np.searchsorted(self._first_frame, frame_n, "right") - 1
        row_n: npt.NDArray[np.int64] = self._first_shard[scene_n] * self.shard_rows
        row_n += frame_n - self._first_frame[scene_n]
        row_n[frame_n < 0] = -1
        return row_n

    def frames_of(self, shard: int) -> range:
        """Return the frame numbers of a shard; they sit in its first rows."""
        scene = int(np.searchsorted(self._first_shard, shard, "right")) - 1
        start, stop = self._first_frame[scene : scene + 2].tolist()
        first = start + (shard - int(self._first_shard[scene])) * self.shard_rows
        return range(first, min(first + self.shard_rows, stop))

    @property
    def frames_per_shard(self) -> npt.NDArray[np.int64]:
        """(shard,) int64, how many of its rows are no pad rows."""
        return np.bincount(self._rows() // self.shard_rows)

    @property
    def scene_starts(self) -> list[int]:
        """The first shard of every scene."""
        starts: list[int] = self._first_shard[:-1].tolist()
        return starts

    def scene_start(self, shard: int) -> int:
        """Return the first shard of the scene of a shard."""
        return int(self._first_shard[np.searchsorted(self._first_shard, shard, "right") - 1])

    def tokens_of(self, shard: int) -> list[str]:
        """Return the sample tokens of a shard, in row order, without pad rows."""
        frames = self.frames_of(shard)
        return list(self.frames.tokens[frames.start : frames.stop])

    def per_row(self, per_frame: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Spread an array over frames to rows; pad rows are zero."""
        rows = np.zeros((self.num_rows, *per_frame.shape[1:]), per_frame.dtype)
        rows[self._rows()] = per_frame
        return rows

    def _rows(self) -> npt.NDArray[np.int64]:
        """Return the row of every frame; scenes start on a shard boundary."""
        shift = self._first_shard[:-1] * self.shard_rows - self._first_frame[:-1]
        rows = np.repeat(shift, np.diff(self._first_frame))
        rows += np.arange(len(rows))
        return rows

    @cached_property
    def arrays(self) -> list[ArraySpec]:
        """The arrays written shard by shard, in the order of the commit's `array` axis."""
        return arrays_in_order(list(self.specs.values()), self.num_rows)

    def identity(self, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tree that two caches must share to be the same promise.

        Args:
            fingerprint: what the stage knows: teacher, dataset, preprocessing.
        """
        return dict(canonical(self._tree(fingerprint, list(self.frames.tokens))))

    def id(self, fingerprint: Mapping[str, Any]) -> str:
        """Return the SHA-256 (hex) of the identity tree; its tokens are never all in memory."""
        here = uuid.uuid4().hex
        before, after = canonical_text(self._tree(fingerprint, here)).split(f'"{here}"')
        pieces = (before.encode(), *_json_list(self.frames.tokens), after.encode())
        return _digest_of(pieces)

    def _tree(self, fingerprint: Mapping[str, Any], tokens: Any) -> dict[str, Any]:
        own = {
            "schema_version": SCHEMA_VERSION,
            "shard_rows": self.shard_rows,
            "selection": {
                "num_frames": len(self.frames),
                "tokens": tokens,
                "scenes": _digest_of(_json_list(self.frames.scenes)),
            },
            "targets": {name: spec.to_dict() for name, spec in self.specs.items()},
        }
        return {**fingerprint, **own}


def _json_list(texts: Iterable[str]) -> Iterator[bytes]:
    """Yield the canonical JSON of a list of texts in pieces."""
    opening, rest = b"[", iter(texts)
    while piece := list(islice(rest, _PIECE)):
        yield opening + canonical_text(piece)[1:-1].encode()
        opening = b","
    yield b"[]" if opening == b"[" else b"]"


def _digest_of(pieces: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()


class _RowOf(Mapping[str, int]):
    """Token -> row, without a row for every token in memory."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def __getitem__(self, token: str) -> int:
        row = int(self._layout.rows_of([token])[0])
        if row < 0:
            raise KeyError(token)
        return row

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout.frames.tokens)

    def __len__(self) -> int:
        return len(self._layout.frames)

"""Reading a cache: by token, lazily by dask or xarray. Every byte that is served has been checked.

Opening reads the small files once and checks them against the digests in the root's zarr.json,
which carries its own; times and poses are read and checked when they are asked for. `stored` reads
and checks the shards.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bevcask.cache.chunks import REPAIR
from bevcask.cache.commit import Commit
from bevcask.cache.encoded import Encoded, valid_entries
from bevcask.cache.files import Files
from bevcask.cache.layout import Layout, arrays_of, entry_axis
from bevcask.cache.metadata import PROVENANCE, ROOT, open_json, read_frames, read_root, read_small
from bevcask.cache.near import Near
from bevcask.cache.schema import said
from bevcask.cache.stored import Part, Stored
from bevcask.errors import (
    CacheCorruptError,
    CacheIdentityError,
    CacheIncompleteError,
    TokenNotCachedError,
    UnknownNameError,
)
from bevcask.notebook import html_table
from bevcask.registry import suggest
from bevcask.targets.spec import TargetSpec

if TYPE_CHECKING:
    import dask.array
    import xarray

_WHOLE = frozenset(("scale", "region", "count"))


def open_cache(url: str, allow_unsealed: bool = False, near: Near | None = None) -> "Cache":
    """Open a cache for reading.

    Args:
        url: local path or fsspec URL.
        allow_unsealed: also open a cache whose extraction has not finished; its missing frames
            raise when read.
        near: where copies of what is read are kept; None for nowhere.

    Raises:
        CacheIncompleteError: there is no cache, or it is not sealed.
        CacheIdentityError: another format or schema version.
        CacheCorruptError: metadata, frames or commit are damaged.
    """
    before = Files(url).get(ROOT)
    try:
        cache = Cache(url, allow_unsealed, near=near)
    except (CacheCorruptError, CacheIncompleteError):
        if Files(url).get(ROOT) == before:
            raise
    else:
        if cache.sealed or Files(url).get(ROOT) == before:
            return cache
    return Cache(url, allow_unsealed, near=near)  # sealed, or targets added, while we read


class Cache:
    """An open cache. Can be pickled and survives a fork; every process reads for itself."""

    def __init__(
        self,
        url: str,
        allow_unsealed: bool = False,
        root: str = ROOT,
        lenient: bool = False,
        near: Near | None = None,
    ) -> None:
        """Open a cache; see `open_cache`.

        Args:
            url: local path or fsspec URL.
            allow_unsealed: also open one that is not complete.
            root: key of the root to believe: that of an addition under way shows it as unsealed.
            lenient: take a commit that cannot be read for absent (to repair it).
            near: where copies of what is read are kept.
        """
        self.url = url
        self._allow_unsealed = allow_unsealed
        self._lenient = lenient
        self._near = near
        self._files = Files(url)
        self.attributes = read_root(self._files, root)
        small = read_small(self._files, self.attributes)
        provenance = self._present(self._files.get(PROVENANCE), PROVENANCE)
        made = open_json(provenance, f"{url}/{PROVENANCE}")
        self.provenance: dict[str, Any] = said(made, "provenance", url)
        self.plan: dict[str, Any] = said(made, "plan", url)
        specs = [TargetSpec.from_dict(spec) for spec in self.attributes["specs"]]
        self.frames = read_frames(self._files, self.attributes, small)
        self.layout = Layout(self.frames, specs, self.attributes["shard_rows"])
        self._require_own_identity(root)
        self.commit = self.read_commit()
        if not self.sealed and not allow_unsealed:
            raise CacheIncompleteError(
                f"cache {url} is not sealed: {len(self.commit)} of {self.layout.num_shards} shards "
                "are committed. Run the `bevcask teacher-extract` command that began it again; it "
                "goes on from here."
            )
        self._arrays = {
            name: {array.key.rpartition("/")[2]: array for array in arrays_of(spec, self._num_rows)}
            for name, spec in self.specs.items()
        }
        self._order = {array.key: number for number, array in enumerate(self.layout.arrays)}
        self._stored = Stored(self._files, self.layout, self.commit, near)

    def __repr__(self) -> str:
        teacher = self.fingerprint["teacher"]
        targets = ", ".join(
            f"{name} {'x'.join(map(str, spec.tap.shape))} {spec.codec}"
            for name, spec in self.specs.items()
        )
        state = "sealed" if self.sealed else f"open, {len(self.commit)} shards committed"
        return (
            f"Cache({self.url!r}: {len(self.frames)} frames of {len(self.frames.scenes.names)} "
            f"scenes, {state}; teacher {teacher.get('type')}, weights "
            f"{str(teacher['weights'])[:12]}; {targets})"
        )

    def _repr_html_(self) -> str:
        teacher, coverage = self.fingerprint["teacher"], self.coverage.values()
        done, total = (sum(numbers) for numbers in zip(*coverage, strict=True))
        scenes = len(self.frames.scenes.names)
        state = "sealed" if self.sealed else f"not sealed, {done} frames can be read"
        return html_table(
            f"{self.url}: {total:,} frames of {scenes:,} scenes, {state}",
            ("target", "kind", "shape", "stored as", "region", "alignment", "context", "MB"),
            [
                (
                    name, spec.tap.kind, spec.sizes, spec.codec, spec.region, spec.alignment,
                    spec.tap.reads, self.stored_bytes(name) / 1e6,
                )
                for name, spec in self.specs.items()
            ],
            f"teacher {teacher.get('type')}, weights {str(teacher['weights'])[:12]}; "
            f"cache {self.id[:12]}",
        )  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        return Cache, (self.url, self._allow_unsealed, ROOT, False, self._near)

    def _require_own_identity(self, root: str) -> None:
        """Check that rows and id follow from frames, targets and fingerprint."""
        shards, said = self.layout.num_shards, self.attributes["num_shards"]
        if shards != said:
            raise CacheCorruptError(
                f"{self.url}/{root}: its frames fill {shards} shards, it says {said}. {REPAIR}"
            )
        if self.layout.id(self.fingerprint) != self.id:
            raise CacheIdentityError(
                f"{self.url}/{root}: its id is not that of its fingerprint, frames and targets: "
                f"somebody changed them. {REPAIR}"
            )

    @property
    def _num_rows(self) -> int:
        return self.layout.num_rows

    @property
    def specs(self) -> dict[str, TargetSpec]:
        """Target name -> how it is stored."""
        return self.layout.specs

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The identity tree the extraction gave."""
        return said(self.attributes, "fingerprint", self.url)

    @property
    def identity(self) -> dict[str, Any]:
        """The whole identity tree: fingerprint, selection, targets, schema."""
        return self.layout.identity(self.fingerprint)

    @property
    def runs(self) -> list[dict[str, Any]]:
        """What every process that wrote to the cache said of itself, oldest first."""
        keys = [key for key in self._files.list("provenance") if key.endswith("/zarr.json")]
        found = self._files.get_many(sorted(key for key in keys if key != PROVENANCE))
        runs = [open_json(data, f"{self.url}/{key}") for key, data in found.items() if data]
        return [{key: value for key, value in run.items() if key != "sha256"} for run in runs]

    @property
    def id(self) -> str:
        """SHA-256 (hex) of the identity tree; student checkpoints record it."""
        return str(self.attributes["id"])

    @property
    def sealed(self) -> bool:
        """True once every shard was committed and the commit digested."""
        return bool(self.attributes["state"] == "sealed")

    @property
    def committed(self) -> frozenset[int]:
        """Shards whose rows can be read."""
        return frozenset(np.flatnonzero(self.commit.present_S).tolist())

    @property
    def coverage(self) -> dict[str, tuple[int, int]]:
        """Scene -> (frames that can be read, frames of the selection)."""
        frames_S, starts = self.layout.frames_per_shard, self.layout.scene_starts
        done = np.add.reduceat(frames_S * self.commit.present_S, starts).tolist()
        total = np.add.reduceat(frames_S, starts).tolist()
        return dict(zip(self.frames.scenes.names, zip(done, total, strict=True), strict=True))

    def stored_bytes(self, name: str) -> int:
        """Return the bytes of a target's committed shard objects."""
        self._spec(name)
        numbers = [self._order[array.key] for array in self._arrays[name].values()]
        return int(self.commit.lengths_SA[:, numbers].sum())

    def read(
        self, token: str, names: Collection[str] | None = None
    ) -> dict[str, Encoded[npt.NDArray[Any]]]:
        """Return the targets of one frame, still quantised; see `read_batch`.

        Returns:
            Target name -> arrays of one sample: values (spec.tap.shape), scale, region bool (Y, X),
            count int64 (). `quantize.dequantize` makes float32 of them.
        """
        return {name: target.sample(0) for name, target in self.read_batch([token], names).items()}

    def read_float(
        self, token: str, names: Collection[str] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Return the targets of one frame as the teacher said them, but for what the codec lost.

        Returns:
            Target name -> float32 (track ids: int64), 0 outside a region; padded sets are cut to
            their valid entries.
        """
        targets = {}
        for name, stored in self.read(token, names).items():
            values = stored.floats()
            if stored.count is not None:
                values = valid_entries(values, stored.count, entry_axis(self.specs[name].tap))
            targets[name] = values
        return targets

    def read_batch(
        self, tokens: Sequence[str], names: Collection[str] | None = None
    ) -> dict[str, Encoded[npt.NDArray[Any]]]:
        """Return the targets of some frames, still quantised, each row decoded where it belongs.

        Args:
            tokens: sample tokens, B of them.
            names: targets; None means all.

        Returns:
            Target name -> arrays, batch first: values (B, *spec.tap.shape), scale, region bool
            (B, Y, X), count int64 (B,).

        Raises:
            TokenNotCachedError: a token is not in the selection.
            UnknownNameError: no such target.
            CacheIncompleteError: a shard is not committed.
            CacheCorruptError: stored bytes are damaged or missing.
        """
        wanted = list(self.specs) if names is None else list(names)
        specs = [self._spec(name) for name in wanted]
        places = [self._place(token) for token in tokens]
        values = {spec.key: self._room(spec, len(places)) for spec in specs}
        rows = [
            (Part(self._arrays[spec.key]["values"], shard), place, out)
            for spec in specs
            for (shard, place), out in zip(places, values[spec.key], strict=True)
        ]
        parts = {
            Part(self._arrays[spec.key][name], shard)
            for spec in specs
            for name in _WHOLE & self._arrays[spec.key].keys()
            for shard, _ in places
        }
        whole = self._stored.read(rows, parts)
        return {spec.key: self._encoded(spec, values[spec.key], places, whole) for spec in specs}

    def _place(self, token: str) -> tuple[int, int]:
        """Return the shard of a frame and its row there."""
        row = self.layout.row_of.get(token)
        if row is None:
            raise TokenNotCachedError(
                f"sample {token!r} is not in cache {self.url}, which holds "
                f"{len(self.frames)} frames of {len(self.frames.scenes.names)} scenes. Select "
                "frames of the cache, or extract a cache with this selection to another URL."
            )
        shard, place = divmod(row, self.layout.shard_rows)
        if shard not in self.commit and not self._appeared(shard):
            raise CacheIncompleteError(
                f"cache {self.url}: shard {shard} is not committed ({len(self.commit)} of "
                f"{self.layout.num_shards} are). Run the `bevcask teacher-extract` command that "
                "began it again."
            )
        return shard, place

    def _appeared(self, shard: int) -> bool:
        """Tell whether a shard has been committed since, of a cache that may be unsealed."""
        if self._allow_unsealed and not self._lenient and not self.commit.look(shard):
            self.commit = self.read_commit()
            self._stored = Stored(self._files, self.layout, self.commit, self._near)
        return shard in self.commit

    def _room(self, spec: TargetSpec, num: int) -> npt.NDArray[Any]:
        dtype = np.dtype(self._arrays[spec.key]["values"].dtype).newbyteorder("<")
        return np.empty((num, *spec.tap.shape), dtype)

    def _encoded(
        self,
        spec: TargetSpec,
        values: npt.NDArray[Any],
        places: Sequence[tuple[int, int]],
        chunks: Mapping[Part, npt.NDArray[Any]],
    ) -> Encoded[npt.NDArray[Any]]:
        arrays = self._arrays[spec.key]
        whole = {
            part: np.stack([chunks[Part(arrays[part], shard)][row] for shard, row in places])
            for part in _WHOLE & arrays.keys()
        }
        region = whole.get("region")
        if region is not None:
            shape = spec.tap.shape[-2:]
            bits = np.unpackbits(region, axis=1, count=shape[0] * shape[1], bitorder="little")
            region = bits.reshape(-1, *shape).view(bool)
        return Encoded(values, whole.get("scale"), region, whole.get("count"))

    def _spec(self, name: str) -> TargetSpec:
        if name not in self.specs:
            raise UnknownNameError(
                f"cache {self.url} has no target {name!r}.{suggest(name, self.specs)} "
                f"Known: {', '.join(self.specs)}."
            )
        return self.specs[name]

    def dask(self, name: str, frames: int | None = None) -> "dask.array.Array":
        """Return a target lazily: float32 (frame, ...), no pad rows; a dask chunk is a shard.

        Whoever picks single frames says `frames=1`.
        """
        from bevcask.cache.lazy import lazy_values

        self._spec(name)
        return lazy_values(self, name, frames)

    def xarray(self, name: str, frames: int | None = None) -> "xarray.Dataset":
        """Return what `dask` does with token, scene, time and metric coordinates."""
        from bevcask.cache.lazy import lazy_dataset

        self._spec(name)
        return lazy_dataset(self, name, frames)

    def _present(self, data: bytes | None, key: str) -> bytes:
        if data is None:
            raise CacheCorruptError(f"{self.url}/{key}: committed, but gone. {REPAIR}")
        return data

    def read_commit(self) -> Commit:
        """Return what is committed now.

        Raises:
            CacheCorruptError: a commit is damaged, or that of a sealed cache missing.
        """
        num_arrays = len(self.layout.arrays)
        commit = Commit(self._files, self.attributes, num_arrays, self._lenient)
        if not self.sealed:
            root = read_root(self._files)
            if (root["id"], root["state"]) == (self.id, "sealed"):  # meanwhile, by another process
                return Commit(self._files, root, num_arrays, self._lenient)
        return commit

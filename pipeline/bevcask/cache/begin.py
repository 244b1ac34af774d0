"""Beginning to write: create a cache, go on with one, or add targets to a sealed one.

What is no shard's (metadata, frames, the root) is written here and by the seal, always under the
lease of the small files: processes that begin at once wait for each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bevcask.cache import metadata
from bevcask.cache.files import Files
from bevcask.cache.frames import FrameTable
from bevcask.cache.identity import require_identity, require_shared_identity
from bevcask.cache.layout import MAX_ROWS, Layout, commit_array, open_array
from bevcask.cache.lease import FOLDER, holding_small_files
from bevcask.cache.metadata import ADDITION, PROVENANCE, ROOT, read_root
from bevcask.cache.parts import Part
from bevcask.cache.reader import Cache
from bevcask.cache.schema import check_fingerprint
from bevcask.cache.tidy import tidy, tidy_sealed
from bevcask.cache.writer import Writer
from bevcask.errors import CacheIdentityError, ConfigError
from bevcask.paths import PARTIAL
from bevcask.targets.spec import TargetSpec


@dataclass(frozen=True)
class Begun:
    """A cache that is ready to be written to.

    Attributes:
        cache: as it will be, opened with its commits so far.
        made: what is recorded of this run (`provenance`, `plan`).
        base: a sealed cache whose targets stay as they are while others are added.
    """

    cache: Cache
    made: Mapping[str, Any]
    base: Cache | None = None

    def writer(self, shards: range, what: str, patience: float = 0.0) -> Writer:
        """Return what writes some of its shards, as often and for as many ranges as is wanted.

        Args:
            shards: those that are to be filled.
            what: how people call them.
            patience: seconds to wait for a process that is at work on some of them.
        """
        return Writer(self.cache, shards, what, self.made, self.base, patience)

    def tidy(self) -> None:
        """Remove what killed processes left, unless one is at work on the cache.

        Raises:
            CacheBusyError: see `holding_small_files`.
        """
        files = Files(self.cache.url)
        with holding_small_files(files, "tidying"):
            tidy(files)
            tidy_sealed(files, self.cache.layout.num_shards)


def create(
    url: str,
    specs: Sequence[TargetSpec],
    frames: FrameTable,
    *,
    shard_rows: int,
    fingerprint: Mapping[str, Any],
    plan: Mapping[str, Any],
    provenance: Mapping[str, Any],
    part: Part | None = None,
    whole_scenes: bool = False,
) -> Writer:
    """Create a cache, go on with one of the same identity, or add targets to a sealed one.

    Args:
        url: local path or fsspec URL.
        specs: what is stored. What a sealed cache lacks of it is added; what else a cache holds, or
            was begun with, stays and is completed.
        frames: the selection; fixed from the first time on.
        shard_rows: frames a shard.
        fingerprint: identity tree of teacher, dataset and preprocessing, for these targets and
            those of `stored_targets(url)`.
        plan: what the plan said; kept beside the provenance, no part of the identity.
        provenance: versions, host, command, git, times of this run.
        part: which shards this process fills; None for all.
        whole_scenes: parts never cut a scene.

    Raises:
        CacheIdentityError: the URL holds something else; the leaves that differ are named. Or it
            holds the beginning of other additional targets.
        CacheCorruptError: the metadata found there is damaged, or there are symbolic links.
        TargetMismatchError: a target cannot be stored, or the fingerprint names no weights.
        DiskFullError: no room for the metadata.
    """
    made = {"provenance": dict(provenance), "plan": dict(plan)}
    begun = begin(url, specs, frames, shard_rows=shard_rows, fingerprint=fingerprint, made=made)
    part = part or Part()
    return begun.writer(part.shards(begun.cache.layout, whole_scenes), str(part))


def begin(
    url: str,
    specs: Sequence[TargetSpec],
    frames: FrameTable,
    *,
    shard_rows: int,
    fingerprint: Mapping[str, Any],
    made: Mapping[str, Any],
) -> Begun:
    """Do what `create` does, for a process that fills several ranges of shards; errors as there.

    `made` is what is recorded of the run, `plan` and `provenance`.
    """
    files = Files(url)
    check_fingerprint(fingerprint)
    layout = Layout(frames, specs, shard_rows)
    if layout.num_rows > MAX_ROWS:
        raise ConfigError(
            f"{len(frames)} frames in shards of {shard_rows} take {layout.num_rows} rows, a cache "
            f"has at most {MAX_ROWS}. Lower store.shard_rows, or make several caches."
        )
    files.require_no_links()
    if _is_complete(files, layout):
        cache = Cache(url)
        require_shared_identity(cache, layout, fingerprint)
        return Begun(cache, made)
    with holding_small_files(files, "creating it"):
        if files.get(ROOT) is None:
            _found(files, layout, fingerprint, made)
        cache = Cache(url, allow_unsealed=True)
        new = require_shared_identity(cache, layout, fingerprint)
        tidy(files)
        if not new:
            if cache.sealed:
                tidy_sealed(files, layout.num_shards)
            return Begun(cache, made)
        if not cache.sealed:
            require_identity(cache, layout.identity(fingerprint))  # names what is new
        return Begun(_extend(cache, files, new, fingerprint), made, cache)


def stored_targets(url: str) -> list[TargetSpec]:
    """Return the targets of the cache at a URL, those being added included; none without a cache.

    Raises:
        CacheIdentityError: another format or schema version.
        CacheCorruptError: its metadata is damaged.
    """
    files = Files(url)
    if files.get(ROOT) is None:
        return []
    key = ROOT if files.get(ADDITION) is None else ADDITION
    return [TargetSpec.from_dict(spec) for spec in read_root(files, key)["specs"]]


def _is_complete(files: Files, layout: Layout) -> bool:
    """Tell whether a sealed cache, with nothing to tidy up, holds all targets of a run."""
    if files.get(ROOT) is None or files.get(ADDITION) is not None:
        return False
    attributes = read_root(files)
    own_commits = f"{open_array(attributes['id'])}/"
    if any(key.endswith(PARTIAL) or key.startswith(own_commits) for key in files.list()):
        return False
    held = {TargetSpec.from_dict(spec).key for spec in attributes["specs"]}
    return attributes["state"] == "sealed" and set(layout.specs) <= held


def _found(
    files: Files, layout: Layout, fingerprint: Mapping[str, Any], made: Mapping[str, Any]
) -> None:
    """Write all small files, the root last."""
    small = metadata.build(layout, layout.id(fingerprint))
    _require_empty(files, {*small, PROVENANCE})
    attributes = metadata.root_attributes(layout, fingerprint, metadata.digests_of(small))
    files.put_many({**small, PROVENANCE: metadata.group_json(made)})
    files.put(ROOT, metadata.group_json(attributes))


def _require_empty(files: Files, own: set[str]) -> None:
    """Accept a folder only if nothing is in it but the start of a cache."""
    foreign = sorted(
        key
        for key in files.list()
        if key not in own and not key.endswith(PARTIAL) and not key.startswith(f"{FOLDER}/")
    )
    if foreign:
        raise CacheIdentityError(
            f"{files.url} is not empty and no bevcask cache: expected {ROOT}, got "
            f"{foreign[0]} and {len(foreign) - 1} more. Choose another URL."
        )


def _extend(
    sealed: Cache, files: Files, new: Sequence[TargetSpec], fingerprint: Mapping[str, Any]
) -> Cache:
    """Begin, or go on with, adding targets; return the cache as it will be, unsealed.

    The root that is there goes on telling of the old targets alone. The one that will replace it
    when all shards are committed waits under `ADDITION`.
    """
    layout = Layout(sealed.frames, [*sealed.specs.values(), *new], sealed.layout.shard_rows)
    cache_id = layout.id(fingerprint)
    small = metadata.build(layout, cache_id)
    if files.get(ADDITION) is None:
        for folder in (open_array(cache_id), commit_array(cache_id)):
            files.delete_below(folder)
        kept = dict(sealed.attributes["files"])
        del kept[f"{commit_array(sealed.id)}/zarr.json"]
        digests = {**metadata.digests_of(small), **kept}
        attributes = metadata.root_attributes(layout, fingerprint, digests)
        files.put(ADDITION, metadata.group_json(attributes))
    pending = read_root(files, ADDITION)
    if pending["id"] != cache_id:
        names = {TargetSpec.from_dict(s).key for s in pending["specs"]} - sealed.specs.keys()
        raise CacheIdentityError(
            f"cache {files.url}: {', '.join(sorted(names))} are being added to it, this run would "
            f"add {', '.join(spec.key for spec in new)}. Finish that first, with the command that "
            f"began it; or give it up by deleting {files.url.rstrip('/')}/addition."
        )
    there = {key: data for key, data in files.get_many(small).items() if data is not None}
    whole = metadata.digests_of(there)
    files.put_many(
        {k: data for k, data in small.items() if whole.get(k) != pending["files"].get(k)}
    )
    return Cache(files.url, allow_unsealed=True, root=ADDITION)

"""Sealing: the commits of single shards become one object, then the root says so, then they go.

Killed in between, a cache is unsealed with all of its own commits, or sealed with some of them left
over; the next run packs again, or tidies up. To be called with the lease of the small files held.
"""

import hashlib
from collections.abc import Mapping, Sequence

from bevcask.cache import metadata
from bevcask.cache.commit import pack
from bevcask.cache.files import Files
from bevcask.cache.layout import commit_array, commit_key, open_array, packed_key
from bevcask.cache.metadata import ADDITION, ROOT
from bevcask.cache.reader import Cache


def seal(cache: Cache, chunks: Sequence[bytes]) -> None:
    """Declare a cache complete.

    Where targets were added, this is the moment in which they appear: one file is replaced.

    Args:
        cache: as it will be.
        chunks: the commit of every shard, see `Commit.chunks`.
    """
    files, packed = Files(cache.url), pack(chunks)
    small = metadata.commit_json(cache.layout, cache.id, packed=True)
    _put_changed(files, {**small, packed_key(cache.id): packed})
    root = {
        **cache.attributes,
        "state": "sealed",
        "commit": hashlib.sha256(packed).hexdigest(),
        "files": _swapped(cache, open_array(cache.id), small),
    }
    _put_changed(files, {ROOT: metadata.group_json(root)})
    remove_own_commits(files, cache.id)


def unseal(cache: Cache, chunks: Mapping[int, bytes]) -> None:
    """Take a seal back: every shard gets a commit of its own again, those without a chunk none."""
    files = Files(cache.url)
    small = metadata.commit_json(cache.layout, cache.id, packed=False)
    files.delete_below(open_array(cache.id))
    own = {commit_key(cache.id, shard): chunk for shard, chunk in chunks.items()}
    files.put_many({**small, **own})
    root = {
        **cache.attributes,
        "state": "open",
        "commit": None,
        "files": _swapped(cache, commit_array(cache.id), small),
    }
    files.put(ROOT, metadata.group_json(root))


def _put_changed(files: Files, contents: Mapping[str, bytes]) -> None:
    """Write what is not there yet: a repair leaves alone what is whole."""
    there = files.get_many(contents)
    files.put_many({key: data for key, data in contents.items() if there[key] != data})


def _swapped(cache: Cache, gone: str, small: Mapping[str, bytes]) -> dict[str, str]:
    """Return the digests of small files with one commit array in the place of the other."""
    kept = {k: v for k, v in cache.attributes["files"].items() if k != f"{gone}/zarr.json"}
    return dict(sorted({**kept, **metadata.digests_of(small)}.items()))


def remove_own_commits(files: Files, cache_id: str) -> None:
    """Remove the commits of single shards of a sealed cache."""
    files.delete_below(open_array(cache_id))


def end_addition(files: Files, cache_id: str) -> None:
    """Remove what the addition of targets replaced; its own root goes last, as the reminder."""
    if files.get(ADDITION) is None:
        return
    kept = (f"{commit_array(cache_id)}/", "commit/zarr.json")
    others = [key for key in files.list("commit") if not key.startswith(kept)]
    for folder in {key.rpartition("/")[0] for key in others}:
        files.delete_below(folder)
    files.delete_below("addition")

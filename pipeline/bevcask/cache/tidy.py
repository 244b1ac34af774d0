"""Removing what a killed process left: half-written files, and what was replaced.

To be called with the lease of what is tidied held, and after the identity of the cache was checked:
files of another cache are not ours to remove.
"""

from bevcask.cache.files import Files
from bevcask.cache.layout import packed_key
from bevcask.cache.lease import FOLDER, Lease
from bevcask.cache.metadata import ADDITION, read_root
from bevcask.cache.seal import end_addition, remove_own_commits
from bevcask.errors import CacheBusyError
from bevcask.paths import PARTIAL


def tidy(files: Files) -> None:
    """Remove half-written small files, and what a seal or an addition replaced.

    With the lease of the small files.
    """
    root = read_root(files)
    if root["state"] == "sealed":
        remove_own_commits(files, root["id"])
    small = {*root["files"], packed_key(root["id"])}
    if files.get(ADDITION) is not None:
        pending = read_root(files, ADDITION)
        small |= {*pending["files"], packed_key(pending["id"])}
        if pending["id"] == root["id"]:
            end_addition(files, root["id"])
    for key in list(files.list()):
        whole = key.removesuffix(PARTIAL).rpartition(".")[0]
        if key.endswith(PARTIAL) and (whole in small or whole.endswith("zarr.json")):
            files.delete(key)


def remove_partials(files: Files) -> None:
    """Remove every half-written file of a cache; with the leases of all that could write one."""
    for key in list(files.list()):
        if key.endswith(PARTIAL) and not key.startswith(f"{FOLDER}/"):
            files.delete(key)


def tidy_sealed(files: Files, num_shards: int) -> None:
    """Remove every half-written file of a sealed cache, unless a process is at work on its shards.

    With the lease of the small files.
    """
    lease = Lease(files, range(num_shards), "tidying")
    try:
        lease.claim()
    except CacheBusyError:
        return
    try:
        remove_partials(files)
    finally:
        lease.release()

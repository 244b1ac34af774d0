"""Is there room on the disk? Said before and soon after the first byte, never at the last."""

import logging
import shutil

from bevcask.errors import DiskFullError
from bevcask.paths import local_path

SMALLEST_SHARE = 0.05
"""Of the uncompressed size. Sparse maps come close to a tenth; nothing seen so far goes below."""
_ADVICE = (
    "Free some space, or pick a smaller store.codec, fewer frames or another disk. What is "
    "committed stays: the same command goes on from there."
)
_log = logging.getLogger(__name__)


def free_bytes(url: str) -> int | None:
    """Return the free bytes of the disk a cache is, or will be, on; None for remote stores."""
    path = local_path(url)
    if path is None:
        return None
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def check_bound(url: str, bound: int) -> None:
    """Judge by the uncompressed size, before anything is written.

    It is an upper bound, and a rough one: `SMALLEST_SHARE` of it must fit; a warning says so where
    the whole would not.

    Args:
        url: of the cache.
        bound: uncompressed bytes still to be written.

    Raises:
        DiskFullError: even the smallest share does not fit.
    """
    free = free_bytes(url)
    if free is None or bound <= free:
        return
    least = SMALLEST_SHARE * bound
    said = f"{url}: the plan says at most {_gb(bound)}, the disk has {_gb(free)} free"
    if least > free:
        raise DiskFullError(
            f"{said}. Even {SMALLEST_SHARE:.0%} of it is {_gb(least - free)} more than that: it "
            f"will not fit however well it compresses. {_ADVICE}"
        )
    _log.warning(
        "%s: %s less. Compression decides; the first shard tells.", said, _gb(bound - free)
    )


def check_projection(url: str, written: int, frames: int, frames_left: int) -> None:
    """Judge by what the first frames took.

    Args:
        url: of the cache.
        written: bytes they took.
        frames: how many they were.
        frames_left: how many are to come, of all parts.

    Raises:
        DiskFullError: the rest would not fit; nothing written so far is lost.
    """
    free = free_bytes(url)
    needed = written / frames * frames_left
    if free is not None and needed > free:
        raise DiskFullError(
            f"{url}: {frames_left} more frames of about {written / frames / 1e6:.2f} MB need "
            f"{_gb(needed)}, the disk has {_gb(free)} free: {_gb(needed - free)} short. {_ADVICE}"
        )


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3f} GB"

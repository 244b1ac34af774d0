"""How fast a disk takes what a cache writes: whole blocks, each flushed to the disk."""

import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bevcask.paths import sync

_BLOCK = 16 << 20  # bytes
_WINDOW = 0.5  # seconds
_SETTLED = 0.1
_SHARE_OF_FREE = 0.1


@dataclass(frozen=True)
class DiskRate:
    """What a disk takes.

    Attributes:
        folder: where.
        bytes_per_second: of the last windows of half a second.
        settled: whether three windows in a row agreed to a tenth.
        free: bytes.
    """

    folder: Path
    bytes_per_second: float
    settled: bool
    free: int


def disk_rate(place: Path, longest: float = 20.0) -> DiskRate:
    """Write until the rate settles, and remove what was written.

    Caches of controllers and of the system take the first bytes faster than the disk; each block is
    flushed, and the last windows count.

    Args:
        place: where something will lie; the nearest folder that is there is written to.
        longest: seconds after which the rate is taken as it is.

    Raises:
        OSError: no room, no permission.
    """
    folder = place.absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    most = int(_SHARE_OF_FREE * free)
    file = folder / f".bevcask-rate-{uuid.uuid4().hex}"
    try:
        rates = _rates(file, longest, most)
    finally:
        file.unlink(missing_ok=True)
    return DiskRate(folder, median(rates[-3:]), settled(rates), free)


def settled(rates: list[float]) -> bool:
    """Tell whether the last three of some rates agree.

    >>> settled([900.0, 300.0, 100.0]), settled([900.0, 100.0, 104.0, 102.0])
    (False, True)
    """
    last = rates[-3:]
    return len(last) == 3 and max(last) - min(last) <= _SETTLED * median(last)


def _rates(place: Path, longest: float, most: int) -> list[float]:
    """Return bytes a second of one window after another."""
    block, written, rates = os.urandom(_BLOCK), 0, list[float]()
    began = since = time.perf_counter()
    in_window = 0
    with place.open("wb") as file:
        while True:
            file.write(block)
            file.flush()
            sync(place)
            written, in_window = written + _BLOCK, in_window + _BLOCK
            now = time.perf_counter()
            over = now - began >= longest or written + _BLOCK > most
            if now - since >= _WINDOW or over:
                rates.append(in_window / (now - since))
                since, in_window = now, 0
            if over or settled(rates):
                return rates

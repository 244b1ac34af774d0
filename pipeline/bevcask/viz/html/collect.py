"""One pass over the frames of a cache: a line of JSON a frame, written as it comes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.cache import Cache
from bevcask.cache.encoded import Encoded
from bevcask.data.index.frames import Frames
from bevcask.errors import CacheCorruptError
from bevcask.processes import cores
from bevcask.progress import Ticker
from bevcask.viz.html.frames import Content, maps_of, record, shown
from bevcask.viz.html.rasters import Rasters
from bevcask.viz.sample import first_views

Floats = npt.NDArray[np.float32]
SIDES = ((128, 2000), (96, 1500), (64, 1000), (64, 300), (48, 300), (32, 200))
"""Cells a side of a raster, LiDAR points: the first pair that fits is taken."""
_MAP_DIMS, _MANY = 3, 32  # channel, y, x; cells a side
_BLOCK = 4  # frames that follow each other, of which one thread compares neighbours
_FITTED = 24  # frames that ranges and basis are fitted to
_TRIED = 3  # frames that show how large a page becomes


@dataclass
class Collected:
    """What one pass found.

    Attributes:
        content: what is shown of each frame.
        rows: of every frame in order: `token`, `scene`, and where told `misses`, `alarms`, `truth`,
            `boxes` (numbers), `damaged`.
        changes: target -> relative change between neighbouring frames.
        extremes: target -> smallest and largest value of each channel, (2, C).
        bytes: of the lines that were written.
    """

    content: Content
    rows: list[dict[str, Any]] = field(default_factory=list)
    changes: dict[str, list[float]] = field(default_factory=dict)
    extremes: dict[str, Floats] = field(default_factory=dict)
    bytes: int = 0


def choose_content(
    cache: Cache, frames: Frames | None, tokens: Sequence[str], budget: int
) -> Content:
    """Fit ranges and colours, and choose how fine rasters are so that all frames fit.

    Args:
        cache: an open cache.
        frames: of its dataset; None without.
        tokens: of the frames that are shown.
        budget: bytes of all frames.
    """
    views = first_views(cache)
    specs = {name: views[name] for name in shown(views)}
    names = maps_of(specs)
    sample: dict[str, list[Floats]] = {name: [] for name in names}
    kept = []
    for token in spread(tokens, _FITTED):
        try:
            stored = cache.read(token, list(specs))
        except CacheCorruptError:
            continue
        kept.append((token, stored))
        for name in names:
            sample[name].append(stored[name].floats())
    extent = _half_extent(cache)
    for side, points in SIDES:
        content = Content(specs, Rasters(specs, sample, side), points, extent)
        lines = [line(record(content, stored, frames, token)) for token, stored in kept[:_TRIED]]
        if sum(map(len, lines)) / max(1, len(lines)) * len(tokens) <= budget:
            break
    return content


def collect(
    cache: Cache,
    frames: Frames | None,
    tokens: Sequence[str],
    content: Content,
    out: Path,
    bar: Ticker,
) -> Collected:
    """Write every frame's record to a file, a line each; memory does not grow with their number."""
    found = Collected(content, changes={name: [] for name in maps_of(content.specs)})
    blocks = [tokens[start : start + _BLOCK] for start in range(0, len(tokens), _BLOCK)]
    workers = min(4, cores())
    with out.open("wb") as file, ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[_Done]] = []

        def take() -> None:
            done = waiting.pop(0).result()
            for row, data in done.frames:
                found.rows.append(row)
                found.bytes += file.write(data)
                bar.advance()
            for name, own in done.changes.items():
                found.changes[name] += own
            merge(found.extremes, done.extremes)

        for block in blocks:
            waiting.append(pool.submit(_read_block, cache, frames, content, block))
            if len(waiting) > workers:
                take()
        while waiting:
            take()
    return found


@dataclass(frozen=True)
class _Done:
    frames: list[tuple[dict[str, Any], bytes]]
    changes: dict[str, list[float]]
    extremes: dict[str, Floats] = field(default_factory=dict)


def _read_block(
    cache: Cache, frames: Frames | None, content: Content, tokens: Sequence[str]
) -> _Done:
    done, before = _Done([], {name: [] for name in maps_of(content.specs)}), None
    for token in tokens:
        try:
            stored: Mapping[str, Encoded[Any]] = cache.read(token, list(content.specs))
        except CacheCorruptError as error:
            done.frames.append(({"token": token, "damaged": str(error)}, line({})))
            before = None
            continue
        merge(done.extremes, {name: extremes(stored[name]) for name in done.changes})
        data = record(content, stored, frames, token)
        row = _row(token, data) | {"codec": codec_error(stored)}
        done.frames.append((row, line(data)))
        if before is not None:
            for name, own in done.changes.items():
                own += list(change(before[name], stored[name]))
        before = stored
    return done


def _row(token: str, data: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"token": token}
    if data["teacher"] is not None:
        row["boxes"] = len(data["teacher"])
    if data["truth"] is not None:
        row["truth"] = sum(box[-1] > 0 for box in data["truth"])
    if "found" in data:
        row["misses"] = data["found"].count(0)
        row["alarms"] = sum(data["alarms"])
    return row


def extremes(stored: Encoded[Any]) -> Floats:
    """Return the smallest and the largest value of each channel of a map, (2, C) float32."""
    both_2C = np.stack([stored.values.min((1, 2)), stored.values.max((1, 2))]).astype(np.float32)
    whole: Floats = both_2C if stored.scale is None else both_2C * np.float32(stored.scale)
    return whole


def merge(whole: dict[str, Floats], part: Mapping[str, Floats]) -> None:
    """Bring extremes of other frames into those of some; what is not finite stays."""
    for name, own_2C in part.items():
        both_22C = np.stack([whole.get(name, own_2C), own_2C])
        whole[name] = np.stack([both_22C[:, 0].min(0), both_22C[:, 1].max(0)])


def codec_error(stored: Mapping[str, Encoded[Any]]) -> float:
    """Return what rounding to integers leaves open, at most of any target: rms of half steps / rms.

    The numbers before rounding are gone; errors within a step are taken to be spread evenly.
    """
    errors = [0.0]
    for own in map(thinned, stored.values()):
        if own.scale is not None:
            size = float(np.sqrt(np.square(own.floats()).mean()))
            step = float(np.sqrt(np.square(own.scale, dtype=np.float64).mean() / 12))
            errors.append(step / size if size > 0 else 0.0)
    return round(max(errors), 5)


def thinned(stored: Encoded[Any]) -> Encoded[Any]:
    """Return every fourth row and column of a map that has more than a few; others as they are."""
    if stored.values.ndim != _MAP_DIMS or min(stored.values.shape[-2:]) < _MANY:
        return stored
    region = None if stored.region is None else stored.region[::4, ::4]
    return Encoded(stored.values[:, ::4, ::4], stored.scale, region)


def change(one: Encoded[Any], other: Encoded[Any]) -> Iterator[float]:
    """Yield the relative change between two frames, over the cells both store; none of no cells."""
    one, other = thinned(one), thinned(other)
    a, b = one.floats(), other.floats()
    if one.region is not None and other.region is not None:
        both_YX = one.region & other.region
        a, b = a[:, both_YX], b[:, both_YX]
    size = float(np.square(a).sum() + np.square(b).sum())
    if size > 0:
        yield float(np.sqrt(np.square(a - b).sum() / size))


def line(data: Mapping[str, Any]) -> bytes:
    """Return a frame as one line of JSON that may stand in a script element."""
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return text.encode() + b"\n"


def spread(tokens: Sequence[str], number: int) -> list[str]:
    """Return so many tokens, evenly spaced; all where there are fewer."""
    places = np.linspace(0, len(tokens) - 1, min(number, len(tokens))).round().astype(int)
    return [tokens[place] for place in places]


def _half_extent(cache: Cache) -> float:
    grids = [spec.tap.grid for spec in cache.specs.values() if spec.tap.grid]
    own = cache.fingerprint["teacher"].get("config", {})
    told = own.get("half_extent") if isinstance(own, dict) else None
    return float(told or max((grid.x_max for grid in grids), default=51.2))

"""How long an extraction will take: a small one of the same make, timed until its rate is known.

The small one is real: the loader, the teacher, the codecs, the writer and the disk are those of the
command that would follow. What it takes is parted into what comes once and what each frame costs.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bevcask.cache.reader import Cache, open_cache
from bevcask.data.index.frames import Frames
from bevcask.extraction.fill import Job, fill
from bevcask.progress import Ticker, progress_bar

BATCHES = 6
"""So many batches a rate needs at least: the first fill queues, the last empty them."""
_WARM = 0.25  # share of the frames that fill queues and start workers
_READS = 3


@dataclass(frozen=True)
class Timing:
    """What a small extraction took.

    Attributes:
        frames: how many it had.
        start: seconds until the first of them, as if each took as long as the later ones.
        per_frame: seconds a frame, once the rate has settled.
        end: seconds behind the last: what was queued is written.
        teacher: seconds a pass that were waited for neither the loader nor the writer: in a loop
            the teacher is shown each frame once, however many views are stored.
        read: seconds in which one process reads and checks what is stored of a frame.
        stored: bytes a frame, compressed.
        shares: of the wall time: `device`, `loader`, `writer`.
    """

    frames: int
    start: float
    per_frame: float
    end: float
    teacher: float
    read: float
    stored: float
    shares: dict[str, float]

    def seconds(self, frames: int, bytes_per_second: float | None = None) -> float:
        """Return what so many frames take, on a disk that takes so much."""
        return self.start + self.end + frames * self.settled(bytes_per_second)

    def settled(self, bytes_per_second: float | None) -> float:
        """Return the seconds a frame takes: its own, or those the disk needs for it."""
        disk = self.stored / bytes_per_second if bytes_per_second else 0.0
        return max(self.per_frame, disk)

    def pays_after(self, frames: int, bytes_per_second: float | None = None) -> float | None:
        """Return the epochs of a teacher in the loop that take as long as the extraction.

        An epoch of it costs what the teacher takes; one from the cache what reading takes, as if
        no worker did that beside the step. None where reading takes as long.
        """
        saved = frames * (self.teacher - self.read)
        return self.seconds(frames, bytes_per_second) / saved if saved > 0 else None

    def told(self, frames: int, bytes_per_second: float | None = None) -> dict[str, Any]:
        """Return plain data of what so many frames take, and from which epoch on a cache pays."""
        settled = self.settled(bytes_per_second)
        pays = self.pays_after(frames, bytes_per_second)
        slowest = max(self.shares, key=self.shares.__getitem__)
        return {
            "probed_frames": self.frames,
            "seconds": self.seconds(frames, bytes_per_second),
            "seconds_per_frame": settled,
            "start_seconds": self.start,
            "bound_by": slowest if settled == self.per_frame else "disk",
            "stored_per_frame": self.stored,
            "teacher_seconds": self.teacher,
            "read_seconds": self.read,
            "pays_from_epoch": None if pays is None else int(pays) + 1,
        }


def probed(frames: Frames, number: int) -> Frames:
    """Return so many frames of whole scenes, spread over a selection, the last one cut."""
    scenes = frames.scene_ranges
    wanted = min(len(scenes), -(-number * len(scenes) // len(frames)))
    chosen = [scenes[place * len(scenes) // wanted] for place in range(wanted)]
    rows = [row for scene in chosen for row in scene]
    rest = [row for scene in scenes if scene not in chosen for row in scene]
    return frames.keep([frames.tokens[row] for row in (rows + rest)[:number]])


def time_extraction(begin: Callable[[], Job]) -> Timing:
    """Run a small extraction.

    Args:
        begin: makes it; its cache must be one that nobody needs.
    """
    began, ticks = time.perf_counter(), list[tuple[float, int]]()

    @contextmanager
    def timed(title: str, total: int) -> Iterator[Ticker]:
        with progress_bar("time the extraction", total) as shown:

            def tick(own: Ticker) -> None:
                if own.done > shown.done:
                    ticks.append((time.perf_counter() - began, own.done))
                shown.advance(own.done - shown.done, own.note)

            yield Ticker(total, 0, tick)

    job = replace(begin(), bar=timed)
    layout = job.begun.cache.layout
    filled = fill(job, range(layout.num_shards), "the probe")
    job.begun.writer(range(0), "the seal").seal()
    took, told = time.perf_counter() - began, filled.wall_time
    assert told is not None, "a fresh cache lacks everything"
    start, per_frame = _rate(ticks, len(job.frames))
    end = max(0.0, took - start - per_frame * len(job.frames))
    stored, read = _read(open_cache(str(job.config.cache)))
    passes = ticks[-1][1]
    device = told["seconds"] * told["shares"]["device"] / passes
    teacher = min(per_frame * len(job.frames) / passes, device)  # the first forward warms up
    return Timing(len(job.frames), start, per_frame, end, teacher, read, stored, told["shares"])


def _rate(ticks: list[tuple[float, int]], frames: int) -> tuple[float, float]:
    """Return what comes once and what a frame costs, in seconds, of (seconds, passes done).

    A frame takes as many passes as it is shown in views.
    """
    time_T, passes_T = np.array(ticks).T
    done_T = passes_T * frames / passes_T[-1]
    first = int(np.argmax(done_T >= _WARM * frames))
    span = done_T[-1] - done_T[first]
    per_frame = (time_T[-1] - time_T[first]) / span if span else time_T[-1] / frames
    return max(0.0, float(time_T[-1] - per_frame * done_T[-1])), float(per_frame)


def _read(cache: Cache) -> tuple[float, float]:
    """Return the stored bytes of a frame, and the seconds in which one process reads it."""
    tokens = cache.frames.tokens
    stored = sum(cache.stored_bytes(name) for name in cache.specs) / len(tokens)
    order = np.random.default_rng(0).permutation(len(tokens))
    took = []
    for _ in range(_READS):
        began = time.perf_counter()
        for row in order:
            cache.read_batch([tokens[row]])
        took.append((time.perf_counter() - began) / len(tokens))
    return stored, min(took)

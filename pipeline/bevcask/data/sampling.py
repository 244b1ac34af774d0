"""The order samples come in: epochs, class balance, windows. Indices only; reads nothing.

Batch t is a pure function of (seed, t): a run that is resumed goes on with the very batches it
would have had, and nothing about the order has to be saved.
"""

import functools
from collections.abc import Collection, Iterator

import numpy as np
import numpy.typing as npt

from bevcask.data.augment import stream
from bevcask.data.index.frames import Frames
from bevcask.data.samples import Key
from bevcask.errors import DataError
from bevcask.geometry import CLASSES

Ints = npt.NDArray[np.int64]
_PIECE = 1 << 15  # frames whose boxes are in memory at once


class OfRank(Collection[list[Key]]):
    """The rows of each batch that one of several ranks loads: R x B of them, B in a row each.

    Batch t of all ranks together is batch t of one process whose batch is as large.

    Args:
        batches: of all ranks together.
        rank: from 0.
        size: B.
    """

    def __init__(self, batches: Collection[list[Key]], rank: int, size: int) -> None:
        self._batches = batches
        self._rows = slice(rank * size, (rank + 1) * size)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return (keys[self._rows] for keys in self._batches)

    def __contains__(self, keys: object) -> bool:
        return any(keys == own for own in self)


def balanced_counts(frames: Frames, seed: int) -> Ints:
    """Return how often each frame occurs in an epoch under class-balanced sampling (CBGS).

    Every class gets the same number of draws, with replacement, from the frames that show it: the
    mean over classes of how many frames show one. Drawn once a run. A box counts if it holds a
    LiDAR or radar point. As in mmdet3d's and det3d's nuScenes configurations (Zhu et al. 2019,
    arXiv:1908.09492); a class that no frame shows is left out of the mean, where those divide by
    zero. A frame that shows no class never occurs.

    Args:
        frames: the selection, with labels.
        seed: of the run.

    Returns:
        int64 (n,).

    Raises:
        DataError: no frame shows an object of any class.
    """
    shown_Kn = _classes_shown(frames).T
    members = [np.flatnonzero(shown_n) for shown_n in shown_Kn]
    present = [number for number, frames_of_class in enumerate(members) if len(frames_of_class)]
    if not present:
        raise DataError(
            f"none of the {len(frames)} selected frames shows an object of the ten classes, so "
            "there is nothing to balance. Check dataset.split, or use loader.sampler=uniform."
        )
    share = sum(len(members[number]) for number in present) // len(present)
    counts_n = np.zeros(len(frames), np.int64)
    for number in present:
        drawn_M = stream(seed, "cbgs", CLASSES[number]).choice(members[number], share)
        counts_n += np.bincount(drawn_M, minlength=len(frames))
    return counts_n


def _classes_shown(frames: Frames) -> npt.NDArray[np.bool_]:
    """Return bool (n, K): which classes have a box with a point in which frame."""
    index = frames.index
    shown_nK = np.zeros((len(frames), len(CLASSES)), np.bool_)
    for start in range(0, len(frames), _PIECE):
        rows_n = frames.rows[start : start + _PIECE]
        first_n = index["frame_box"][rows_n]
        sizes_n = index["frame_box"][rows_n + 1] - first_n
        frame_N = np.repeat(np.arange(start, start + len(rows_n)), sizes_n)
        box_N = np.arange(len(frame_N)) + np.repeat(first_n - np.cumsum(sizes_n) + sizes_n, sizes_n)
        seen_N = index.seen(box_N)
        shown_nK[frame_N[seen_N], index["box_class"][box_N[seen_N]]] = True
    return shown_nK


class Epochs:
    """Shuffled epochs over frames, each drawn a fixed number of times an epoch.

    Without shards an epoch is one random permutation. With shards it is the shards in random order,
    cut into windows of `window` of them, the draws of a window shuffled among themselves: what is
    read of a shard is read within one window, so small caches in front of a slow store hit, and the
    order is only as random as the window is wide.

    Args:
        counts: int64 (n,), draws of each frame an epoch.
        seed: of the shuffles.
        shards: int64 (n,), where each frame is stored; None shuffles over everything.
        window: shards a window.
    """

    def __init__(
        self, counts: Ints, seed: int, shards: Ints | None = None, window: int = 1
    ) -> None:
        self._seed = seed
        self._window = window
        self._copies = max(1, int(counts.max(initial=0)))
        self._frames = None if shards is None else np.argsort(shards, kind="stable")
        ordered_n = counts if self._frames is None else counts[self._frames]
        self._ends = np.cumsum(ordered_n)
        self._starts = self._ends - ordered_n
        self._borders = None if shards is None else self._shard_borders(shards)
        self._permutation = functools.lru_cache(maxsize=2)(self._shuffle)
        self._plan = functools.lru_cache(maxsize=2)(self._cut)
        self._place = functools.lru_cache(maxsize=2)(self._shuffle_window)

    def __len__(self) -> int:
        """Return the draws of an epoch."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def key(self, place: int) -> Key:
        """Return (frame, view) of a draw, epochs laid end to end; repeats differ in their view."""
        epoch, place = divmod(place, len(self))
        draw = self._draw(epoch, place)
        position = int(np.searchsorted(self._ends, draw, side="right"))
        frame = position if self._frames is None else int(self._frames[position])
        return Key(frame, epoch * self._copies + draw - int(self._starts[position]))

    def _draw(self, epoch: int, place: int) -> int:
        if self._borders is None:
            return int(self._permutation(epoch)[place])
        _, ends = self._plan(epoch)
        window = int(np.searchsorted(ends, place, side="right"))
        first = int(ends[window - 1]) if window else 0
        return int(self._place(epoch, window)[place - first])

    def _shuffle(self, epoch: int) -> Ints:
        return stream(self._seed, "order", epoch).permutation(len(self))

    def _cut(self, epoch: int) -> tuple[Ints, Ints]:
        """Return the shards of an epoch in order, and the draws up to the end of each window."""
        assert self._borders is not None
        order_S = stream(self._seed, "order", epoch).permutation(len(self._borders) - 1)
        sizes_S = np.diff(self._borders)[order_S]
        windows = np.arange(0, len(sizes_S), self._window)
        return order_S, np.add.reduceat(sizes_S, windows).cumsum()

    def _shuffle_window(self, epoch: int, window: int) -> Ints:
        assert self._borders is not None
        order_S, _ = self._plan(epoch)
        chosen = order_S[window * self._window : (window + 1) * self._window]
        draws = [np.arange(self._borders[shard], self._borders[shard + 1]) for shard in chosen]
        return stream(self._seed, "order", epoch, window).permutation(np.concatenate(draws))

    def _shard_borders(self, shards: Ints) -> Ints:
        """Return the draw at which each shard starts, and the number of draws; int64 (S + 1,)."""
        lasts_S = np.flatnonzero(np.diff(shards[self._frames], append=-1))
        return np.concatenate([[0], self._ends[lasts_S]])


class StepSampler(Collection[list[Key]]):
    """The keys of each training step: epochs laid end to end, cut into batches.

    Batch t covers draws t*B .. t*B+B-1, so no frame is dropped where an epoch ends inside a batch.

    Args:
        epochs: the draws.
        batch_size: B.
        start_step: first step to yield (a resumed run).
        max_steps: the step after the last.
    """

    def __init__(
        self, epochs: Epochs, batch_size: int, start_step: int = 0, max_steps: int = 1
    ) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.start_step = start_step
        self.max_steps = max_steps

    def __len__(self) -> int:
        return max(0, self.max_steps - self.start_step)

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start_step, self.max_steps):
            yield self.batch(step)

    def __contains__(self, keys: object) -> bool:
        return any(keys == own for own in self)

    def batch(self, step: int) -> list[Key]:
        """Return the keys of one step."""
        first = step * self.batch_size
        return [self.epochs.key(place) for place in range(first, first + self.batch_size)]

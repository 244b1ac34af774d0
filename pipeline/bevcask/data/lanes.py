"""The order for a detector that remembers: lanes side by side, each walking scene after scene.

One batch holds one frame of each lane, so that time runs along the batches and never within one.
"""

import functools
from collections import deque
from collections.abc import Collection, Container, Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from bevcask.data.augment import stream
from bevcask.data.samples import Key

Ints = npt.NDArray[np.int64]
_FIRST_WALK = 64  # steps of a lane that are laid out at once, doubled as a run goes on


def in_lanes(scenes: Sequence[range], width: int, anew: Container[int] = ()) -> Iterator[list[Key]]:
    """Yield every frame once: one frame of each of up to `width` scenes a batch.

    Args:
        scenes: the frames of each scene, in order of time.
        width: scenes side by side; a scene that ends makes room for the next one.
        anew: frames that memory begins anew at, beside the first of each scene.
    """
    waiting = iter(scene for scene in scenes if scene)
    lanes: list[deque[Key]] = []
    while True:
        lanes = [lane for lane in lanes if lane]
        lanes += [deque(_walk(scene, anew)) for scene in islice(waiting, width - len(lanes))]
        if not lanes:
            return
        yield [lane.popleft() for lane in lanes]


def _walk(scene: range, anew: Container[int]) -> Iterator[Key]:
    for frame in scene:
        begins = frame == scene.start or frame in anew
        yield Key(frame, after=-1 if begins else frame - 1)


class SceneSteps(Collection[list[Key]]):
    """The keys of each training step of a detector that remembers; pure in (seed, step).

    Lane b walks scenes b, b + B, b + 2 B, ... of random permutations of all scenes laid end to end.
    The epoch is the view of all its frames.

    Args:
        scenes: the frames of each scene, in order of time.
        seed: of the permutations.
        width: B, lanes and samples of a batch.
        parts: into how many scenes each is cut, see `cut` (StreamPETR trains on halves).
        start_step: first step to yield (a resumed run).
        max_steps: the step after the last.
    """

    def __init__(
        self,
        scenes: Sequence[range],
        seed: int,
        width: int,
        parts: int = 1,
        start_step: int = 0,
        max_steps: int = 1,
    ) -> None:
        self._scenes = [part for scene in scenes for part in cut(scene, parts)]
        self._seed = seed
        self._width = width
        self._start_step = start_step
        self._max_steps = max_steps
        self._laid_out = functools.lru_cache(maxsize=2 * width)(self._lay_out)

    def __len__(self) -> int:
        return max(0, self._max_steps - self._start_step)

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self._start_step, self._max_steps):
            yield self.batch(step)

    def __contains__(self, keys: object) -> bool:
        return any(keys == own for own in self)

    def batch(self, step: int) -> list[Key]:
        """Return the keys of one step, lane by lane."""
        return [self._key(lane, step) for lane in range(self._width)]

    def _key(self, lane: int, step: int) -> Key:
        starts, places = self._laid_out(lane, max(_FIRST_WALK, 1 << step.bit_length()))
        number = int(np.searchsorted(starts, step, side="right")) - 1
        epoch, scene = divmod(int(places[number]), len(self._scenes))
        frames = self._scenes[int(self._permutation(epoch)[scene])]
        frame = frames.start + step - int(starts[number])
        return Key(frame, epoch, frame - 1 if frame > frames.start else -1)

    def _lay_out(self, lane: int, upto: int) -> tuple[Ints, Ints]:
        """Return the steps at which a lane's scenes begin, and their places in the permutations."""
        starts, places, step, place = [], [], 0, lane
        while step <= upto:
            epoch, scene = divmod(place, len(self._scenes))
            starts.append(step)
            places.append(place)
            step += len(self._scenes[int(self._permutation(epoch)[scene])])
            place += self._width
        return np.array(starts), np.array(places)

    def _permutation(self, epoch: int) -> Ints:
        return stream(self._seed, "scenes", epoch).permutation(len(self._scenes))


def cut(scene: range, parts: int) -> list[range]:
    """Return a scene in so many parts of one length, the last ones shorter or not there.

    >>> cut(range(5), 2)
    [range(0, 3), range(3, 5)]
    """
    length = max(1, -(-len(scene) // parts))
    return [scene[start : start + length] for start in range(0, len(scene), length)]

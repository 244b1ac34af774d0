"""Which frames go through the teacher together, in which order."""

from dataclasses import dataclass

from bevcask.cache.parts import scene_prefix
from bevcask.cache.repair import Repairer
from bevcask.cache.writer import Writer
from bevcask.data.index.frames import Frames
from bevcask.data.loader import Key


@dataclass(frozen=True)
class Step:
    """One forward: a batch never crosses a shard, so a resumed run repeats the same batches.

    Attributes:
        shard: where its frames lie.
        keys: what the loader reads.
        completes_shard: it is the shard's last.
        view: which view of them the teacher sees.
        kept: False where the teacher must only see the frames, to remember them.
    """

    shard: int
    keys: list[Key]
    completes_shard: bool
    view: int = 0
    kept: bool = True


def steps_of(
    writer: Writer | Repairer, frames: Frames, batch_size: int, whole_scenes: bool = False
) -> list[Step]:
    """Return the forwards that fill every missing shard, in row order.

    Args:
        writer: knows what is missing.
        frames: the selection.
        batch_size: frames a forward, at most.
        whole_scenes: begin with the first frame of each scene, for a teacher that remembers.
    """
    position = {token: index for index, token in enumerate(frames.tokens)}
    missing = writer.missing()
    kept = set(missing)
    views = sorted({spec.view for spec in writer.specs})
    steps = []
    for shard in scene_prefix(writer.cache.layout, missing) if whole_scenes else missing:
        for view in views:
            keys: list[Key] = [(position[token], view) for token in writer.tokens(shard)]
            for first in range(0, len(keys), batch_size):
                last = first + batch_size >= len(keys) and view == views[-1]
                part = keys[first : first + batch_size]
                steps.append(Step(shard, part, last, view, shard in kept))
    return steps

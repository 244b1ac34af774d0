"""Which frames go through the teacher together, in which order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bevcask.cache.repair import Repairer
from bevcask.cache.writer import Writer
from bevcask.data.index.frames import Frames
from bevcask.data.lanes import cut, in_lanes
from bevcask.data.samples import Key


@dataclass(frozen=True)
class Step:
    """One forward.

    Attributes:
        keys: what the loader reads.
        shards: where each frame lies; None where the teacher must only see it, to remember it.
        completes: the shards whose last frame this is, in their last view.
        view: which view of them the teacher sees.
    """

    keys: list[Key]
    shards: list[int | None]
    completes: list[int]
    view: int = 0


def steps_of(
    writer: Writer | Repairer, frames: Frames, batch_size: int, parts: int = 1
) -> list[Step]:
    """Return the forwards that fill every missing shard.

    Args:
        writer: knows what is missing. If a target depends on memory, the teacher sees each scene
            from its first frame, scenes side by side, and other views of a frame right after it.
            Else in row order, and no batch crosses a shard, so that a resumed run repeats the same
            batches.
        frames: the selection.
        batch_size: frames a forward, at most.
        parts: of each scene of the dataset, at which memory begins anew.
    """
    position = {token: index for index, token in enumerate(frames.tokens)}
    places = {
        shard: [position[token] for token in writer.tokens(shard)] for shard in writer.missing()
    }
    views = sorted({spec.view for spec in writer.specs})
    if any(spec.tap.in_order for spec in writer.specs):
        return list(_through_scenes(places, frames, batch_size, views[1:], parts))
    return [
        step
        for shard, rows in places.items()
        for view in views
        for step in _of_shard(shard, rows, view, batch_size, view == views[-1])
    ]


def _of_shard(
    shard: int, rows: Sequence[int], view: int, batch_size: int, last_view: bool
) -> Iterator[Step]:
    for first in range(0, len(rows), batch_size):
        keys = [Key(row, view) for row in rows[first : first + batch_size]]
        completes = last_view and first + batch_size >= len(rows)
        yield Step(keys, [shard] * len(keys), [shard] if completes else [], view)


def _through_scenes(
    places: dict[int, list[int]], frames: Frames, width: int, views: Sequence[int], parts: int
) -> Iterator[Step]:
    shard_of = {row: shard for shard, rows in places.items() for row in rows}
    last_of = {max(rows): shard for shard, rows in places.items()}
    anew, scenes = set(), []
    for scene in frames.scene_ranges:
        begins = _begins(frames, scene, parts)
        anew |= begins
        if wanted := [row for row in scene if row in shard_of]:
            first = max(begin for begin in begins if begin <= min(wanted))
            scenes.append(range(first, max(wanted) + 1))
    for keys in in_lanes(scenes, width, anew):
        shards = [shard_of.get(key.frame) for key in keys]
        completes = [last_of[key.frame] for key in keys if key.frame in last_of]
        yield Step(keys, shards, [] if views else completes)
        written = [key.frame for key in keys if key.frame in shard_of]
        for view in views if written else ():
            again, own = [Key(row, view) for row in written], [shard_of[row] for row in written]
            yield Step(again, list(own), completes if view == views[-1] else [], view)


def _begins(frames: Frames, scene: range, parts: int) -> set[int]:
    """Return the first selected frame of each part of a scene.

    Parts are those of the scene in the dataset, however much of it is selected.
    """
    rows = frames.rows[scene.start : scene.stop]
    starts = [part.start for part in cut(frames.whole_scene(scene), parts)]
    found = {scene.start + int(place) for place in np.searchsorted(rows, starts)}
    return (found | {scene.start}) & set(scene)

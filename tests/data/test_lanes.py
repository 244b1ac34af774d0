"""Lanes show every frame once and in order; scene steps are pure in (seed, step)."""

from collections import Counter
from itertools import pairwise

import pytest

from bevcask.data.lanes import SceneSteps, cut, in_lanes
from bevcask.data.sampling import OfRank

SCENES = [range(4), range(4, 9), range(9, 11), range(11, 15)]
START = {frame: scene.start for scene in SCENES for frame in scene}


@pytest.mark.parametrize("width", [1, 2, 3, 4, 9])
def test_every_frame_comes_once_after_the_one_before(width: int) -> None:
    batches = list(in_lanes(SCENES, width))
    shown: dict[int, int] = {}
    for number, batch in enumerate(batches):
        assert 0 < len(batch) <= width
        for key in batch:
            assert key.frame not in shown
            shown[key.frame] = number
            assert key.after == (key.frame - 1 if key.frame > START[key.frame] else -1)
            assert key.after == -1 or shown[key.after] == number - 1
    assert sorted(shown) == list(range(15))
    sizes = [len(batch) for batch in batches]
    assert sizes == sorted(sizes, reverse=True)  # a lane stays empty only where no scene waits


def test_a_scene_that_ends_makes_room_for_the_next_at_once() -> None:
    batches = [
        [key.frame for key in batch] for batch in in_lanes([range(1), range(1, 4), range(4, 6)], 2)
    ]
    assert batches == [[0, 1], [2, 4], [3, 5]]


def test_scenes_without_frames_are_passed_over() -> None:
    assert [[key.frame for key in b] for b in in_lanes([range(0), range(2), range(2, 2)], 2)] == [
        [0],
        [1],
    ]
    assert list(in_lanes([], 2)) == []


@pytest.mark.parametrize(("width", "parts"), [(1, 1), (2, 1), (3, 1), (2, 2), (9, 1)])
def test_each_lane_walks_whole_scenes(width: int, parts: int) -> None:
    steps = SceneSteps(SCENES, 7, width, parts, max_steps=400)
    before: list[int | None] = [None] * width
    draws: Counter[int] = Counter()
    for batch in steps:
        assert len(batch) == width
        for lane, key in enumerate(batch):
            assert key.after in (-1, before[lane])
            if key.after >= 0:
                assert key.frame == key.after + 1
            before[lane] = key.frame
            draws[key.frame] += 1
    assert set(draws) == set(range(15))
    assert max(draws.values()) - min(draws.values()) <= 2 * width


def test_halves_of_scenes_begin_anew() -> None:
    begins = {
        key.frame
        for batch in SceneSteps(SCENES, 0, 1, 2, max_steps=200)
        for key in batch
        if key.after < 0
    }
    assert begins == {0, 2, 4, 7, 9, 10, 11, 13}  # the first half of five is the longer one


def test_memory_begins_anew_where_it_is_told() -> None:
    """In its lane: the frames of a scene stay one behind the other."""
    plain, anew = (list(in_lanes(SCENES, 2, begins)) for begins in ((), {7, 9, 13}))
    assert [[key.frame for key in keys] for keys in anew] == [
        [key.frame for key in keys] for keys in plain
    ]
    assert {key.frame for keys in anew for key in keys if key.after < 0} == {0, 4, 7, 9, 11, 13}
    assert {key.frame for keys in plain for key in keys if key.after < 0} == {0, 4, 9, 11}


def test_parts_of_one_length() -> None:
    assert cut(range(10, 51), 2) == [range(10, 31), range(31, 51)]
    assert cut(range(4), 3) == [range(2), range(2, 4)]
    assert cut(range(2), 5) == [range(1), range(1, 2)]


def test_a_step_depends_on_seed_and_number_alone() -> None:
    whole = list(SceneSteps(SCENES, 7, 2, max_steps=200))
    later = SceneSteps(SCENES, 7, 2, start_step=130, max_steps=200)
    assert list(later) == whole[130:]
    assert len(later) == 70
    assert list(SceneSteps(SCENES, 8, 2, max_steps=200)) != whole
    alone = SceneSteps(SCENES, 7, 2)
    assert [alone.batch(step) for step in (199, 3, 64, 63, 65)] == [
        whole[s] for s in (199, 3, 64, 63, 65)
    ]


def test_an_epoch_shows_every_frame_once_in_its_view() -> None:
    keys = [key for batch in SceneSteps(SCENES, 3, 1, max_steps=45) for key in batch]
    for epoch in range(3):
        assert sorted(key.frame for key in keys if key.view == epoch) == list(range(15))


def test_a_rank_walks_its_own_lanes() -> None:
    steps = SceneSteps(SCENES, seed=0, width=4, max_steps=12)
    first, second = (OfRank(steps, rank, 2) for rank in (0, 1))
    assert [a + b for a, b in zip(first, second, strict=True)] == list(steps)
    for before, now in pairwise(first):
        for row, key in enumerate(now):
            assert key.after in (-1, before[row].frame)

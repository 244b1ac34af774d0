from collections import Counter
from collections.abc import Callable
from itertools import chain, pairwise

import numpy as np
import pytest

from bevcask.data import sampling
from bevcask.data.index.frames import Frames
from bevcask.data.sampling import Epochs, OfRank, StepSampler, balanced_counts
from bevcask.errors import DataError
from bevcask.geometry import CLASSES

SHARDS = np.repeat(np.arange(9), [3, 1, 4, 4, 2, 4, 4, 1, 3])


def once(num_frames: int, seed: int = 3) -> Epochs:
    return Epochs(np.ones(num_frames, np.int64), seed)


def drawn(epochs: Epochs, epoch: int) -> list[tuple[int, int]]:
    start = epoch * len(epochs)
    return [epochs.key(place) for place in range(start, start + len(epochs))]


def test_batches_are_shuffled_epochs_laid_end_to_end() -> None:
    sampler = StepSampler(once(10), batch_size=4, max_steps=10)
    keys = [key for batch in sampler for key in batch]
    assert len(sampler) == 10
    assert all(len(batch) == 4 for batch in sampler)
    assert [key.view for key in keys] == [draw // 10 for draw in range(40)]
    epochs = [[key.frame for key in keys if key.view == epoch] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_larger_than_the_selection_wraps() -> None:
    (batch,) = StepSampler(once(2), batch_size=5, max_steps=1)
    assert [key.view for key in batch] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("shards", [None, SHARDS], ids=["full", "window"])
@pytest.mark.parametrize("most", [1, 5], ids=["uniform", "repeated"])
def test_a_batch_depends_on_seed_and_step_alone(shards: np.ndarray | None, most: int) -> None:
    """A resumed run, in a fresh process, goes on with the very batches it would have had."""
    counts = 1 + np.arange(len(SHARDS)) % most

    def sampler(seed: int, start: int = 0) -> StepSampler:
        return StepSampler(Epochs(counts, seed, shards, window=2), 3, start, 60)

    whole = list(sampler(1))
    for start in (1, 9, 26, 59):
        assert list(sampler(1, start)) == whole[start:]
    backwards = sampler(1)
    assert [backwards.batch(step) for step in reversed(range(60))] == whole[::-1]
    assert list(sampler(2)) != whole


@pytest.mark.parametrize("shards", [None, SHARDS, SHARDS[::-1]], ids=["full", "window", "mixed"])
def test_every_frame_occurs_as_often_as_it_counts_each_time_in_another_view(
    shards: np.ndarray | None,
) -> None:
    counts = np.arange(len(SHARDS)) % 4
    epochs = Epochs(counts, 0, shards, window=2)
    keys = [key for epoch in range(3) for key in drawn(epochs, epoch)]
    assert len(epochs) == counts.sum()
    assert len(set(keys)) == len(keys)
    for epoch in range(3):
        found = Counter(key.frame for key in drawn(epochs, epoch))
        assert [found[frame] for frame in range(len(counts))] == counts.tolist()


@pytest.mark.parametrize("window", [1, 2, 4, 9, 100])
def test_a_window_is_drawn_to_its_end_before_the_next_begins(window: int) -> None:
    counts = 1 + np.arange(len(SHARDS)) % 3
    epochs = Epochs(counts, 5, SHARDS, window)
    orders = []
    for epoch in range(3):
        shards = [int(SHARDS[key.frame]) for key in drawn(epochs, epoch)]
        orders.append(list(dict.fromkeys(shards)))
        window_of = {shard: place // window for place, shard in enumerate(orders[-1])}
        numbers = [window_of[shard] for shard in shards]
        assert numbers == sorted(numbers)
    assert orders[0] != orders[1] != orders[2]


def test_inside_a_window_shards_are_mixed() -> None:
    epochs = Epochs(np.ones(len(SHARDS), np.int64), 0, SHARDS, window=9)
    shards = [SHARDS[key.frame] for key in drawn(epochs, 0)]
    changes = sum(a != b for a, b in pairwise(shards))
    assert changes > len(shards) // 2


def test_every_class_gets_its_share_of_the_draws(tiny_frames: Frames) -> None:
    """Counted by a loop: equal draws a class, from the frames that show it."""
    showing: dict[str, list[int]] = {name: [] for name in CLASSES}
    for number, token in enumerate(tiny_frames.tokens):
        _, classes, _ = tiny_frames.labels(token)
        for name in {CLASSES[k] for k in classes[tiny_frames.seen(token)]}:
            showing[name].append(number)
    present = [name for name in CLASSES if showing[name]]
    share = int(sum(map(len, showing.values())) / len(present))
    counts = balanced_counts(tiny_frames, seed=4)
    assert counts.sum() == share * len(present)
    rarest = min(present, key=lambda name: len(showing[name]))
    assert counts[showing[rarest]].sum() >= share
    np.testing.assert_array_equal(counts, balanced_counts(tiny_frames, seed=4))
    assert counts.tolist() != balanced_counts(tiny_frames, seed=5).tolist()


class _Index(dict[str, np.ndarray]):
    """The columns of a frame index that class balance reads."""

    def seen(self, boxes: np.ndarray) -> np.ndarray:
        return self["box_num_lidar_points"][boxes] > 0


def _frames(shown: list[list[int]], points: int = 1) -> Frames:
    frames = Frames.__new__(Frames)
    boxes = [number for frame in shown for number in frame]
    frames.index = _Index(  # type: ignore[assignment]
        frame_box=np.cumsum([0, *map(len, shown)]),
        box_class=np.array(boxes, np.int64),
        box_num_lidar_points=np.full(len(boxes), points),
        box_num_radar_points=np.zeros(len(boxes), np.int64),
    )
    frames.rows = np.arange(len(shown))
    return frames


def test_a_rare_class_is_drawn_as_often_as_a_common_one() -> None:
    """1000 frames with cars, 10 of them with a bicycle: half of all draws show the bicycle."""
    frames = _frames([[0, 0, 7] if i < 10 else [0] for i in range(1000)])
    counts = balanced_counts(frames, seed=0)
    assert counts.sum() == 2 * 505
    assert 505 <= counts[:10].sum() <= 505 + 20
    assert counts[:10].min() > 20


def test_frames_and_boxes_that_show_nothing_are_not_drawn() -> None:
    counts = balanced_counts(_frames([[0], [], [0, 3], []]), seed=0)
    assert counts[[1, 3]].tolist() == [0, 0]
    with pytest.raises(DataError, match=r"loader\.sampler=uniform"):
        balanced_counts(_frames([[0], [3]], points=0), seed=0)


def test_counting_in_pieces_changes_nothing(
    tiny_frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = balanced_counts(tiny_frames, seed=0)
    monkeypatch.setattr(sampling, "_PIECE", 4)
    np.testing.assert_array_equal(balanced_counts(tiny_frames, seed=0), whole)


def test_only_rows_of_the_selection_count() -> None:
    frames = _frames([[0], [1], [2], [3]])
    frames.rows = np.array([3, 1])
    assert balanced_counts(frames, seed=0).tolist() == [1, 1]


Select = Callable[..., Frames]


@pytest.mark.nuscenes
def test_real_keyframes_are_balanced(nuscenes_root: object, select: Select) -> None:
    frames = select(nuscenes_root, "v1.0-mini")
    counts = balanced_counts(frames, seed=0)
    assert len(counts) == 24
    assert counts.sum() >= 24


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_a_batch_and_no_sample_comes_twice_in_an_epoch(ranks: int) -> None:
    steps = StepSampler(once(16), batch_size=4, start_step=2, max_steps=6)
    parts = [OfRank(steps, rank, 4 // ranks) for rank in range(ranks)]
    assert {len(part) for part in parts} == {4}
    joined = [list(chain(*rows)) for rows in zip(*parts, strict=True)]
    assert joined == list(steps)
    last = [key for batch in StepSampler(once(16), 4, 4, 8) for key in batch]
    assert sorted(key.frame for key in last) == list(range(16))

"""The order a student is trained in: what it says of itself, what is asked for or refused."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from bevcask.compose import compose
from bevcask.data.index.frames import Frames
from bevcask.data.samples import Key, SampleReader, collate
from bevcask.detectors.base import Inputs
from bevcask.detectors.memory import Stream
from bevcask.errors import ConfigError
from bevcask.geometry import ego_motion
from bevcask.training.order import Order, order_of, training_order
from bevcask.training.sources import CachedTargets
from bevcask.training.teaching import Teaching
from bevcask.verbs import DistillConfig

FORGETS, WINDOW, STREAM = (
    Inputs(history=1),
    Inputs(history=2, memory=True),
    Inputs(memory=True),
)


@pytest.fixture
def order(tiny_world: Path) -> Any:
    def of(inputs: Inputs, *words: str) -> Order:
        data = ["dataset=synthetic", f"dataset.root={tiny_world}", "dataset.split=all"]
        config = compose(DistillConfig, [*data, "loader.batch_size=2", "method=none", *words])
        frames = Frames.select(config.dataset)
        return training_order(config, Teaching(frames, {}, CachedTargets()), inputs)

    return of


def test_a_student_says_its_order_unless_it_is_asked_for(order: Any) -> None:
    assert order(FORGETS).memory == "none"
    assert order(WINDOW).memory == "window"
    assert order(STREAM).memory == "scene"
    asked = order(WINDOW, "loader.order=scenes")
    assert (asked.memory, asked.inputs.history, asked.draws) == ("scene", 0, 6)
    assert order(WINDOW).inputs.history == 2
    config = DistillConfig().loader
    assert [order_of(config, given) for given in (FORGETS, STREAM)] == ["frames", "scenes"]


def test_scenes_are_walked_by_lanes_and_cut_where_asked(order: Any) -> None:
    keys = list(order(STREAM).batches(1, 3))
    assert keys == list(order(STREAM).batches(0, 3))[1:]
    assert all(key.after == key.frame - 1 for batch in keys for key in batch)
    halves = [
        key for batch in order(STREAM, "loader.scene_parts=2").batches(0, 20) for key in batch
    ]
    assert {key.frame for key in halves if key.after < 0} == {0, 2, 3, 5}


@pytest.mark.parametrize(
    ("inputs", "words", "said"),
    [
        (FORGETS, ["loader.order=scenes"], "this student does not remember"),
        (STREAM, ["loader.sampler=cbgs"], "loader.sampler=cbgs draws frames one by one"),
        (STREAM, ["loader.shuffle=window"], "loader.shuffle=window draws frames one by one"),
        (WINDOW, ["loader.scene_parts=2"], "loader.scene_parts=2 cuts the scenes"),
        (FORGETS, ["loader.shuffle=window"], "this run reads none"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(
    order: Any, inputs: Inputs, words: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        order(inputs, *words)


def test_augmentation_may_differ_from_frame_to_frame(order: Any, tiny_world: Path) -> None:
    """A standing point is where the memory's pose and augmentation say it was."""
    data = ["dataset=synthetic", f"dataset.root={tiny_world}", "dataset.split=all"]
    words = ["augment.bev_rotation=0.4", "augment.bev_flip_x=true", "augment.bev_scale=[0.9,1.1]"]
    config = compose(DistillConfig, [*data, *words, "method=none"])
    frames = Frames.select(config.dataset)
    reader = SampleReader(frames, STREAM, config.augment, seed=3)
    keys = [batch[0] for batch in order(STREAM).batches(0, 2)]
    then, now = (collate([reader.at(key, frames)]) for key in keys)
    assert isinstance(keys[1], Key)
    assert now.after == then.tokens
    assert not torch.equal(then.bev_aug_B44, now.bev_aug_B44)
    place = then.lidar_to_global_B44[0] @ torch.tensor([3.0, 4.0, 1.0, 1.0]).double()

    def seen(batch: Any) -> torch.Tensor:
        canonical = torch.linalg.inv(batch.lidar_to_global_B44[0]) @ place
        return batch.bev_aug_B44[0].double() @ canonical

    motion = ego_motion(
        now.bev_aug_B44[0].double().numpy(),
        now.lidar_to_global_B44[0].numpy(),
        then.lidar_to_global_B44[0].numpy(),
        then.bev_aug_B44[0].double().numpy(),
    )
    moved = torch.from_numpy(motion) @ seen(then)
    torch.testing.assert_close(moved, seen(now), atol=1e-4, rtol=0)
    assert not torch.allclose(moved, seen(then), atol=0.1)


def test_a_copy_of_a_student_has_seen_no_frames() -> None:
    stream = Stream()
    stream.load_state_dict({"memory": {"n": torch.ones(1)}, "tokens": ["a"], "on_host": []})
    assert deepcopy(stream).state_dict() == {"memory": {}, "tokens": [], "on_host": []}

"""A BEVFormer teaches a smaller one: what is cached of windows is what a teacher in the loop says.

Colours and stripes are replayed, at twice the student's image size.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevcask.cache import open_cache
from bevcask.compose import compose, words_for
from bevcask.data.index.frames import Frames
from bevcask.data.join import JoinedDataset, TrainBatch
from bevcask.data.samples import Key, Replay, SampleReader
from bevcask.detectors.base import Batch, Inputs
from bevcask.detectors.weights import read_weights
from bevcask.errors import TargetMismatchError
from bevcask.methods.base import Target
from bevcask.stages import plan, student_distill, teacher_extract
from bevcask.training.sources import OnlineTargets
from bevcask.verbs import DistillConfig, ExtractConfig, PlanConfig
from training.test_cached_equals_online import gap, gradients

SHARED = (
    "backbone.width=4",
    "channels=16",
    "heads=2",
    "feed_forward=16",
    "encoder.layers=1",
    "decoder_layers=1",
    "queries=8",
)
SMALL = [
    "dataset=synthetic",
    "dataset.split=synthetic_train",
    "method=focaldistiller",
    "seed=3",
    "device=cpu",
    "loader.num_workers=0",
    "loader.batch_size=1",
    "trainer=tiny",
    "store.shard_rows=2",
    "store.codec=float32",
    "store.views=2",
    "augment.photometric=true",
    "augment.grid_mask=0.7",
    "augment.image_size_HW=[28,50]",
    "teacher=bevformer_tiny",
    "teacher.memory=window",
    "student=bevformer_tiny_student",
    *(f"{role}.detector.{key}" for role in ("teacher", "student") for key in SHARED),
    "teacher.detector.image_size_HW=[56,100]",
    "teacher.detector.bev_size_YX=[8,8]",
    "student.detector.image_size_HW=[28,50]",
    "student.detector.bev_size_YX=[4,4]",
]


def configure(world: Path, *more: str, verb: type[Any] = DistillConfig) -> Any:
    return compose(verb, words_for(verb, [*SMALL, f"dataset.root={world}", *more]))


@pytest.fixture(scope="module")
def cache(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("windows") / "cache.zarr")
    teacher_extract.run(configure(tiny_world, f"cache={url}", verb=ExtractConfig))
    return url


def test_cached_equals_online(cache: str, tiny_world: Path) -> None:
    cached = gradients(configure(tiny_world, f"cache={cache}"))
    exact = gradients(configure(tiny_world, "targets=online", "online.input=canonical"))
    terms = {name for name in cached[0] if name.startswith("focaldistiller/")}
    assert len(terms) == 5
    assert gap(cached[0], exact[0]) < 1e-6
    assert gap(cached[1], exact[1]) < 1e-6


def flipped(batch: Batch) -> Batch:
    assert batch.images_BVCHW is not None
    return replace(batch, images_BVCHW=batch.images_BVCHW.flip(-1))


def other_colours(batch: Batch) -> Batch:
    assert batch.images_BVCHW is not None
    return replace(batch, images_BVCHW=batch.images_BVCHW.flip(2))


def a_frame_late(batch: Batch) -> Batch:
    return replace(batch, images_BVCHW=batch.history[-1].images_BVCHW)


@pytest.mark.parametrize("wrong", [flipped, other_colours, a_frame_late])
def test_a_teacher_that_saw_something_else_is_noticed(
    wrong: Callable[[Batch], Batch], tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What must not pass for equal is apart by more than ten times what is called equal."""
    online = configure(tiny_world, "targets=online", "online.input=canonical")
    step = 1  # the second keyframe of the scene: its history is another frame
    exact = gradients(online, step=step)
    say = OnlineTargets.__call__

    def seen(source: OnlineTargets, batch: TrainBatch) -> dict[str, Target]:
        (shown,) = batch.teacher_batches.values()
        assert shown.history[-1].tokens != shown.tokens
        return say(source, replace(batch, teacher_batches={"": wrong(shown)}))

    monkeypatch.setattr(OnlineTargets, "__call__", seen)
    changed = gradients(online, step=step)
    assert gap(changed[0], exact[0]) > 1e-5
    assert gap(changed[1], exact[1]) > 1e-5


@pytest.mark.slow
def test_twenty_steps_from_a_cache_end_where_twenty_online_do(
    cache: str, tiny_world: Path, tmp_path: Path
) -> None:
    steps = ("trainer.max_steps=20", "trainer.warmup_steps=1")
    weights = []
    for name, words in {
        "cached": (f"cache={cache}",),
        "online": ("targets=online", "online.input=canonical"),
    }.items():
        run = tmp_path / name
        student_distill.run(configure(tiny_world, *words, *steps, f"run={run}"))
        trained = read_weights(run / "student.safetensors")
        weights.append({n: own for n, own in trained.items() if own.is_floating_point()})
    assert gap(*weights) < 1e-5


def test_views_differ_by_their_colours_alone(cache: str) -> None:
    opened = open_cache(cache)
    read = opened.read(opened.frames.tokens[0])
    one, other = (read[f"image.level0.view{view}"].values for view in (1, 2))
    assert not np.allclose(one, other, atol=1e-3)
    matrices = [read[f"image_transform.view{view}"].values for view in (1, 2)]
    np.testing.assert_array_equal(*matrices)
    assert opened.fingerprint["views"]["augment"]["photometric"] is True
    assert opened.fingerprint["views"]["augment"]["image_size_HW"] == [28, 50]


def test_probe_tries_a_ladder_of_codecs_over_the_levels(tiny_world: Path) -> None:
    asked = "store.codecs=[image.level0:int4]"
    still = ("store.views=0", "augment.photometric=false", "augment.grid_mask=0")
    words = words_for(PlanConfig, [*SMALL, f"dataset.root={tiny_world}", *still, asked, "probe=1"])
    result = plan.run(compose(PlanConfig, words))
    rows = {row["name"]: row for row in result["probe"]}
    ladder = rows["levels int6, int8, float16"]
    assert ladder["words"] == (
        "store.codecs=[image.level0:int6,image.level1:int8,image.level2:float16,"
        "image.level3:float16]"
    )
    sizes = {name: row["bytes_by_target"] for name, row in rows.items()}
    coarse = "levels int4, int6, int8"
    assert sizes[coarse]["image.level0"] < sizes[ladder["name"]]["image.level0"]
    assert sizes["store.codecs"]["image.level0"] == sizes[coarse]["image.level0"]
    assert sizes["store.codecs"]["image.level1"] == sizes["float32"]["image.level1"]
    assert ladder["gradient"] < rows["store.codecs"]["gradient"]


@pytest.mark.parametrize(
    ("size", "fits"), [((28, 50), True), ((56, 100), True), ((28, 60), False)], ids=str
)
def test_a_view_is_the_same_at_another_size_of_the_same_proportions(
    size: tuple[int, int], fits: bool, cache: str, tiny_world: Path
) -> None:
    config = configure(tiny_world)
    frames = Frames.select(config.dataset)
    augment = config.augment.model_copy(update={"image_size_HW": None})
    reader = SampleReader(frames, Inputs(image_size_HW=size), augment, 3, Replay(3, 2))
    dataset = JoinedDataset(frames, reader, cache, viewed=["image.level0"])
    samples = [dataset[Key(0)]]
    if fits:
        assert dataset.collate(samples).targets["image.level0"].values.shape[0] == 1
        return
    with pytest.raises(TargetMismatchError, match=r"augment\.image_size_HW"):
        dataset.collate(samples)

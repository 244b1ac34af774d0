"""Replayed views: a camera teacher's targets meet exactly the images they were said about."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bevcask.cache import open_cache
from bevcask.compose import compose, words_for
from bevcask.data.index.frames import Frames
from bevcask.data.join import JoinedDataset
from bevcask.data.loader import ViewSource
from bevcask.data.samples import Key, SampleReader
from bevcask.detectors.base import Inputs
from bevcask.errors import CacheIdentityError, ConfigError, PlanError, TargetMismatchError
from bevcask.extraction.steps import steps_of
from bevcask.methods import build_method
from bevcask.stages import plan as plan_stage
from bevcask.stages import student_distill, teacher_extract, verify
from bevcask.targets.align import Align
from bevcask.targets.plan import plan
from bevcask.training.order import training_order
from bevcask.training.teaching import open_teaching
from bevcask.verbs import DistillConfig, ExtractConfig, PlanConfig, VerifyConfig
from bevcask.viz.statistics import statistics
from training.test_cached_equals_online import FLIPS, gap, gradients

SMALL = [
    "dataset=synthetic",
    "dataset.split=synthetic_train",
    "dataset.limit=4",
    "method=distillbev",
    "seed=3",
    "device=cpu",
    "loader.num_workers=0",
    "loader.batch_size=2",
    "teacher=bevdepth_tiny",
    "student=bevdepth_tiny",
    "trainer=tiny",
    "store.shard_rows=2",
    *(
        f"{role}.detector.{key}"
        for role in ("teacher", "student")
        for key in ("image_size_HW=[64,96]", "image_channels=16", "depth_channels=16")
    ),
]
IMAGES = [
    "augment.resize=[-0.02,0.04]",
    "augment.crop=true",
    "augment.image_flip=true",
    "augment.image_rotation=5",
]
VIEWS = "store.views=2"
ALONE = "loader.batch_size=1"  # kernels round by what else is in a teacher's batch


def configure(world: Path, *more: str, verb: type[Any] = DistillConfig) -> Any:
    return compose(verb, words_for(verb, [*SMALL, f"dataset.root={world}", *more]))


@pytest.fixture(scope="module")
def cache(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("views") / "cache.zarr")
    teacher_extract.run(
        configure(
            tiny_world,
            f"cache={url}",
            "store.codec=float32",
            VIEWS,
            ALONE,
            *IMAGES,
            verb=ExtractConfig,
        )
    )
    return url


def test_each_view_is_a_target_of_its_own(cache: str, tiny_world: Path) -> None:
    opened = open_cache(cache)
    assert {f"bev.neck.view{v}" for v in (1, 2)} <= set(opened.specs)
    assert "bev.neck" not in opened.specs
    assert {"image_transform.view1", "image_transform.view2", "head.boxes"} <= set(opened.specs)
    assert opened.specs["bev.neck.view2"].alignment == "replay"
    assert opened.fingerprint["views"]["augment"]["image_flip"] is True
    read = opened.read(opened.frames.tokens[0])
    first, second = (read[f"bev.neck.view{v}"].values for v in (1, 2))
    assert np.abs(first - second).max() > 0
    assert not np.array_equal(
        read["image_transform.view1"].values, read["image_transform.view2"].values
    )


def test_a_cache_of_views_can_be_looked_at(cache: str) -> None:
    found = statistics(open_cache(cache))
    assert found["bev.neck.view1"]["num_channels"] == 32
    assert found["image_transform.view1"] == {}


@pytest.mark.parametrize("augment", [[], FLIPS], ids=["images", "images and flips"])
def test_cached_equals_online_on_a_replayed_view(
    augment: list[str], cache: str, tiny_world: Path
) -> None:
    words = [*IMAGES, *augment, "store.codec=float32", ALONE]
    cached = gradients(configure(tiny_world, f"cache={cache}", *words))
    online = configure(tiny_world, *words, VIEWS, "targets=online", "online.input=canonical")
    exact = gradients(online)
    assert any(name.startswith("distillbev/") for name in cached[0])
    assert gap(cached[0], exact[0]) < 1e-6
    assert gap(cached[1], exact[1]) < 1e-6


def test_a_student_is_shown_every_view_and_replays_it(cache: str, tiny_world: Path) -> None:
    config = configure(tiny_world, f"cache={cache}", *IMAGES, "trainer.max_steps=6")
    method = build_method(config.method)
    teaching = open_teaching(config, method, Frames.select(config.dataset), torch.device("cpu"))
    assert teaching.replay is not None
    order = training_order(config, teaching, Inputs(image_size_HW=(64, 96)))
    reading = student_distill.training_batches(config, teaching, order)
    opened = open_cache(cache)
    seen = set()
    for batch in reading(0):
        assert batch.batch.image_aug_BV33 is not None
        for b, token in enumerate(batch.batch.tokens):
            stored = opened.read(token)
            shown = batch.batch.image_aug_BV33[b].numpy()
            (view,) = [
                v
                for v in (1, 2)
                if np.array_equal(shown, stored[f"image_transform.view{v}"].values)
            ]
            seen.add((token, view))
            expected = stored[f"bev.neck.view{view}"].values
            assert np.array_equal(batch.targets["bev.neck"].values[b].numpy(), expected)
    assert len(seen) > 4


@pytest.mark.parametrize("views", [(1, 2, 1), (1, 2, 2, 1)], ids=str)
def test_a_batch_of_interleaved_views_gives_each_sample_its_own(
    views: tuple[int, ...], cache: str, tiny_world: Path
) -> None:
    """The second order is not its own inverse: exchanging the two would show."""
    config = configure(tiny_world, f"cache={cache}", *IMAGES)
    frames = Frames.select(config.dataset)
    teaching = open_teaching(config, build_method(config.method), frames, torch.device("cpu"))
    inputs = Inputs(image_size_HW=(64, 96))
    reader = SampleReader(frames, inputs, config.augment, config.seed, teaching.replay)
    dataset = JoinedDataset(frames, reader, cache=cache, viewed=["bev.neck"])
    samples = []
    for number, view in enumerate(views):
        drawn = (dataset[Key(number % len(frames), epoch)] for epoch in range(99))
        samples.append(next(sample for sample in drawn if sample.student.view == view))
    values = dataset.collate(samples).targets["bev.neck"].values.numpy()
    opened = open_cache(cache)
    for sample, view, given in zip(samples, views, values, strict=True):
        stored = opened.read(sample.student.token)
        assert np.array_equal(given, stored[f"bev.neck.view{view}"].values)
        assert not np.array_equal(given, stored[f"bev.neck.view{3 - view}"].values)


def test_the_teacher_agrees_with_every_view_and_with_no_other(
    cache: str, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tiny_world, f"cache={cache}", "resample=2", verb=VerifyConfig)
    found = verify.run(config)
    assert found["ok"], found["problems"]
    compared = {f"{name}.view{v}" for name in ("bev.neck", "image_transform") for v in (1, 2)}
    assert compared | {"head.boxes"} <= set(found["resample"])
    read = ViewSource.read
    monkeypatch.setattr(
        ViewSource, "read", lambda self, token, view: read(self, token, view and 3 - view)
    )
    swapped = verify.run(config)
    assert {problem["target"] for problem in swapped["problems"]} >= compared
    assert "head.boxes" not in {problem["target"] for problem in swapped["problems"]}


def test_other_ranges_are_refused_by_leaf(cache: str, tiny_world: Path) -> None:
    changed = [*IMAGES[:-1], "augment.image_rotation=4"]
    config = configure(tiny_world, f"cache={cache}", *changed)
    with pytest.raises(CacheIdentityError, match=r"views\.augment\.image_rotation"):
        gradients(config)


def test_images_made_smaller_in_another_way_are_refused(cache: str, tiny_world: Path) -> None:
    """By a student, by an extraction that goes on, and by who asks the teacher again."""
    still = (f"cache={cache}", *IMAGES[:-1], "dataset.resampling=pillow")
    said = r"preprocessing\.image: .*dataset\.resampling"
    with pytest.raises(CacheIdentityError, match=said):
        gradients(configure(tiny_world, *still))
    again = configure(tiny_world, *still, "store.codec=float32", VIEWS, ALONE, verb=ExtractConfig)
    with pytest.raises(CacheIdentityError, match=r"preprocessing\.image"):
        teacher_extract.run(again)
    named = configure(tiny_world, *still, "check=meaning", verb=VerifyConfig)
    assert "preprocessing.image" in verify.run(named)["problems"][0]["what"]
    with pytest.raises(CacheIdentityError, match=said):
        verify.run(configure(tiny_world, *still, "resample=1", verb=VerifyConfig))


def test_another_image_size_is_refused_with_both_matrices(cache: str, tiny_world: Path) -> None:
    smaller = "student.detector.image_size_HW=[64,128]"
    config = configure(tiny_world, f"cache={cache}", *IMAGES, smaller, "teacher.detector={}")
    with pytest.raises(TargetMismatchError, match=r"view \d, CAM_.*images moved by"):
        gradients(config)


def test_targets_that_the_augmentation_changes_are_named(
    tiny_world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [f"cache={tmp_path / 'clean.zarr'}", "store.codec=float32"]
    teacher_extract.run(configure(tiny_world, *words, verb=ExtractConfig))
    for more, said in (([], False), (FLIPS, False), (IMAGES, True)):
        caplog.clear()
        config = configure(tiny_world, *words, *more)
        frames = Frames.select(config.dataset)
        open_teaching(config, build_method(config.method), frames, torch.device("cpu"))
        assert ("approximate under this augmentation: bev.block1" in caplog.text) == said


def test_without_views_image_features_are_refused_and_views_are_named() -> None:
    from bevcask.config import AugmentConfig, StoreConfig
    from bevcask.targets.spec import Need, TapInfo

    tap = TapInfo("image.fpn0", "image_feature", (6, 4, 8, 8), depends_on_images=True)
    needs = [Need("image", "image.fpn0", "image_feature")]
    augment = AugmentConfig(image_flip=True)
    with pytest.raises(PlanError, match=r"store\.views=K"):
        plan(needs, {tap.name: tap}, 1, StoreConfig(), augment)
    chosen = plan(needs, {tap.name: tap}, 1, StoreConfig(views=2), augment)
    assert [spec.key for spec in chosen.specs] == [
        "image.fpn0.view1",
        "image.fpn0.view2",
        "image_transform.view1",
        "image_transform.view2",
    ]
    assert {spec.alignment for spec in chosen.specs[:2]} == {"replay"}


def test_views_that_would_be_alike_are_refused(
    tiny_world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"cache={tmp_path / 'c.zarr'}"
    with pytest.raises(ConfigError, match=r"store\.views=2: all views would be alike"):
        teacher_extract.run(configure(tiny_world, url, VIEWS, verb=ExtractConfig))
    lidar = [word for word in SMALL if not word.startswith("teacher")]
    words = [*lidar, "teacher=centerpoint_tiny", f"dataset.root={tiny_world}", url, VIEWS]
    config = compose(ExtractConfig, words_for(ExtractConfig, words))
    caplog.set_level("INFO")
    teacher_extract.run(config)
    assert "store.views=2 changes nothing: this teacher does not look at images" in caplog.text


@pytest.mark.slow
def test_codecs_of_views_are_probed_on_the_clean_frame(tiny_world: Path) -> None:
    found = {
        views: plan_stage.run(
            configure(tiny_world, f"store.views={views}", "probe=1", *IMAGES, verb=PlanConfig)
        )
        for views in (0, 2)
    }
    sizes, twice = (
        {row["name"]: row["bytes_by_target"] for row in found[views]["probe"]} for views in (0, 2)
    )
    for name, by_tap in sizes.items():
        assert "bev.neck" in by_tap
        assert twice[name]["bev.neck"] == pytest.approx(2 * by_tap["bev.neck"])


def test_a_plan_counts_the_passes_that_an_extraction_makes(
    cache: str, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_cache(cache)
    planned = plan_stage.run(configure(tiny_world, VIEWS, *IMAGES, verb=PlanConfig))
    frames = Frames.select(configure(tiny_world, verb=ExtractConfig).dataset)
    assert planned["teacher_passes"] == 3 * len(frames)
    writer: Any = SimpleNamespace(
        specs=list(opened.specs.values()),
        missing=lambda: range(opened.layout.num_shards),
        tokens=lambda shard: [opened.frames.tokens[n] for n in opened.layout.frames_of(shard)],
    )
    steps = steps_of(writer, frames, 2)
    assert planned["teacher_passes"] == sum(len(step.keys) for step in steps)
    said = {row["name"]: row["alignment"] for row in planned["targets"]}
    assert said == {key: spec.alignment for key, spec in opened.specs.items()}


def test_a_teacher_with_a_memory_has_no_views(
    tiny_world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bevcask.teachers.base.Teacher.remembers", True)
    config = configure(
        tiny_world, f"cache={tmp_path / 'c.zarr'}", VIEWS, *IMAGES, verb=ExtractConfig
    )
    with pytest.raises(ConfigError, match="remembers the frames before"):
        teacher_extract.run(config)


def test_alignment_stays_that_of_the_bev(cache: str, tiny_world: Path) -> None:
    """Views replay pixels; the BEV part of the augmentation is drawn anew and aligned."""
    config = configure(tiny_world, f"cache={cache}", *IMAGES, *FLIPS)
    method = build_method(config.method)
    teaching = open_teaching(config, method, Frames.select(config.dataset), torch.device("cpu"))
    order = training_order(config, teaching, Inputs(image_size_HW=(64, 96)))
    reading = student_distill.training_batches(config, teaching, order)
    batch = next(iter(reading(0)))
    assert len(Align(batch.batch.bev_aug_B44)) == 2
    assert len({tuple(matrix.flatten().tolist()) for matrix in batch.batch.bev_aug_B44}) > 1

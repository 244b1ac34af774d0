"""A LiDAR teacher and a camera teacher at once: from their caches as with both in the loop."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bevcask.cache import open_cache
from bevcask.compose import compose, words_for
from bevcask.data.join import TrainBatch
from bevcask.errors import CacheIdentityError, ConfigError, PlanError
from bevcask.methods.base import Target
from bevcask.stages import teacher_extract
from bevcask.training.sources import CachedTargets
from bevcask.verbs import DistillConfig, ExtractConfig
from training.test_cached_equals_online import gap, gradients

LIDAR = [
    "pillar=0.8",
    "num_sweeps=1",
    "pillar_channels=8",
    "channels=[8,12,16]",
    "convs=[1,1,1]",
    "neck_channels=[8,8,8]",
    "head.channels=8",
]
CAMERA = ["image_size_HW=[64,96]", "image_channels=16", "depth_channels=16"]
SHARED = [
    "dataset=synthetic",
    "dataset.split=synthetic_train",
    "dataset.limit=2",
    "seed=3",
    "device=cpu",
    "loader.num_workers=0",
    "loader.batch_size=1",  # kernels round by what else is in a teacher's batch
    "store.codec=float32",
]
LEVEL = "[{name: fpn0, student: image.fpn0, teacher: image.fpn0}]"
METHODS = [
    "methods=distillbev,focaldistiller",
    "method.distillbev.cache=lidar",
    "method.focaldistiller.cache=camera",
    f"method.focaldistiller.levels={LEVEL}",
    "method.focaldistiller.student=bev.neck",
    "method.focaldistiller.teacher=bev.neck",
]
TRAINED = [
    *SHARED,
    "student=bevdepth_tiny",
    *(f"student.detector.{key}" for key in CAMERA),
    "trainer=tiny",
]
BOTH = [
    "teachers=lidar=centerpoint_tiny,camera=bevdepth_tiny",
    *(f"teachers.lidar.detector.{key}" for key in LIDAR),
    *(f"teachers.camera.detector.{key}" for key in CAMERA),
]
IMAGES = [
    "augment.resize=[-0.02,0.04]",
    "augment.crop=true",
    "augment.image_flip=true",
]
TURNS = ["augment.bev_rotation=0.3", "augment.bev_flip_x=true", "augment.bev_flip_y=true"]
ONLINE = ["targets=online", "online.input=canonical", "store.views=2"]


class Two(NamedTuple):
    """URLs of caches: of the LiDAR teacher, and of the camera teacher in two views."""

    lidar: str
    camera: str


def extract(world: Path, url: Path, teacher: str, sizes: list[str], *more: str) -> str:
    words = [*SHARED, f"teacher={teacher}", *(f"teacher.detector.{key}" for key in sizes), *more]
    words += [f"cache={url}", f"dataset.root={world}"]
    teacher_extract.run(compose(ExtractConfig, words_for(ExtractConfig, words)))
    return str(url)


def extract_views(world: Path, url: Path, *more: str) -> str:
    own = [word for word in METHODS if "focaldistiller." in word and "cache" not in word]
    said = [word.replace("method.focaldistiller.", "method.") for word in own]
    words = ["method=focaldistiller", *said, *IMAGES, *more]
    return extract(world, url, "bevdepth_tiny", CAMERA, *words)


@pytest.fixture(scope="module")
def two(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Two:
    folder = tmp_path_factory.mktemp("two")
    return Two(
        extract(tiny_world, folder / "a.zarr", "centerpoint_tiny", LIDAR, "method=distillbev"),
        extract_views(tiny_world, folder / "b.zarr", "store.views=2"),
    )


def configure(world: Path, *more: str, methods: Sequence[str] = METHODS) -> Any:
    words = [*TRAINED, *methods, f"dataset.root={world}", *IMAGES, *TURNS, *more]
    return compose(DistillConfig, words)


def labelled(two: Two) -> str:
    return f"cache=lidar={two.lidar},camera={two.camera}"


def test_two_caches_teach_what_two_teachers_in_the_loop_do(
    two: Two, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = gradients(configure(tiny_world, labelled(two)))
    online = gradients(configure(tiny_world, *BOTH, *ONLINE))
    for method in ("distillbev/", "focaldistiller/"):
        assert any(name.startswith(method) and loss > 0 for name, loss in cached[0].items())
    assert gap(cached[0], online[0]) < 1e-6
    assert gap(cached[1], online[1]) < 1e-6
    camera = "focaldistiller/focaldistiller/fpn0"
    alone = gradients(configure(tiny_world, *BOTH, *ONLINE), camera)
    assert gap(gradients(configure(tiny_world, labelled(two)), camera)[1], alone[1]) < 1e-6
    monkeypatch.setattr(CachedTargets, "__call__", lambda _, batch: other_view(batch, two))
    wrong = gradients(configure(tiny_world, labelled(two)), camera)
    assert gap(wrong[0], alone[0]) > 1e-5
    assert gap(wrong[1], alone[1]) > 1e-3


def other_view(batch: TrainBatch, two: Two) -> dict[str, Target]:
    """Return the targets of a batch, those of the images of the view that is not shown."""
    import torch

    (token,), cache = batch.batch.tokens, open_cache(two.camera)
    found, name = batch.dequantised(), "camera/image.fpn0"
    views = [torch.from_numpy(cache.read_float(token)[f"image.fpn0.view{v}"]) for v in (1, 2)]
    (shown,) = [v for v in (0, 1) if torch.equal(views[v], found[name].values[0])]
    return found | {name: replace(found[name], values=views[1 - shown][None])}


def test_caches_that_are_exchanged_are_refused(two: Two, tiny_world: Path) -> None:
    exchanged = f"cache=lidar={two.camera},camera={two.lidar}"
    for words, told in (
        ([exchanged], (PlanError, "'camera/image.fpn0'")),
        ([exchanged, *BOTH], (CacheIdentityError, "teacher")),
        ([f"cache=a={two.lidar},b={two.camera}", *BOTH], (ConfigError, "cache=lidar=URL,camera=")),
        ([*BOTH, *ONLINE, "method.distillbev.cache=radar"], (PlanError, "'radar/bev.block1'")),
    ):
        with pytest.raises(told[0], match=told[1]):
            gradients(configure(tiny_world, *words))


@pytest.mark.slow
def test_what_is_of_no_teacher_is_read_once(tiny_world: Path, tmp_path: Path) -> None:
    """`lidar.pixels` lies in both caches; what was done to the images in the camera's alone."""
    words = [word for word in METHODS if "distillbev" not in word]
    words += ["methods=tigdistill,focaldistiller", "method.tigdistill.cache=lidar"]
    words += ["method.focaldistiller.masked=0"]
    lidar, camera = tmp_path / "a.zarr", tmp_path / "b.zarr"
    extract(tiny_world, lidar, "centerpoint_tiny", LIDAR, "method=tigdistill")
    extract_views(tiny_world, camera, "store.views=2", "method.masked=0")
    added = ["method=tigdistill", "store.views=2", *IMAGES]
    extract(tiny_world, camera, "bevdepth_tiny", CAMERA, *added)
    assert all("lidar.pixels" in open_cache(str(url)).specs for url in (lidar, camera))
    cached = gradients(configure(tiny_world, f"cache=lidar={lidar},camera={camera}", methods=words))
    online = gradients(configure(tiny_world, *BOTH, *ONLINE, methods=words))
    assert cached[0]["tigdistill/tigdistill/inner_depth"] > 0
    assert gap(cached[0], online[0]) < 1e-6
    assert gap(cached[1], online[1]) < 1e-6


@pytest.mark.slow
def test_views_of_two_camera_teachers_are_shown_together(
    two: Two, tiny_world: Path, tmp_path: Path
) -> None:
    words = [word for word in METHODS if "distillbev" not in word]
    words += ["methods=harmodistill,focaldistiller", "method.harmodistill.cache=other"]
    words += [f"method.harmodistill.levels={LEVEL}"]
    three = extract_views(tiny_world, tmp_path / "three.zarr", "store.views=3")
    for step in range(6):  # the third view is that of one of them alone
        both = f"cache=other={three},camera={two.camera}"
        assert gradients(configure(tiny_world, both, methods=words), step=step)[0]
    others = extract_views(tiny_world, tmp_path / "others.zarr", "store.views=2", "seed=4")
    with pytest.raises(CacheIdentityError, match=r"views\.seed"):
        gradients(configure(tiny_world, f"cache=other={others},camera={two.camera}", methods=words))
    alone = ["methods=focaldistiller", *(word for word in words[:4] if "cache" not in word)]
    with pytest.raises(ConfigError, match="Label them"):
        gradients(configure(tiny_world, f"cache={three},{others}", methods=alone))

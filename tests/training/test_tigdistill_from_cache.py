"""TiGDistill from a cache: as with the teacher in the loop, and without any LiDAR file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.cache import open_cache
from bevcask.compose import compose, words_for
from bevcask.errors import CacheIdentityError, DataError, PlanError
from bevcask.stages import student_distill, teacher_extract
from bevcask.verbs import DistillConfig, ExtractConfig
from training.test_cached_equals_online import FLIPS, ONLINE, gap, gradients

SMALL = [
    "dataset=synthetic",
    "dataset.split=synthetic_train",
    "method=tigdistill",
    "seed=3",
    "device=cpu",
    "loader.num_workers=0",
    "loader.batch_size=2",
    "store.codec=float32",
    "teacher=centerpoint_tiny",
    "teacher.detector.num_sweeps=1",
    "teacher.detector.pillar=0.8",
    "teacher.detector.strides=[1,2,2]",
    "student=bevdepth_tiny",
    "student.detector.image_size_HW=[64,96]",
    "trainer=tiny",
]
IMAGES = [
    "augment.resize=[-0.06,0.11]",
    "augment.crop=true",
    "augment.image_flip=true",
    "augment.image_rotation=5.4",
]
TURNS = ["augment.bev_rotation=0.3", "augment.bev_scale=[0.95,1.05]", *FLIPS]
AUGMENT = {"clean": [], "augmented": [*IMAGES, *TURNS]}
DEPTH = "tigdistill/inner_depth"
Slopes = tuple[dict[str, Tensor], dict[str, Tensor]]


def configure(world: Path, *more: str, verb: type[Any] = DistillConfig) -> Any:
    return compose(verb, words_for(verb, [*SMALL, f"dataset.root={world}", *more]))


@pytest.fixture(scope="module")
def world(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_world, tmp_path_factory.mktemp("tig") / "world"))


@pytest.fixture(scope="module")
def cache(world: Path) -> str:
    url = str(world.parent / "cache.zarr")
    teacher_extract.run(configure(world, f"cache={url}", verb=ExtractConfig))
    return url


@pytest.fixture(scope="module")
def online(world: Path) -> dict[str, Slopes]:
    """Terms and gradients of a step with the teacher in the loop, which sees clean frames."""
    return {name: gradients(configure(world, *ONLINE, *AUGMENT[name])) for name in AUGMENT}


@pytest.mark.parametrize("augment", AUGMENT)
def test_cached_equals_online(
    augment: str, cache: str, world: Path, online: dict[str, Slopes]
) -> None:
    cached = gradients(configure(world, f"cache={cache}", *AUGMENT[augment]))
    expected = online[augment]
    assert float(cached[0][DEPTH]) > 0
    assert torch.equal(cached[0][DEPTH], expected[0][DEPTH])
    assert torch.equal(cached[0]["detection/depth"], expected[0]["detection/depth"])
    assert gap(cached[0], expected[0]) < 1e-6
    assert gap(cached[1], expected[1]) < 1e-5


def test_inner_depth_reaches_the_depth_net_alone_of_all_heads(cache: str, world: Path) -> None:
    _, slopes = gradients(configure(world, f"cache={cache}"), DEPTH)
    reached = {name for name, slope in slopes.items() if slope.abs().sum() > 0}
    assert any(name.startswith("depth_net.depth.") for name in reached)
    assert any(name.startswith("backbone.") for name in reached)
    assert not any(name.startswith(("depth_net.context", "head.", "neck.")) for name in reached)


def test_a_teacher_that_sees_augmented_frames_changes_no_depth(
    world: Path, online: dict[str, Slopes]
) -> None:
    words = [*AUGMENT["augmented"], "targets=online", "online.input=augmented"]
    clean, moved = online["augmented"][0], gradients(configure(world, *words), "tigdistill/")[0]
    assert torch.equal(clean[DEPTH], moved[DEPTH])
    assert not torch.equal(clean["tigdistill/inter_channel"], moved["tigdistill/inter_channel"])


def test_no_lidar_file_is_read(cache: str, world: Path, tmp_path: Path) -> None:
    blind = Path(shutil.copytree(world, tmp_path / "blind"))
    before = gradients(configure(blind, f"cache={cache}", *IMAGES))
    for folder in ("samples", "sweeps"):
        shutil.rmtree(blind / folder / "LIDAR_TOP", ignore_errors=True)
    after = gradients(configure(blind, f"cache={cache}", *IMAGES))
    for one, other in zip(before, after, strict=True):
        assert gap(one, other) < 1e-5
    without = ["method.inner_depth=0", f"cache={cache}"]
    with pytest.raises(DataError, match="missing LiDAR scan"):
        gradients(configure(blind, *without))


def test_points_follow_the_calibration_of_cameras_that_the_teacher_never_saw(
    cache: str, world: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(world, tmp_path / "other"))
    table = other / "v1.0-synthetic" / "calibrated_sensor.json"
    records = json.loads(table.read_text())
    for record in records:
        if record["camera_intrinsic"]:
            record["camera_intrinsic"][0][0] += 1e-3
    table.write_text(json.dumps(records))
    with pytest.raises(CacheIdentityError, match=r"dataset\.calibration\.CAM_"):
        gradients(configure(other, f"cache={cache}"))


def test_a_cache_without_points_is_refused_and_can_be_given_them(
    world: Path, tmp_path: Path, online: dict[str, Slopes]
) -> None:
    words = [f"cache={tmp_path / 'grown.zarr'}"]
    teacher_extract.run(configure(world, *words, "method.inner_depth=0", verb=ExtractConfig))
    with pytest.raises(PlanError, match=r"the cache has no tap 'lidar\.pixels'") as refused:
        student_distill.run(configure(world, *words, f"run={tmp_path / 'run'}"))
    assert "This adds what is missing, and changes nothing else" in str(refused.value)
    before = open_cache(str(tmp_path / "grown.zarr"))
    assert "lidar.pixels" not in before.specs
    teacher_extract.run(configure(world, *words, verb=ExtractConfig))
    grown = open_cache(str(tmp_path / "grown.zarr"))
    assert set(grown.specs) == {*before.specs, "lidar.pixels"}
    cached = gradients(configure(world, *words))
    assert gap(cached[0], online["clean"][0]) < 1e-6

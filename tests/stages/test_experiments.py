"""Every shipped experiment is complete: it plans, builds, and its tiny twin trains from a cache."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from bevcask.compose import compose
from bevcask.config import AugmentConfig
from bevcask.detectors import find_detector
from bevcask.detectors.base import Batch, Detector, Labels
from bevcask.geometry import CAMERAS
from bevcask.groups import group_members
from bevcask.methods import build_method
from bevcask.stages import plan
from bevcask.targets.plan import plan as plan_targets
from bevcask.teachers import build_teacher
from bevcask.verbs import DistillConfig, PlanConfig

Call = Callable[..., tuple[int, str, str]]
TINY = [name for name in group_members("experiment") if name.startswith("tiny_")]
IN_EVERY_RUN = ("tiny_distillbev",)  # the others take longer


def needs_mmdet3d(name: str) -> bool:
    teacher = compose(PlanConfig, [f"experiment={name}"]).teacher.detector
    return teacher.get("type") == "mmdet3d"


ALONE = [
    name
    for name in group_members("experiment")
    if name.startswith(("bevformer_", "raydn_", "streampetr_"))
]
PUBLISHED = [
    pytest.param(name, marks=pytest.mark.mmdet3d if needs_mmdet3d(name) else ())
    for name in group_members("experiment")
    if name not in (*TINY, *ALONE, "demo", "toy_study")
]
PAPER_SIZE = [
    n for n in group_members("student") if n.endswith(("_r50", "_r101", "_swint", "_cell08"))
]
EPOCH, EPOCH_CBGS = 28_130, 123_580  # frames drawn


class Recipe(NamedTuple):
    """How a released script trains; `batch` over all its GPUs, `drops` in epochs."""

    epochs: int
    draws: int
    batch: int
    lr: float
    decay: float
    drops: tuple[int, ...]
    warmup: int
    clip: float = 5.0
    precision: str = "32"
    inter_channel: float | None = None


DISTILLBEV = Recipe(24, EPOCH_CBGS, 64, 2e-4, 0.01, (16, 22), 500)
TIGDISTILL = Recipe(24, EPOCH, 32, 2e-4, 1e-7, (19, 23), 0, inter_channel=20)
TIGDISTILL_CBGS = Recipe(20, EPOCH_CBGS, 32, 2e-4, 0.01, (16, 19), 200, inter_channel=10)
RECIPES = {
    "distillbev": DISTILLBEV,
    "tigdistill_centerpoint_bevdepth_r50": TIGDISTILL._replace(lr=4e-4, inter_channel=10),
    "tigdistill_centerpoint_bevdepth4d_r50": TIGDISTILL,
    "tigdistill_centerpoint_bevdepth4d_r101": TIGDISTILL_CBGS,
    "tigdistill_pillarnext": TIGDISTILL_CBGS._replace(batch=16),
    "tigdistill_bevfusion": TIGDISTILL_CBGS._replace(batch=16),
    "simdistill": Recipe(20, EPOCH_CBGS, 48, 1e-3, 0.01, (), 20_597, 35.0, "16-mixed"),
}
BEVFORMER = Recipe(24, EPOCH, 8, 2e-4, 0.01, (), 500, 35.0)
# Streams drop what does not fill a batch: 1,758 steps of 16 an epoch.
STREAM = Recipe(24, 16 * 1_758, 16, 4e-4, 0.01, (), 500, 35.0, "16-mixed")
STREAMS = {
    "raydn_r50": STREAM._replace(epochs=60),
    "raydn_r101_1408": STREAM._replace(epochs=60, draws=4 * 7_032, batch=4, lr=1e-4),
    "streampetr_r50": STREAM._replace(epochs=60),
}


def student_of(config: DistillConfig) -> Detector:
    plugin, own = find_detector(config.student.detector, "student.detector")
    return plugin(own)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_row_plans_and_its_method_joins(name: str) -> None:
    config = compose(DistillConfig, [f"experiment={name}"])
    assert plan.run(compose(PlanConfig, [f"experiment={name}"]))["frames"] == 28130
    taps = build_teacher(config.teacher, 0).offers()
    method = build_method(config.method)
    specs = plan_targets(method.needs(), taps, 1, config.store, config.augment).specs
    plugin, own = find_detector(config.student.detector, "student.detector")
    with torch.device("meta"):
        plugin(own)
        method.build(plugin.describe_taps(own), {spec.name: spec for spec in specs})  # type: ignore[attr-defined]
    assert config.val is not None
    assert config.val.split == "val"
    assert config.trainer.max_steps > 20_000
    assert (
        config.trainer.schedule != "step"
        or config.trainer.milestones[-1] < config.trainer.max_steps
    )


@pytest.mark.parametrize("name", [n for row in PUBLISHED for n in row.values])
def test_a_published_row_trains_as_its_script_does(name: str) -> None:
    config = compose(DistillConfig, [f"experiment={name}"])
    if config.student.detector["type"] in ("bevformer", "raydn", "streampetr"):
        assert_trains_as_it_remembers(config, str(name))
        return
    (recipe,) = (own for start, own in RECIPES.items() if str(name).startswith(start))
    assert_recipe(config, recipe)
    assert config.method.get("inter_channel") == recipe.inter_channel
    augment = config.augment
    assert (augment.resize, augment.image_rotation) == ((-0.06, 0.11), 5.4)
    assert (augment.bev_rotation, augment.bev_scale) == (0.3925, (0.95, 1.05))
    assert augment.crop
    assert augment.image_flip
    assert augment.bev_flip_x
    assert augment.bev_flip_y
    frames = config.student.detector.get("num_frames", 1)
    assert config.student.detector["head"]["velocity_weight"] == (1.0 if frames == 2 else 0.2)


def assert_recipe(config: DistillConfig, recipe: Recipe) -> None:
    trainer, loader = config.trainer, config.loader
    steps = recipe.draws / recipe.batch
    assert loader.batch_size * trainer.accumulate == recipe.batch
    assert loader.sampler == ("cbgs" if recipe.draws == EPOCH_CBGS else "uniform")
    assert trainer.max_steps == math.ceil(recipe.epochs * steps)
    assert trainer.milestones == pytest.approx([e * steps for e in recipe.drops], abs=1)
    assert trainer.lr == recipe.lr
    assert (trainer.weight_decay, trainer.warmup_steps) == (recipe.decay, recipe.warmup)
    assert (trainer.clip, trainer.precision, trainer.ema) == (recipe.clip, recipe.precision, 0)


def assert_trains_as_it_remembers(config: DistillConfig, name: str) -> None:
    if config.student.detector["type"] == "bevformer":
        assert_trains_as_bevformer(config)
    else:
        assert_trains_as_a_stream(config, name)


def assert_trains_as_a_stream(config: DistillConfig, name: str) -> None:
    """Half scenes in 16 lanes, cosine; images and BEV drawn, neither BEV mirrored nor turned."""
    assert_recipe(config, STREAMS.get(name, STREAM))
    assert (config.loader.order, config.loader.scene_parts) == ("scenes", 2)
    nuimages = name in ("streampetr_r50", "harmodistill_streampetr_r50")
    assert config.trainer.backbone_lr == (0.1 if nuimages else 0.25)
    assert config.trainer.schedule == "cosine"
    large = name == "raydn_r101_1408"
    assert config.augment == AugmentConfig(
        resize=(-0.08, 0.12) if large else (-0.06, 0.11),
        crop=True,
        image_flip=True,
        cameras_alike=True,
        bev_rotation=0.3925,
        bev_scale=(0.95, 1.05),
        grid_mask=0.0 if name.startswith("harmodistill") else 0.7,
    )


def assert_trains_as_bevformer(config: DistillConfig) -> None:
    """24 epochs of 8, cosine, colours and stripes, no BEV augmentation, a window of 3 behind it."""
    assert_recipe(config, BEVFORMER)
    assert config.trainer.backbone_lr == 0.1
    assert config.trainer.schedule == "cosine"
    augment = config.augment
    assert augment == AugmentConfig(photometric=True, grid_mask=0.7, drop_history=True)


@pytest.mark.parametrize("name", ALONE)
def test_a_student_alone_is_the_student_of_a_published_row(name: str) -> None:
    config = compose(DistillConfig, [f"experiment={name}"])
    assert_trains_as_it_remembers(config, name)
    assert config.method["type"] == "none"
    with torch.device("meta"):
        student = student_of(config)
    student.inputs(student.config)  # type: ignore[arg-type]


def test_the_transformer_line_weighs_as_its_script_does() -> None:
    """DistillBEV on BEVFormer: no false positives, the teacher's attention, no BEV augmentation."""
    method = compose(DistillConfig, ["experiment=distillbev_centerpoint_bevformer_r50"]).method
    assert (method["foreground"], method["background"]) == (5e-3, 4e-3)
    assert (method["false_positive"], method["spatial"]) == (0.0, 5e-4)
    assert (method["attention"], method["unmoved"]) == ("teacher", True)


def test_focaldistiller_teaches_what_its_release_does() -> None:
    config = compose(DistillConfig, ["experiment=focaldistiller_bevformer_base_small"])
    teacher, student = config.teacher.detector, config.student.detector
    assert teacher["image_size_HW"] == student["image_size_HW"]
    assert teacher["enlarge"] == 2
    assert (config.teacher.memory, config.store.views) == ("window", 2)


def test_simdistill_cycles_rate_and_momentum_as_mmcv_does() -> None:
    """From 2e-4 five times up and down to 5e-5 of it; the first beta to 0.85 / 0.95 and back."""
    trainer = compose(DistillConfig, ["experiment=simdistill_bevfusion_bevsimdet_swint"]).trainer
    assert trainer.schedule == "one_cycle"
    assert trainer.warmup_steps == pytest.approx(0.4 * trainer.max_steps, abs=1)
    assert [end * trainer.lr for end in trainer.cycle_ends] == pytest.approx([2e-4, 1e-8])
    assert trainer.cycle_momentum == pytest.approx((0.9, 0.9 * 0.85 / 0.95), abs=1e-5)
    assert trainer.backbone_lr == 0.1


def a_frame(size_HW: tuple[int, int]) -> Batch:
    """One frame of random pixels from six cameras that look along the ground."""
    generator = torch.Generator().manual_seed(0)
    num = len(CAMERAS)
    to_lidar = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
    intrinsics = torch.tensor([[1260.0, 0, 800], [0, 1260, 450], [0, 0, 1]])
    scale = torch.diag(torch.tensor([size_HW[1] / 1600, size_HW[1] / 1600, 1.0]))
    nothing = [torch.zeros((0, 9))]
    return Batch(
        tokens=["0"],
        bev_aug_B44=torch.eye(4)[None],
        images_BVCHW=torch.randint(
            256, (1, num, 3, *size_HW), generator=generator, dtype=torch.uint8
        ),
        intrinsics_BV33=intrinsics.expand(1, num, 3, 3),
        image_aug_BV33=scale.expand(1, num, 3, 3),
        camera_to_lidar_BV44=to_lidar.expand(1, num, 4, 4),
        points=[20 * torch.randn((500, 5), generator=generator)],
        can_bus_B18=torch.zeros((1, 18), dtype=torch.float64),
        labels=Labels(nothing, [torch.zeros(0, dtype=torch.int64)], nothing),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER_SIZE)
def test_a_published_student_takes_a_real_forward(name: str) -> None:
    student = student_of(compose(DistillConfig, [f"student={name}"])).eval()
    inputs = student.inputs(student.config)  # type: ignore[arg-type]
    assert inputs.image_size_HW is not None
    batch = a_frame(inputs.image_size_HW)
    batch.history = tuple(a_frame(inputs.image_size_HW) for _ in range(inputs.history))
    with torch.inference_mode():
        output = student(batch)
    described = student.describe_taps(student.config)  # type: ignore[arg-type]
    for tap, values in output.taps.items():
        assert tuple(values.shape[1:]) == described[tap].shape, tap
        assert bool(values.isfinite().all()), tap


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in IN_EVERY_RUN else pytest.mark.slow) for name in TINY],
)
def test_a_tiny_twin_trains_end_to_end_from_its_cache(
    name: str, tiny_world: Path, call: Call, tmp_path: Path
) -> None:
    here = [
        f"experiment={name}",
        f"dataset.root={tiny_world}",
        "loader.num_workers=0",
        "device=cpu",
        "--json",
    ]
    url = str(tmp_path / "cache.zarr")
    code, _, err = call("teacher-extract", url, *here, "store.shard_rows=2")
    assert code == 0, err
    code, out, err = call(
        "student-distill",
        url,
        *here,
        f"run={tmp_path / 'run'}",
        f"val.root={tiny_world}",
        "val.version=v1.0-synthetic",
        "val.split=synthetic_val",
        "trainer.max_steps=2",
        "trainer.warmup_steps=1",
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["step"] == 2
    assert 0 <= result["NDS"] <= 1
    assert result["cache"] == url

"""Every shipped experiment is complete: it plans, builds, and its tiny twin trains from a cache."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bevcask.config import RunConfig, build_config, compose
from bevcask.detectors.base import Batch, Detector, Labels
from bevcask.geometry import CAMERAS
from bevcask.groups import group_members
from bevcask.methods import build_method
from bevcask.stages import plan
from bevcask.targets.plan import plan as plan_targets
from bevcask.teachers import build_teacher

Call = Callable[..., tuple[int, str, str]]
TINY = [name for name in group_members("experiment") if name.startswith("tiny_")]


def needs_mmdet3d(name: str) -> bool:
    return bool(compose([f"experiment={name}"]).teacher.detector["type"] == "mmdet3d")


PUBLISHED = [
    pytest.param(name, marks=pytest.mark.mmdet3d if needs_mmdet3d(name) else ())
    for name in group_members("experiment")
    if name not in (*TINY, "demo", "toy_study")
]
PAPER_SIZE = [n for n in group_members("student") if n.endswith(("_r50", "_r101", "_swint"))]


def student_of(config: RunConfig) -> Detector:
    plugin, own = build_config("detector", config.student.detector, "student.detector")
    return plugin(own)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_row_plans_and_its_method_joins(name: str) -> None:
    config = compose([f"experiment={name}"])
    assert plan.run(config)["frames"] == 28130
    taps = build_teacher(config.teacher, 0).offers()
    method = build_method(config.method)
    specs = plan_targets(method.needs(), taps, 1, config.store, config.augment).specs
    plugin, own = build_config("detector", config.student.detector, "student.detector")
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
        images_BVCHW=torch.randn((1, num, 3, *size_HW), generator=generator),
        intrinsics_BV33=intrinsics.expand(1, num, 3, 3),
        image_aug_BV33=scale.expand(1, num, 3, 3),
        camera_to_lidar_BV44=to_lidar.expand(1, num, 4, 4),
        points=[20 * torch.randn((500, 5), generator=generator)],
        labels=Labels(nothing, [torch.zeros(0, dtype=torch.int64)], nothing),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER_SIZE)
def test_a_published_student_takes_a_real_forward(name: str) -> None:
    student = student_of(compose([f"student={name}"])).eval()
    inputs = student.inputs(student.config)  # type: ignore[arg-type]
    assert inputs.image_size_HW is not None
    batch = a_frame(inputs.image_size_HW)
    batch.previous = a_frame(inputs.image_size_HW) if inputs.num_frames > 1 else None
    with torch.inference_mode():
        output = student(batch)
    described = student.describe_taps(student.config)  # type: ignore[arg-type]
    for tap, values in output.taps.items():
        assert tuple(values.shape[1:]) == described[tap].shape, tap
        assert bool(values.isfinite().all()), tap


@pytest.mark.parametrize("name", TINY)
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

"""SimDistill: what it asks for, what it accepts, and how it says no."""

from dataclasses import replace

import pytest
from torch import nn

from bevcask.config import AugmentConfig, StoreConfig
from bevcask.errors import TargetMismatchError
from bevcask.geometry import CLASSES, Grid
from bevcask.methods import build_method
from bevcask.methods.simdistill import SimDistill
from bevcask.targets.plan import plan
from bevcask.targets.spec import Region, TapInfo, TargetSpec
from methods.simdistill_cases import CASE, dense, taps


def built(**changes: TapInfo | TargetSpec) -> None:
    """Build with some taps or targets replaced; `student_` and `target_` say whose."""
    specs: dict[str, TargetSpec] = {
        spec.name: spec
        for spec in plan(
            build_method(CASE.section).needs(), CASE.teacher, 1, StoreConfig(), None
        ).specs
    }
    student = dict(CASE.student)
    for key, value in changes.items():
        side, _, name = key.partition("_")
        (student if side == "student" else specs)[name.replace("_", ".")] = value  # type: ignore[assignment]
    build_method(CASE.section).build(student, specs)


def test_every_mismatch_is_named_at_once() -> None:
    finer = Grid.square(6.0, 0.5)
    swapped = replace(CASE.student["head.heatmap"], classes=CLASSES[::-1])
    with pytest.raises(TargetMismatchError) as caught:
        built(
            student_bev_camera=dense("bev.camera", 7),
            student_bev_simulated=dense("bev.simulated", 3, finer),
            student_head_heatmap=swapped,
            student_head_codes=replace(CASE.student["head.codes"], kind="dense_bev"),
            target_bev_lidar=TargetSpec(CASE.teacher["bev.lidar"], "uint8", Region("foreground")),
            target_bev_fused=TargetSpec(CASE.teacher["head.codes"], "float32"),
        )
    said = str(caught.value)
    for part in (
        "intra_modal: student tap 'bev.camera' has 7 channels, target 'bev.camera' 3",
        "cross_modal: student tap 'bev.simulated' lies on",
        "cross_modal: target 'bev.lidar' is stored on region 'foreground +0 m' as uint8, the "
        "loss reads 'gaussians'",
        "fusion: target 'bev.fused' is a box_code, expected a dense_bev",
        "quality: heatmap channels must be car, truck",
        "box: student tap 'head.codes' is a dense_bev, expected a box_code",
    ):
        assert part in said
    assert said.count("\n- ") == 6


def test_the_adapter_is_a_branch_of_the_teachers_fuser() -> None:
    """3x3 without bias, batch norm, ReLU: to the channels of the LiDAR map."""
    method = CASE.build()
    assert isinstance(method, SimDistill)
    assert isinstance(method.widen, nn.Sequential)
    convolution, norm, relu = method.widen
    assert isinstance(convolution, nn.Conv2d)
    assert (convolution.in_channels, convolution.out_channels) == (3, 4)
    assert (convolution.kernel_size, convolution.padding) == ((3, 3), (1, 1))
    assert convolution.bias is None
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(relu, nn.ReLU)


def test_larger_regions_serve() -> None:
    lidar = CASE.teacher["bev.lidar"]
    both = Region("union", parts=(Region("gaussians"), Region("keypoints", margin=1.6)))
    for region in (Region(), both):
        built(target_bev_lidar=TargetSpec(lidar, "uint8", region))
    with pytest.raises(TargetMismatchError, match="stored on region 'centres'"):
        built(target_bev_fused=TargetSpec(CASE.teacher["bev.fused"], "uint8", Region("centres")))


def test_plan_at_paper_size() -> None:
    """Views where the pixels decide, the LiDAR map once; alignment classes; bytes."""
    grid = Grid.square(54.0, 0.6)
    paper = {
        "bev.camera": dense("bev.camera", 80, grid),
        "bev.fused": dense("bev.fused", 256, grid),
        "bev.lidar": dense("bev.lidar", 256, grid, images=False),
    }
    paper = {**taps(1, 1, grid), **paper}
    needs = build_method(CASE.section).needs()
    everywhere = {need.role for need in needs if need.normaliser == "all"}
    assert everywhere == {"intra_modal", "fusion", "quality"}
    turns = AugmentConfig(bev_rotation=0.39, bev_scale=(0.95, 1.05), bev_flip_x=True)
    chosen = plan(needs, paper, 1, StoreConfig(), turns)
    assert {spec.name: (spec.codec, str(spec.region), spec.alignment) for spec in chosen.specs} == {
        "bev.camera": ("uint8", "all", "aligned"),
        "bev.lidar": ("uint8", "gaussians", "aligned"),
        "bev.fused": ("uint8", "all", "aligned"),
        "head.heatmap": ("float16", "all", "aligned"),
        "head.codes": ("float32", "centres", "exact"),
    }
    pixels = AugmentConfig(image_flip=True)
    found = {
        spec.key: spec.alignment for spec in plan(needs, paper, 1, StoreConfig(), pixels).specs
    }
    assert found.pop("bev.lidar") == "exact"
    assert set(found.values()) == {"approximate"}
    views = {
        spec.key: spec.alignment
        for spec in plan(needs, paper, 1, StoreConfig(views=2), pixels).specs
    }
    assert views.pop("bev.lidar") == "exact"
    assert {views[f"{name}.view{v}"] for name in found for v in (1, 2)} == {"replay"}

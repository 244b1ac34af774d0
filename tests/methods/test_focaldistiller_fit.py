"""FocalDistiller: what it asks for, what it accepts, and how it says no."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from bevcask.config import AugmentConfig, StoreConfig
from bevcask.errors import PlanError, TargetMismatchError
from bevcask.geometry import Grid, bev_matrix
from bevcask.methods import build_method
from bevcask.methods.adapters import Restore, restored_grid
from bevcask.methods.focaldistiller import FocalDistiller
from bevcask.targets.align import Align
from bevcask.targets.plan import plan
from bevcask.targets.spec import Region, TapInfo, TargetSpec
from methods.focaldistiller_cases import CASE, COARSE, FINE, IMAGES, bev, values
from methods.test_laws import with_settings

PAPER_FINE, PAPER_COARSE = Grid.square(51.2, 0.512), Grid.square(51.2, 1.024)
PAPER_SIZES = ((116, 200), (58, 100), (29, 50), (15, 25))


def paper(grid: Grid) -> dict[str, TapInfo]:
    levels = {
        f"image.level{i}": TapInfo(
            f"image.level{i}", "image_feature", (6, 256, *size), depends_on_images=True
        )
        for i, size in enumerate(PAPER_SIZES)
    }
    return {**levels, "bev.encoder": bev(256, grid)}


def test_plan_at_published_size() -> None:
    """Spec 1.5: 94.7 MB of image levels in float16, 10.2 MB of BEV in int8 before its region."""
    needs = build_method(CASE.section).needs()
    chosen = plan(needs, paper(PAPER_FINE), 1, StoreConfig(), None)
    assert {spec.name: (spec.codec, str(spec.region), spec.alignment) for spec in chosen.specs} == {
        **{f"image.level{i}": ("float16", "all", "exact") for i in range(4)},
        "bev.encoder": ("int8", "focal 0.8 m", "exact"),
    }
    sizes = chosen.bytes_per_frame
    images = [sizes[f"image.level{i}"] / 1e6 for i in range(4)]
    assert images == pytest.approx([71.27, 17.82, 4.45, 1.15], abs=0.01)
    moved = plan(needs, paper(PAPER_FINE), 1, StoreConfig(), AugmentConfig(bev_rotation=0.39))
    assert {spec.alignment for spec in moved.specs} == {"exact", "aligned"}


def test_images_that_change_need_views() -> None:
    needs, pixels = build_method(CASE.section).needs(), AugmentConfig(image_flip=True)
    with pytest.raises(PlanError, match=r"image\.level3.*an image feature changes with"):
        plan(needs, CASE.teacher, 1, StoreConfig(), pixels)
    views = plan(needs, CASE.teacher, 1, StoreConfig(views=2), pixels)
    assert {spec.alignment for spec in views.specs if spec.view and "level" in spec.name} == {
        "replay"
    }


@pytest.mark.parametrize(
    ("settings", "taps"),
    [
        ({"channelwise": 0.0}, ["bev.encoder"]),
        ({"masked": 0.0}, [f"image.level{i}" for i in range(4)]),
        ({"levels": [{"name": "one", "student": "image.level1", "teacher": "image.level1"}]},
         ["image.level1", "bev.encoder"]),
    ],
    ids=["no images", "no bev", "one level"],
)  # fmt: skip
def test_what_weighs_nothing_is_not_asked_for(settings: Mapping[str, Any], taps: list[str]) -> None:
    case = with_settings(CASE, **settings)
    method, step = case.build(), CASE.step()
    assert method.student_taps() == [need.tap for need in method.needs()] == taps
    assert len(step.run(method)) == len(taps)


def test_adapters_are_those_of_the_release() -> None:
    """Images: BN, ReLU, 1x1 where widths differ, else nothing. BEV: one stage, then 3x3."""
    method = CASE.build()
    assert isinstance(method, FocalDistiller)
    norm, relu, convolution = method.widen["level0"]  # type: ignore[misc]
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(relu, nn.ReLU)
    assert isinstance(convolution, nn.Conv2d)
    assert (convolution.in_channels, convolution.out_channels) == (2, 3)
    assert convolution.kernel_size == (1, 1)
    assert all(isinstance(method.widen[f"level{i}"], nn.Identity) for i in (1, 2, 3))
    assert isinstance(method.restore, Restore)
    up, norm, relu, last = method.restore.layers
    assert isinstance(up, nn.ConvTranspose2d)
    assert (up.kernel_size, up.stride, up.padding, up.bias) == ((4, 4), (2, 2), (1, 1), None)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.momentum == 0.1
    assert isinstance(relu, nn.ReLU)
    assert isinstance(last, nn.Conv2d)
    assert (last.kernel_size, last.padding, last.out_channels) == ((3, 3), (1, 1), 4)
    assert last.bias is not None


@pytest.mark.parametrize(("stages", "cell"), [(0, 0.32), (1, 0.64), (2, 1.28)])
def test_stages_halve_cells_until_they_are_the_targets(stages: int, cell: float) -> None:
    student = Grid.square(6.4, cell)
    grid = restored_grid(student, FINE)
    assert grid is not None
    net = Restore(3, 4, student, grid)
    assert sum(isinstance(layer, nn.ConvTranspose2d) for layer in net.layers) == stages
    assert net(torch.zeros(1, 3, *student.shape_YX)).shape == (1, 4, *grid.shape_YX)
    assert grid.shape_YX == FINE.shape_YX


def test_restored_maps_keep_their_place() -> None:
    """A coarse cell becomes the four fine cells it covers: centred, not shifted."""
    grid = restored_grid(COARSE, FINE)
    assert grid is not None
    net = Restore(1, 1, COARSE, grid).eval()
    up, _, _, last = net.layers
    for weights in (up.weight, last.weight):
        assert isinstance(weights, torch.Tensor)
        nn.init.constant_(weights, 1.0)
    assert isinstance(last.bias, torch.Tensor)
    nn.init.zeros_(last.bias)
    own = torch.zeros(1, 1, 20, 20)
    own[0, 0, 5, 9] = 1
    shown = net(own)[0, 0].detach()
    rows, columns = shown.nonzero().T
    assert (float(rows.double().mean()), float(columns.double().mean())) == (10.5, 18.5)


def built(student: Mapping[str, TapInfo], teacher: Mapping[str, TapInfo], **region: Any) -> None:
    method = build_method(CASE.section)
    specs = {name: TargetSpec(tap, "float32") for name, tap in teacher.items()}
    if region:
        specs["bev.encoder"] = replace(specs["bev.encoder"], region=Region(**region))
    method.build(student, specs)


def test_every_mismatch_is_named_at_once() -> None:
    third = bev(3, Grid.square(6.4, 0.8))
    wrong = replace(CASE.student["image.level1"], shape=(6, 3, 2, 3))
    tall = replace(CASE.student["image.level2"], shape=(2, 3, 3, 2))
    with pytest.raises(TargetMismatchError) as caught:
        built(
            {**CASE.student, "bev.encoder": third, wrong.name: wrong, tall.name: tall},
            CASE.teacher,
            name="foreground",
        )
    said = str(caught.value)
    for part in (
        "level1: student tap 'image.level1' has (cameras, rows, columns) (6, 2, 3), target "
        "'image.level1' (2, 2, 3)",
        "level2: student tap 'image.level2' has (cameras, rows, columns) (2, 3, 2)",
        "bev: cells of student tap 'bev.encoder' are 0.8 m, of target 'bev.encoder' 0.32 m",
        "bev: target 'bev.encoder' is stored on region 'foreground +0 m' as float32, the loss "
        "reads 'focal 0.8 m'",
    ):
        assert part in said
    assert said.count("\n- ") == 4


def test_coarser_targets_and_larger_regions() -> None:
    built(CASE.student, CASE.teacher)
    built(CASE.student, CASE.teacher, name="focal", cell=0.8)
    with pytest.raises(TargetMismatchError, match=r"reads 'focal 0\.8 m'"):
        built(CASE.student, CASE.teacher, name="focal", cell=0.4)
    with pytest.raises(TargetMismatchError, match="must be 1, 2, 4"):
        built(
            {**CASE.student, "bev.encoder": bev(3, FINE)},
            {**CASE.teacher, "bev.encoder": bev(4, COARSE)},
        )


def test_compat_refuses_bev_augmentation() -> None:
    method = with_settings(CASE, mode="compat").build()
    step = CASE.step(matrix=bev_matrix(0.1))
    with pytest.raises(TargetMismatchError, match=r"focaldistiller \(mode=compat\) is defined"):
        step.run(method)
    step.align = Align.identity(2)
    assert set(values(step.run(method))) == {*IMAGES, "bev/masked"}

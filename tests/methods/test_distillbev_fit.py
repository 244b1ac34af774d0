"""DistillBEV: what it asks for, what it accepts, and how it says no."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from bevcask.config import StoreConfig, build_config
from bevcask.errors import ConfigError, TargetMismatchError
from bevcask.geometry import Grid
from bevcask.groups import load_group
from bevcask.methods import build_method
from bevcask.methods.adapters import Adapter
from bevcask.methods.distillbev import DistillBEV
from bevcask.targets.lattice import same_cells
from bevcask.targets.plan import plan
from bevcask.targets.spec import Region, TapInfo, TargetSpec
from methods.distillbev_cases import (
    CHANNELS,
    GRID,
    ONE,
    WIDE,
    OneLevel,
    ThreeLevels,
    dense,
    heatmap,
)


def test_heatmap_is_not_asked_for_without_use() -> None:
    level = {"name": "a", "student": "x", "teacher": "y"}
    method = build_method({"type": "distillbev", "levels": [level]})
    assert [need.role for need in method.needs()] == ["a"]
    needs = build_method({"type": "distillbev"}).needs()
    assert [(need.role, need.normaliser, need.region.name) for need in needs] == [
        ("block1", "all", "all"),
        ("block2", "all", "all"),
        ("neck", "all", "all"),
        ("confidence", "region", "confident"),
    ]


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("bevdepth_tiny", "centerpoint_tiny"), ("bevdepth_r50", "centerpoint")],
)
def test_shipped_detectors_meet(student: str, teacher: str) -> None:
    near, far = (
        plugin.describe_taps(config)  # type: ignore[attr-defined]
        for plugin, config in (
            build_config("detector", load_group(group, name)["detector"], group)
            for group, name in (("student", student), ("teacher", teacher))
        )
    )
    method = build_method(load_group("method", "distillbev"))
    specs = {spec.name: spec for spec in plan(method.needs(), far, 1, StoreConfig(), None).specs}
    method.build(near, specs)
    for name in ("block1", "block2", "neck"):
        adapter = method.get_submodule(f"levels.{name}.adapter")
        assert isinstance(adapter, Adapter)
        assert same_cells(adapter.grid, specs[f"bev.{name}"].tap.grid)  # type: ignore[arg-type]


def test_published_settings() -> None:
    config = DistillBEV.Config()
    assert (config.foreground, config.background) == (6e-3, 4e-2)
    assert (config.false_positive, config.spatial) == (6e-2, 2.5e-3)
    assert (config.temperature, config.threshold) == (0.5, 0.1)


def test_level_names_must_differ() -> None:
    level = {"name": "a", "student": "x", "teacher": "y"}
    with pytest.raises(ConfigError, match="levels and queries must differ, got a, a"):
        build_method({"type": "distillbev", "levels": [level, level]})
    with pytest.raises(ConfigError, match="Did you mean 'background'"):
        build_method({"type": "distillbev", "backgroud": 1.0})


def test_mismatches_are_collected() -> None:
    case = ThreeLevels()
    specs = case.specs()
    specs["bev.block1"] = replace(specs["bev.block1"], region=Region("confident", 0.1))
    specs["bev.block2"] = TargetSpec(dense("bev.block2", 4, Grid.square(6.0, 0.7)), "float32")
    coarse = TargetSpec(heatmap(GRID.coarsen(2)), "uint8", Region("confident", 0.3))
    specs["head.heatmap"] = coarse
    student: Mapping[str, TapInfo] = {
        **case.student,
        "bev.neck": replace(case.student["bev.neck"], kind="heatmap"),
    }
    with pytest.raises(TargetMismatchError) as caught:
        build_method(case.section).build(student, specs)
    message = str(caught.value)
    for words in (
        "stored on region 'confident > 0.1' as float32, the loss reads 'all'",
        "does not divide into cells of 0.7 m",
        "student tap 'bev.neck' is a heatmap",
        "the loss reads 'confident > 0.1', decided in float32: extract",
        "false positives need the heatmap on the level's own cells",
    ):
        assert words in message
    assert message.count("\n- ") == 5


@pytest.mark.parametrize(
    ("region", "codec", "accepted"),
    [
        (Region("confident", 0.1), "uint8", True),
        (Region("confident", 0.2), "uint8", False),
        (Region(), "float32", True),
        (Region(), "float16", False),
    ],
)
def test_heatmap_must_keep_the_decision(region: Region, codec: Any, accepted: bool) -> None:
    specs = ONE.specs()
    specs["head.heatmap"] = TargetSpec(OneLevel.teacher["head.heatmap"], codec, region)
    method = build_method(OneLevel.section)
    if accepted:
        method.build(OneLevel.student, specs)
    else:
        with pytest.raises(TargetMismatchError, match="decided in float32"):
            method.build(OneLevel.student, specs)


def test_identity_needs_equal_channels() -> None:
    student: Mapping[str, TapInfo] = {"bev.neck": dense("bev.neck", CHANNELS + 1, WIDE)}
    with pytest.raises(TargetMismatchError, match=r"equal channels, student 4, teacher 3"):
        build_method(OneLevel.section).build(student, ONE.specs())

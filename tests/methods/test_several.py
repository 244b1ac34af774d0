"""Several methods are the sum of each alone, each taught by its own cache."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from bevcask.compose import compose
from bevcask.errors import ConfigError, TargetMismatchError
from bevcask.methods import build_method
from bevcask.methods.base import Method
from bevcask.verbs import DistillConfig
from methods.distillbev_cases import ThreeLevels
from methods.tigdistill_cases import Taught

WEIGHTS = {"far": 2.0, "near": 0.5}


class Near(ThreeLevels):
    pass


class Far(Taught):
    pass


CASES: dict[str, Any] = {"far": Far(), "near": Near()}


def section() -> dict[str, Any]:
    own = {
        name: {**case.section, "weight": WEIGHTS[name], "cache": name}
        for name, case in CASES.items()
    }
    return {"type": "several", "of": own}


def labelled(case: Any, name: str) -> dict[str, Any]:
    return {
        tap if tap == "lidar.pixels" else f"{name}/{tap}": spec
        for tap, spec in case.specs().items()
    }


def test_the_sum_is_that_of_each_alone() -> None:
    for name, case in CASES.items():
        method = build_method({"type": "several", "of": {name: section()["of"][name]}})
        torch.manual_seed(0)
        method.build(case.student, labelled(case, name))
        alone = case.build(seed=0)
        assert sum(p.numel() for p in method.parameters()) == sum(
            p.numel() for p in alone.parameters()
        )
        step = case.step(num_boxes=3)
        expected = step.run(alone)
        step.targets = {
            tap if tap == "lidar.pixels" else f"{name}/{tap}": target
            for tap, target in step.targets.items()
        }
        found = step.run(method)
        assert list(found) == [f"{name}/{term}" for term in expected]
        for term, loss in expected.items():
            torch.testing.assert_close(found[f"{name}/{term}"], WEIGHTS[name] * loss)


def test_each_reads_the_targets_of_its_label() -> None:
    method = build_method(section())
    assert {need.tap for need in method.needs()} >= {"far/bev.neck", "near/bev.neck"}
    assert len({need.role for need in method.needs()}) == len(method.needs())
    with pytest.raises(TargetMismatchError) as caught:
        method.build(CASES["near"].student, labelled(CASES["near"], "near"))
    assert "no target 'far/bev.neck'" in str(caught.value)


def test_the_command_line_says_it() -> None:
    words = ["run=x", "methods=distillbev,tigdistill", "method.tigdistill.inner_depth=0"]
    words += ["method.tigdistill.cache=camera", "method.distillbev.weight=0.25", "cache=a"]
    config = compose(DistillConfig, words, {"method": "none"})
    assert config.method["type"] == "several"
    assert config.method["of"]["tigdistill"]["inner_depth"] == 0
    method = build_method(config.method)
    assert {need.tap for need in method.needs()} >= {"bev.block1", "camera/bev.neck"}
    for wrong in (["method=none"], ["methods=distillbev,distillbev"]):
        with pytest.raises(ConfigError, match="expected different methods"):
            compose(DistillConfig, [*words, *wrong], {"method": "none"})
    with pytest.raises(ConfigError, match=r"methods=|no such method"):
        compose(DistillConfig, ["run=x", "methods=distilbev"], {})


def test_the_command_line_names_several_teachers() -> None:
    words = ["run=x", "cache=lidar=a,camera=b", "teachers=lidar=centerpoint_tiny,camera=spool"]
    words += ["teachers.camera.folder=f", "teachers.lidar.detector.num_sweeps=3"]
    teachers = compose(DistillConfig, words, {}).teachers
    assert teachers["lidar"].detector["num_sweeps"] == 3
    assert teachers["camera"].type == "spool"
    for wrong, told in (
        (["teachers=centerpoint_tiny"], "expected different labels"),
        (["teachers=a=spool,a=spool"], "expected different labels"),
        (["teacher=spool"], "no teacher= beside it"),
        (["teacher.checkpoint=f"], "teachers= names several"),
        (["on_missing=generate"], "fills the cache of one teacher"),
        (["teachers.lidar.type=m:C"], r"teachers\.lidar\.type=m:C: this runs code"),
        (["teachers.lidar.detectors=1"], "detectors: unknown key. Did you mean 'detector'"),
    ):
        with pytest.raises(ConfigError, match=told):
            compose(DistillConfig, [*words, *wrong], {})


def test_wrong_weights_and_two_denoisers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.near\.weight=-1"):
        build_method({"type": "several", "of": {"near": {**CASES["near"].section, "weight": -1}}})
    denoising = {"type": "harmodistill", "denoising": True}
    with pytest.raises(ConfigError, match="a and b both give boxes"):
        build_method({"type": "several", "of": {"a": denoising, "b": denoising}})


def test_boxes_for_denoising_come_from_the_one_that_has_them() -> None:
    class Asking(Method):
        def pairs(self) -> Any:
            return []

        def forward(self, *_: Any) -> Any:
            return {}

        @property
        def denoises(self) -> bool:
            return True

        def pseudo_labels(self, targets: Any, labels: Any, align: Any) -> Any:
            return replace(labels, boxes=[])

    method: Any = build_method(section())
    method._members["near"].method = Asking()
    method._denoiser = method._members["near"]
    step = CASES["near"].step()
    assert method.denoises
    assert method.pseudo_labels(step.targets, step.labels, step.align).boxes == []


def test_a_method_may_read_one_map_of_somebody_else() -> None:
    of = {"distillbev": {"type": "distillbev", "cache": "lidar", "heatmap": "both/head.heatmap"}}
    method = build_method({"type": "several", "of": of})
    assert {need.tap for need in method.needs()} >= {"both/head.heatmap", "lidar/bev.neck"}

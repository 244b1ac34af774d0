"""HarmoDistill: what it asks for, what it accepts, and how it says no."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from bevcask.cache.quantize import encode_targets
from bevcask.config import AugmentConfig, StoreConfig
from bevcask.data.join import dequantised
from bevcask.errors import PlanError, TargetMismatchError
from bevcask.geometry import CLASSES, bev_matrix
from bevcask.groups import load_group
from bevcask.methods import build_method
from bevcask.methods.harmodistill import HarmoDistill
from bevcask.targets.plan import Plan, plan
from bevcask.targets.spec import TapInfo, TargetSpec
from methods.focaldistiller_cases import values
from methods.harmodistill_cases import CASE, LEVELS, SIZES, images, with_settings

RAYDN = ((32, 88), (16, 44), (8, 22), (4, 11))


def published(sizes: tuple[tuple[int, int], ...]) -> dict[str, TapInfo]:
    return {
        name: replace(tap, shape=(6, 256, *tap.shape[2:]))
        for name, tap in images("image.level", 256, sizes).items()
    }


def test_plan_at_published_size() -> None:
    """Spec 3.3: 11.49 MB a frame and view in float16, three quarters of them level 0."""
    needs = build_method(load_group("method", "harmodistill")).needs()
    turned = AugmentConfig(bev_rotation=0.3925, bev_scale=(0.95, 1.05))
    chosen = plan(needs, published(RAYDN), 1, StoreConfig(), turned)
    sizes = [size / 1e6 for size in chosen.bytes_per_frame.values()]
    assert sizes == pytest.approx([8.65, 2.16, 0.54, 0.135], abs=0.01)
    assert {(spec.codec, spec.alignment) for spec in chosen.specs} == {("float16", "exact")}


def test_plan_of_streampetr() -> None:
    """Spec 3.3: one level, 2.16 MB."""
    method = build_method(load_group("method", "harmodistill_streampetr"))
    assert isinstance(method, HarmoDistill)
    chosen = plan(method.needs(), published(((16, 44),)), 1, StoreConfig(), None)
    assert chosen.bytes_per_frame == {"image.level0": pytest.approx(2.16e6, rel=2e-3)}
    assert method.config.levels[0].share == 1


def test_maps_stored_at_the_students_size_say_the_same() -> None:
    """Level 1 is 4 x 5 of the teacher, 2 x 3 of the student: the loss would resize it anyway."""
    section = {**CASE.section, "levels": [at_size(i, size) for i, size in enumerate(SIZES)]}
    specs = {s.name: s for s in plan_of(section).specs}
    assert specs["image.level1"].said_HW == (4, 5)
    step = CASE.step()
    said = {name: target.values for name, target in step.targets.items()}
    stored = dequantised(encode_targets(said, specs.values(), None, ()))
    assert stored["image.level1"].values.shape[-2:] == (2, 3)
    expected, found = (
        values(replace(step, targets=targets).run(CASE.build()))
        for targets in (step.targets, stored)
    )
    assert found == expected


def at_size(level: int, size_HW: tuple[int, int]) -> dict[str, Any]:
    tap = f"image.level{level}"
    return {"name": f"level{level}", "student": tap, "teacher": tap, "size_HW": size_HW}


def plan_of(section: Mapping[str, Any]) -> Plan:
    needs = build_method(section).needs()
    return plan(needs, CASE.teacher, 1, StoreConfig(codec="float32"), None)


def test_a_size_that_is_not_the_students_is_refused() -> None:
    with pytest.raises(TargetMismatchError, match=r"at \(2, 5\) .* 'image.level0' has \(3, 5\)"):
        built(CASE.student, CASE.teacher, levels=[at_size(0, (2, 5))])


def test_images_that_change_need_views() -> None:
    needs, pixels = build_method(CASE.section).needs(), AugmentConfig(image_flip=True)
    with pytest.raises(PlanError, match=r"image\.level3.*an image feature changes with"):
        plan(needs, CASE.teacher, 1, StoreConfig(), pixels)
    views = plan(needs, CASE.teacher, 1, StoreConfig(views=2), pixels)
    assert {spec.alignment for spec in views.specs if "level" in spec.name} == {"replay"}


def test_what_weighs_nothing_is_not_asked_for() -> None:
    method = with_settings(CASE, balanced=0.0).build()
    assert method.needs() == method.student_taps() == []
    assert CASE.step().run(method) == {}


def test_adapters_are_those_of_the_release() -> None:
    """BN, ReLU, 1x1 where widths differ, else nothing; sizes need none."""
    method = CASE.build()
    assert isinstance(method, HarmoDistill)
    kinds = [type(layer) for layer in method.widen["level0_balanced"].children()]
    assert kinds == [nn.BatchNorm2d, nn.ReLU, nn.Conv2d]
    assert all(isinstance(method.widen[f"level{i}_balanced"], nn.Identity) for i in (1, 2, 3))


def built(student: Mapping[str, TapInfo], teacher: Mapping[str, TapInfo], **settings: Any) -> None:
    method = build_method({**CASE.section, **settings})
    method.build(student, {name: TargetSpec(tap, "float32") for name, tap in teacher.items()})


def test_every_mismatch_is_named_at_once() -> None:
    more = replace(CASE.student["image.level1"], shape=(6, 3, 2, 3))
    other = TapInfo("image.level2", "dense_bev", (3, 2, 2))
    with pytest.raises(TargetMismatchError) as caught:
        built({**CASE.student, more.name: more, other.name: other}, CASE.teacher)
    said = str(caught.value)
    assert "level1: student tap 'image.level1' has 6 cameras, target 'image.level1' 2" in said
    assert "level2: student tap 'image.level2' is a dense_bev, expected a image_feature" in said
    assert said.count("\n- ") == 2


def test_compat_refuses_where_the_release_crashes() -> None:
    """45 numbers do not part into two softmaxes; four into eight do."""
    with pytest.raises(TargetMismatchError, match=r"parts 45 numbers .* into 2 softmaxes"):
        built(CASE.student, CASE.teacher, mode="compat")
    built(CASE.student, CASE.teacher)
    built(images("image.level", 4, SIZES), images("image.level", 8, SIZES), mode="compat")


def test_compat_refuses_bev_augmentation() -> None:
    case = with_settings(CASE, mode="compat")
    case.student = images("image.level", 3, SIZES)
    method = case.build()
    with pytest.raises(TargetMismatchError, match=r"harmodistill \(mode=compat\) is defined"):
        case.step(matrix=bev_matrix(0.1)).run(method)
    assert set(values(case.step().run(method))) == set(LEVELS)


def test_compat_lets_channel_pairs_share_a_softmax() -> None:
    """Four channels of the student, eight of the teacher: two constants no longer cancel."""
    losses = {}
    for mode in ("clean", "compat"):
        case = with_settings(CASE, mode=mode)
        case.student, case.teacher = (images("image.level", n, SIZES) for n in (4, 8))
        step = case.step(1)
        step.targets["image.level0"].values = torch.zeros(1, 2, 8, 3, 5)
        method = case.build().eval()
        assert isinstance(method, HarmoDistill)
        last = method.widen["level0_balanced"][-1]  # type: ignore[index]
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.tensor([0.0, 5.0] * 4))
        losses[mode] = values(step.run(method))["level0/balanced"]
    assert losses["clean"] == pytest.approx(0, abs=1e-6)
    assert losses["compat"] > 0.1


def decoder(rows: int = 428, layers: int = 6, channels: int = 256) -> dict[str, TapInfo]:
    taps = (
        TapInfo("query.states", "query_set", (layers * rows, channels), depends_on_images=True),
        TapInfo("query.references", "query_points", (rows, 3), depends_on_images=True),
        TapInfo("query.offsets", "query_points", (layers * rows, 39), depends_on_images=True),
        TapInfo("query.scores", "query_set", (layers * rows, 10), depends_on_images=True),
        TapInfo("head.boxes", "box_set", (300, 11), classes=CLASSES, depends_on_images=True),
    )
    return {tap.name: tap for tap in taps}


def test_plan_of_queries_at_published_size() -> None:
    """Spec 3.3: 1.31 MB of states; points are exact wherever the car turns, states are not."""
    settings = {"type": "harmodistill", "balanced": 0.0, "local": 0.1, "denoising": True}
    needs = build_method(settings).needs()
    turned = AugmentConfig(bev_rotation=0.3925, bev_scale=(0.95, 1.05))
    chosen = plan(needs, decoder(), 1, StoreConfig(), turned)
    found = {spec.name: (spec.codec, spec.alignment) for spec in chosen.specs}
    assert found == {
        "query.states": ("float16", "approximate"),
        "query.references": ("float32", "exact"),
        "query.offsets": ("float32", "exact"),
        "query.scores": ("float16", "approximate"),
        "head.boxes": ("float32", "exact"),
    }
    assert chosen.bytes_per_frame["query.states"] == pytest.approx(1.31e6, rel=5e-3)
    assert chosen.bytes_per_frame["query.offsets"] == pytest.approx(0.4e6, rel=5e-3)


def test_each_term_asks_for_its_own() -> None:
    modulated = [f"image.modulated{i}" for i in range(4)]
    for settings, wanted in (
        ({"modulated": 0.1}, modulated),
        ({"response": 0.1}, [*modulated, "query.states"]),
        ({"modulated": 0.1, "response": 0.1}, [*modulated, "query.states"]),
        ({"denoising": True}, ["head.boxes"]),
    ):
        method = build_method({"type": "harmodistill", "balanced": 0.0, **settings})
        assert [need.tap for need in method.needs()] == wanted
        assert method.student_taps() == [name for name in wanted if name != "head.boxes"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"query.states": (2567, 256)}, "2567 rows of the teacher's 'query.states' are not 6"),
        ({"query.references": (427, 3)}, "'query.references' of the teacher is (427, 3), expected"),
        ({"query.offsets": (2562, 39)}, "'query.scores' must have as many rows, got 2568, 2562 "),
        ({"query.scores": (428, 10)}, "must have as many rows, got 2568, 2568 and 428"),
        ({"query.states": (1800, 256)}, "queries are compared row by row"),
        ({"query.states": (2568, 128)}, "'image.modulated2' of the teacher has 256 channels"),
        ({"head.boxes": ("bus", "car")}, "classes of 'head.boxes' are bus, car; the student's"),
    ],
)  # fmt: skip
def test_queries_that_do_not_fit(changed: Mapping[str, Any], said: str) -> None:
    student = decoder() | images("image.modulated", 256, RAYDN, 256)
    teacher = dict(student)
    for name, value in changed.items():
        field = "classes" if name == "head.boxes" else "shape"
        teacher[name] = replace(teacher[name], **{field: value})
    on = {"local": 0.1, "response": 0.1, "denoising": True, "balanced": 0.0}
    built(student, student, **on)
    with pytest.raises(TargetMismatchError) as caught:
        built(student, teacher, **on)
    assert said in str(caught.value)


def test_a_detector_without_key_points_is_told() -> None:
    """StreamPETR attends everywhere: it has no offsets."""
    student = decoder()
    del student["query.offsets"]
    with pytest.raises(TargetMismatchError, match=r"the student has no tap 'query\.offsets'"):
        built(student, decoder(), local=0.1, balanced=0.0)

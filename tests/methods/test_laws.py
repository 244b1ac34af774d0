"""What scaling does to every term: weights, temperature, thresholds; what keeps precision."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from bevcask.cache.quantize import dequantize, encode
from bevcask.config import StoreConfig
from bevcask.methods import build_method
from bevcask.methods.base import Method, Target
from bevcask.methods.distillbev import attention
from bevcask.targets.align import Align
from bevcask.targets.plan import plan
from contracts.method import FLIP, TURN, MethodContract
from methods import (
    focaldistiller_cases,
    harmodistill_cases,
    oracle_distillbev,
    simdistill_cases,
    tigdistill_cases,
)
from methods import oracle_simdistill as simdistill_loops
from methods.distillbev_cases import (
    ONE,
    TERMS,
    WIDE,
    OneLevel,
    heatmap,
    oracle,
    set_kernel,
    values,
    wider,
)

CASES: dict[str, tuple[MethodContract, tuple[str, ...]]] = {
    "distillbev": (ONE, TERMS),
    "tigdistill": (tigdistill_cases.CASE, ("inter_channel", "inter_keypoint", "inner_depth")),
    "simdistill": (simdistill_cases.PLAIN, simdistill_cases.TERMS),
    "focaldistiller": (focaldistiller_cases.PLAIN, ()),  # weights: test_focaldistiller
    "harmodistill": (harmodistill_cases.PLAIN, ()),  # weights: test_harmodistill
}


def with_settings(case: MethodContract, **settings: Any) -> MethodContract:
    """Return the case with other settings of its method."""
    other = type(case)()
    other.section = {**case.section, **settings}
    return other


@pytest.mark.parametrize(
    ("name", "term"), [(name, term) for name, (_, terms) in CASES.items() for term in terms]
)
def test_a_weight_scales_its_own_term_and_no_other(name: str, term: str) -> None:
    case = CASES[name][0]
    method = case.build()
    heavy = with_settings(case, **{term: 3 * getattr(method.config, term)}).build()
    step = case.step(2, 5, seed=1, matrix=TURN)
    before, after = values(step.run(method)), values(step.run(heavy))
    assert min(before.values()) > 0
    expected = {key: loss * (3 if key == term else 1) for key, loss in before.items()}
    assert after == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_losses_keep_their_precision_under_autocast(name: str) -> None:
    """Float32 maps give the same bits; only adapters run in half precision."""
    case = CASES[name][0]
    method, step = case.build().eval(), case.step(2, 5, seed=1, matrix=TURN)
    assert isinstance(method, Method)
    expected = step.run(method)
    with torch.autocast("cpu", torch.bfloat16):
        found = step.run(method)
    for term, loss in expected.items():
        assert torch.equal(found[term], loss), term


@pytest.mark.parametrize("name", CASES)
def test_half_precision_maps_are_read_in_float32(name: str) -> None:
    """What was rounded before it came stays rounded; nothing is rounded again."""
    case = CASES[name][0]
    method, step = case.build().eval(), case.step(2, 5, seed=1, matrix=TURN)
    assert isinstance(method, Method)
    half = {tap: value.detach().bfloat16() for tap, value in step.student.items()}
    full = {tap: value.float() for tap, value in half.items()}
    found, expected = (replace(step, student=maps).run(method) for maps in (half, full))
    for term, loss in expected.items():
        assert torch.equal(found[term], loss), term


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_attention_sees_maps_in_units_of_the_temperature(factor: float) -> None:
    """Both k times as large: attention stays, squared gaps grow by k^2, absolute ones by k."""
    method = ONE.build()
    hot = with_settings(ONE, temperature=factor * 0.5).build()
    step = ONE.step(2, 6, seed=3, matrix=TURN)
    step.targets["bev.neck"].values *= 3  # attention is far from flat
    before = values(step.run(set_bias(method)))
    step.targets["bev.neck"].values *= factor
    step.student["bev.neck"] = step.student["bev.neck"].detach() * factor
    after = values(step.run(set_bias(hot)))
    for term in TERMS:
        power = 1 if term == "spatial" else 2
        assert after[term] == pytest.approx(factor**power * before[term], rel=1e-5), term


def set_bias(method: Method) -> Method:
    """Return the method with a linear smoothing: no bias."""
    kernel = torch.tensor([[0.1, 0.2, 0.3], [0.0, 0.5, -0.2], [0.4, 0.1, -0.1]])
    set_kernel(method, kernel, 0.0)
    return method


@pytest.mark.parametrize("temperature", [1e-3, 1e4])
def test_attention_at_extreme_temperatures(temperature: float) -> None:
    """Cold: all on the strongest valid cell, and no overflow; hot: everywhere alike."""
    map_BCYX = torch.rand(2, 3, 5, 4)
    valid = torch.rand(2, 5, 4) > 0.3
    map_BCYX[0, :, 2, 1] = map_BCYX[1, :, 4, 0] = 2.0
    valid[0, 2, 1] = valid[1, 4, 0] = True
    found = attention(map_BCYX, valid, temperature)
    expected = valid.float()
    if temperature < 1:
        expected = torch.zeros_like(found)
        expected[0, 2, 1], expected[1, 4, 0] = valid.sum((1, 2)).tolist()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_distillbev_oracle_at_other_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle_distillbev, "TAU", 1.7)
    monkeypatch.setattr(oracle_distillbev, "GAMMA", 0.3)
    case = with_settings(ONE, temperature=1.7, threshold=0.3)
    method, step = case.build(), case.step(2, 7, seed=5, matrix=TURN)
    step.targets["bev.neck"].values *= 4
    confident = step.targets["head.heatmap"].region_BYX
    assert confident is not None
    assert 0.1 < confident.float().mean() < 0.99
    expected = oracle(method, step)
    whole = replace(step.targets["head.heatmap"], region_BYX=None)
    float32 = replace(step, targets={**step.targets, "head.heatmap": whole})
    for given in (step, float32):  # bits decided at extraction, and the map itself
        found = values(given.run(method))
        for term in TERMS:
            assert expected[term] > 0
            assert found[term] == pytest.approx(expected[term], rel=2e-5), term


def test_a_students_claims_move_with_it_and_obey_the_threshold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a flipped student claims, flipped back, is what the oracle is told in its own frame."""
    monkeypatch.setattr(oracle_distillbev, "GAMMA", 0.3)
    case = with_settings(ONE, threshold=0.3, false_positives_by="student")
    case.student = {**OneLevel.student, "head.heatmap": heatmap(WIDE)}
    flip = torch.diag(torch.tensor([-1.0, 1, 1, 1]))
    method, step = case.build(), case.step(2, 5, seed=1, matrix=flip)
    own = step.student["head.heatmap"].detach().clamp(min=0) * 0.5
    step.student["head.heatmap"] = own
    assert 0.1 < (own.amax(1) > 0.3).float().mean() < 0.9
    told = replace(step, targets={**step.targets, "head.heatmap": Target(own.flip(-1))})
    expected, found = oracle(method, told), values(step.run(method))
    for term in TERMS:
        assert found[term] == pytest.approx(expected[term], rel=2e-5), term


def test_simdistill_oracle_at_other_settings() -> None:
    """The threshold decides what divides the heatmaps' term, the velocity weight what codes say."""
    case = with_settings(simdistill_cases.PLAIN, threshold=0.6)
    method, step = case.build(), case.step(2, 5, seed=2)
    maps = step.student["head.heatmap"], step.targets["head.heatmap"].values
    near, far = (own.detach().double().numpy() for own in maps)
    loss = simdistill_loops.quality_term(
        near, far, step.align.matrices_B44, simdistill_loops.Square(12, 1.0), threshold=0.6
    )
    assert values(step.run(method))["quality"] == pytest.approx(0.25 * loss, rel=1e-5)
    slow = with_settings(simdistill_cases.PLAIN, velocity=0.0).build()
    before = values(step.run(slow))["box"]
    step.student["head.codes"] = step.student["head.codes"].detach().clone()
    speeds = [10 * task + 8 + axis for task in range(6) for axis in range(2)]
    step.student["head.codes"][:, speeds] += 5
    assert values(step.run(slow))["box"] == before
    assert values(step.run(method))["box"] > before


def test_threshold_itself_is_no_claim() -> None:
    """`> gamma`, in float32: a heatmap of exactly the threshold claims nothing."""
    case = with_settings(ONE, threshold=0.25)
    method, step = case.build(), case.step(1, 0)
    step.targets["head.heatmap"] = Target(torch.full((1, 10, 16, 16), 0.25))
    assert values(step.run(method))["false_positive"] == 0
    step.targets["head.heatmap"].values[0, 3, 4, 5] = 0.2500001
    assert values(step.run(method))["false_positive"] > 0


def test_a_teacher_at_the_threshold_sees_no_object() -> None:
    """Of two cars of the teacher one counts, so the sum of both cells is divided by one."""
    method = with_settings(simdistill_cases.PLAIN, threshold=0.25).build()
    step = simdistill_cases.scene()
    heat = step.targets["head.heatmap"].values
    heat[0, 0, 2, 3], heat[0, 0, 7, 7] = 0.25, 0.5
    once = values(step.run(method))["quality"]
    heat[0, 0, 2, 3] = 0.2500001
    assert values(step.run(method))["quality"] == pytest.approx(once / 2, rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_repeated_batch_changes_nothing(name: str) -> None:
    """Sums run over samples, boxes or cells, and are divided by as many; `quality` is a sum."""
    case = CASES[name][0]
    method, step = case.build().eval(), case.step(1, 5, seed=4, matrix=TURN)
    assert isinstance(method, Method)
    once = values(step.run(method))
    labels, images = step.labels, step.align.images
    targets = {
        key: replace(
            target,
            values=target.values.repeat(3, *[1] * (target.values.ndim - 1)),
            region_BYX=None if target.region_BYX is None else target.region_BYX.repeat(3, 1, 1),
            count_B=None if target.count_B is None else target.count_B.repeat(3),
        )
        for key, target in step.targets.items()
    }
    if images is not None:
        images = replace(images, matrices_BV33=images.matrices_BV33.repeat(3, 1, 1, 1))
    thrice = replace(
        step,
        student={
            key: value.detach().repeat(3, *[1] * (value.ndim - 1))
            for key, value in step.student.items()
        },
        targets=targets,
        labels=replace(
            labels,
            boxes=labels.boxes * 3,
            classes=labels.classes * 3,
            canonical_boxes=labels.canonical_boxes * 3,
        ),
        align=Align(torch.as_tensor(step.align.matrices_B44).repeat(3, 1, 1), images),
    )
    assert min(once.values()) > 0
    expected = {key: value * (3 if key == "quality" else 1) for key, value in once.items()}
    assert values(thrice.run(method)) == pytest.approx(expected, rel=1e-5)


GOALS = {"float32": (0.0, 0.0), "float16": (1e-4, 1e-3), "auto": (1e-3, 1e-2)}


@pytest.mark.parametrize("codec", GOALS)
@pytest.mark.parametrize("name", CASES)
def test_stored_targets_change_little(name: str, codec: Any) -> None:
    """Every term, and the gradient of all on the student as one vector.

    Flipped, not turned: among the peaks of noise, float16 makes ties, and each is drawn anew.
    """
    case = wider(32) if name == "distillbev" else CASES[name][0]
    method, step = case.build().eval(), case.step(2, 6, seed=2, matrix=FLIP)
    assert isinstance(method, Method)
    needs = build_method(case.section).needs()
    stored = dict(step.targets)
    for spec in plan(needs, case.teacher, 1, StoreConfig(codec=codec), None).specs:
        if spec.name in stored and spec.tap.kind != "point_set":
            encoded = encode(
                step.targets[spec.name].values, spec, boxes=step.labels.canonical_boxes
            )
            stored[spec.name] = Target(dequantize(encoded.values, encoded.scale), encoded.region)
    terms, slopes = [], []
    for targets in (step.targets, stored):
        losses = replace(step, targets=targets).run(method)
        total = torch.stack(list(losses.values())).sum()
        found = torch.autograd.grad(total, [step.student[tap] for tap in method.student_taps()])
        terms.append(values(losses))
        slopes.append(torch.cat([slope.flatten() for slope in found]))
    loss, gradient = GOALS[codec]
    assert terms[1] == pytest.approx(terms[0], rel=loss)
    assert (slopes[1] - slopes[0]).norm() <= gradient * slopes[0].norm()
    assert (terms[1] == terms[0]) == (codec == "float32")

"""HarmoDistill's image levels: hand-computed terms, the loop oracle, gradients, scaling laws."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.cache.quantize import dequantize, encode
from bevcask.detectors.bevformer import BEVFormer
from bevcask.errors import ConfigError
from bevcask.methods import build_method
from bevcask.methods.balanced import Balance, balanced
from bevcask.methods.harmodistill import HarmoDistill
from bevcask.stages.student_distill import require_denoising
from bevcask.targets.spec import TargetSpec
from contracts.method import Step
from methods import oracle_harmodistill as oracle
from methods.focaldistiller_cases import double, values
from methods.harmodistill_cases import CASE, LEVELS, PLAIN, Small, images, with_settings

TERMS = tuple(f"harmodistill/{name}" for name in LEVELS)
FORWARD, REVERSE = Balance(1, 0, 4, 4), Balance(0, 1, 4, 4)


class TestHarmoDistill(Small):
    pass


def two(*logits: float) -> Tensor:
    return torch.tensor([[logits]], dtype=torch.float64)


def test_divergences_by_hand() -> None:
    """p = (1/5, 4/5) against (1/2, 1/2): what was two logits apart is 4 ln 4."""
    student, teacher = two(0.0, 4 * math.log(4)), two(1.0, 1.0)
    forward = -(math.log(2 / 5) + math.log(8 / 5)) / 2
    reverse = math.log(2 / 5) / 5 + 4 * math.log(8 / 5) / 5
    assert float(balanced(student, teacher, FORWARD)) == pytest.approx(16 * forward)
    assert float(balanced(student, teacher, REVERSE)) == pytest.approx(16 * reverse)
    both = Balance(2.0, 3.0, 4, 4)
    expected = 16 * (2 * forward + 3 * reverse)
    assert float(balanced(student, teacher, both)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("progress", "settings", "factors"),
    [
        (0.0, {}, (7.0, 0.0)),
        (0.25, {}, (5.25, 1.75)),
        (1.0, {}, (0.0, 7.0)),
        (0.25, {"schedule": False}, (1.0, 7.0)),
        (0.25, {"schedule": False, "balance": 2.0}, (1.0, 2.0)),
    ],
)
def test_a_level_by_hand(
    progress: float, settings: Mapping[str, Any], factors: tuple[float, float]
) -> None:
    """One channel of three of one image of two is not what the teacher said; level 3: a tenth."""
    step = PLAIN.step(1)
    for name, target in step.targets.items():
        step.student[name] = torch.ones_like(target.values)
        target.values = torch.ones_like(target.values)
    step.student["image.level2"][0, 1, 2, 0] = torch.tensor([0.0, 0.0])
    step.student["image.level2"][0, 1, 2, 1] = torch.tensor([4 * math.log(4)] * 2)
    step.student["image.level3"][0, 1, 2, 0] = torch.tensor([0.0, 4 * math.log(4)])
    forward = -(math.log(2 / 5) + math.log(8 / 5)) / 2  # four positions: 1/10, 1/10, 4/10, 4/10
    reverse = math.log(2 / 5) / 5 + 4 * math.log(8 / 5) / 5
    found = values(step.run(with_settings(PLAIN, **settings).build(), progress))
    expected = 0.1 * 16 * (factors[0] * forward + factors[1] * reverse) / (2 * 3)
    assert found["level2/balanced"] == pytest.approx(expected, rel=1e-5)
    assert found["level3/balanced"] == pytest.approx(expected / 10, rel=1e-5)
    assert found["level0/balanced"] == found["level1/balanced"] == 0


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_gradients_are_those_of_the_formulas(tau: float) -> None:
    """Forward: tau (p - t). Reverse: tau p (log p - log t - KL)."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = (
        torch.randn(2, 3, 7, generator=generator, dtype=torch.float64) * 5 for _ in range(2)
    )
    student.requires_grad_()
    p, t = ((own / tau).softmax(2) for own in (student, teacher))
    gap = p.log() - t.log()
    slopes = {
        Balance(1, 0, tau, 9): tau * (p - t),
        Balance(0, 1, 9, tau): tau * p * (gap - (p * gap).sum(2, keepdim=True)),
    }
    for balance, expected in slopes.items():
        [slope] = torch.autograd.grad(balanced(student, teacher, balance), student)
        torch.testing.assert_close(slope, expected.detach() / 6, rtol=1e-10, atol=1e-12)
        assert slope.sum(2).abs().max() < 1e-12


def loops(
    method: HarmoDistill, step: Step, settings: Mapping[str, Any], progress: float
) -> dict[str, float]:
    weight, rho = settings.get("balanced", 0.1), settings.get("balance", 7.0)
    taus = settings.get("forward_temperature", 4.0), settings.get("reverse_temperature", 4.0)
    factors = oracle.factors(progress, rho, settings.get("schedule", True))
    compat = settings.get("mode") == "compat"
    found = {}
    for i in range(4):
        near, far = step.student[f"image.level{i}"], step.targets[f"image.level{i}"].values
        with torch.no_grad():
            wide = method.widen[f"level{i}_balanced"](near.flatten(0, 1)).numpy()
        softmaxes = near.shape[2] if compat else wide.shape[1]
        loss = oracle.balanced(wide, far.flatten(0, 1).numpy(), factors, taus, softmaxes)
        found[LEVELS[i]] = weight * (0.1 if i == 3 else 1) * loss
    return found


OTHERS = {
    "balanced": 0.3,
    "balance": 2.0,
    "forward_temperature": 0.7,
    "reverse_temperature": 1.5,
}


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "settings",
    [{}, OTHERS, {"schedule": False}, {"mode": "compat"}],
    ids=["released", "others", "no schedule", "compat"],
)
def test_against_the_oracle(settings: Mapping[str, Any], progress: float) -> None:
    """Compat: three channels of 15 positions are parted into two softmaxes, not three."""
    case = with_settings(CASE, **settings)
    if "mode" in settings:  # six positions a row: 3 x 3 x 6 numbers part in two
        case.student = {
            **case.student,
            "image.level0": replace(case.student["image.level0"], shape=(2, 2, 3, 6)),
        }
    method = case.build(1).eval().double()
    assert isinstance(method, HarmoDistill)
    step = double(case.step(2, 1, 5))
    expected = loops(method, step, settings, progress)
    assert min(expected.values()) > 0
    assert values(step.run(method, progress)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("read", ["image.level0", "image.level1", "image.level3"])
def test_gradients_by_finite_differences(read: str) -> None:
    method, step = CASE.build().eval().double(), double(CASE.step(2, 1, 4))

    def loss(value: Tensor) -> Tensor:
        losses = replace(step, student=step.student | {read: value}).run(method, 0.4)
        return torch.stack(list(losses.values())).sum()

    value = step.student[read].requires_grad_()
    assert torch.autograd.gradcheck(loss, (value,), fast_mode=True, atol=1e-6)
    assert torch.autograd.grad(loss(value), value)[0].abs().sum() > 0


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_both_directions_meet_in_between(progress: float) -> None:
    """A step is what its share of either end says; without schedule the ends are told apart."""
    step, usual = PLAIN.step(2, 3), PLAIN.build()
    first, last = (values(step.run(usual, end)) for end in (0.0, 1.0))
    found = values(step.run(usual, progress))
    assert first != last
    for name in LEVELS:
        expected = (1 - progress) * first[name] + progress * last[name]
        assert found[name] == pytest.approx(expected, rel=1e-5)
    off = values(step.run(with_settings(PLAIN, schedule=False).build(), progress))
    for name in LEVELS:
        assert off[name] == pytest.approx(first[name] / 7 + last[name], rel=1e-5)


def test_weights_and_rho_scale_every_level() -> None:
    step = CASE.step(2, 5)
    before = values(step.run(CASE.build()))
    for setting, value in (("balanced", 0.3), ("balance", 21.0)):
        after = values(step.run(with_settings(CASE, **{setting: value}).build()))
        assert after == pytest.approx({k: 3 * v for k, v in before.items()}, rel=1e-6)


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_maps_in_units_of_the_temperature_lose_its_square(progress: float) -> None:
    """And the temperature of the direction that is off is not read."""
    step = PLAIN.step(2, 3)
    before = values(step.run(PLAIN.build(), progress))
    for name in PLAIN.student:
        step.student[name] = step.student[name].detach() * 3
        step.targets[name].values *= 3
    own, other = ("forward", "reverse") if progress == 0 else ("reverse", "forward")
    hot = with_settings(PLAIN, **{f"{own}_temperature": 12.0, f"{other}_temperature": 0.01})
    after = values(step.run(hot.build(), progress))
    assert after == pytest.approx({k: 9 * v for k, v in before.items()}, rel=1e-4)


def test_more_channels_or_images_of_the_same_change_nothing() -> None:
    """The divisor is N C."""
    step = PLAIN.step(1, 3)
    before = values(step.run(PLAIN.build()))
    for dim in (1, 2):
        other, twice = type(PLAIN)(), replace(step, student={}, targets={})
        taps = {}
        for name, tap in PLAIN.student.items():
            shape = list(tap.shape)
            shape[dim - 1] *= 2
            taps[name] = replace(tap, shape=tuple(shape))
            own, target = step.student[name].detach(), step.targets[name]
            twice.student[name] = torch.cat([own, own], dim)
            twice.targets[name] = replace(target, values=torch.cat([target.values] * 2, dim))
        other.student = other.teacher = taps
        assert values(twice.run(other.build())) == pytest.approx(before, rel=1e-5)


def test_a_target_stored_at_the_students_size_is_the_same_to_the_bit() -> None:
    """Nothing of the teacher is trained before the resize."""
    step, method = CASE.step(2, 1), CASE.build().eval()
    assert isinstance(method, HarmoDistill)
    before = step.run(method)
    target = step.targets["image.level1"]
    small = torch.nn.functional.interpolate(
        target.values.flatten(0, 1), size=(2, 3), mode="bilinear", align_corners=True
    )
    target.values = small.unflatten(0, target.values.shape[:2])
    after = step.run(method)
    for name in TERMS:
        assert torch.equal(after[name], before[name])


def test_a_constant_added_to_a_map_changes_nothing() -> None:
    step, method = CASE.step(2, 1), CASE.build().eval()
    before = values(step.run(method))
    for target in step.targets.values():
        target.values = target.values + torch.randn(2, 2, 3, 1, 1)
    assert values(step.run(method)) == pytest.approx(before, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(("codec", "most"), [("float32", 0.0), ("float16", 1e-3), ("int8", 1e-2)])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_what_a_codec_changes(codec: Any, most: float, progress: float) -> None:
    """Of loss and gradient, on heavy-tailed maps that are half alike."""
    case = type(PLAIN)()
    case.student = case.teacher = images("image.level", 8, ((16, 44), (8, 22), (4, 11), (2, 6)), 8)
    method, step = case.build(), case.step(1)
    generator = torch.Generator().manual_seed(3)
    for name, target in step.targets.items():
        said = torch.randn(target.values.shape, generator=generator)
        target.values = said.sign() * said.abs() ** 2 * 2
        own = torch.randn(target.values.shape, generator=generator)
        step.student[name] = (0.5 * target.values + own).requires_grad_()
    exact = with_slope(method, step, progress)
    for name, target in step.targets.items():
        spec = TargetSpec(case.teacher[name], codec)
        kept = encode(target.values, spec)
        target.values = dequantize(kept.values, kept.scale)
    stored = with_slope(method, step, progress)
    for before, after in zip(exact, stored, strict=True):
        gap = float((after - before).norm() / before.norm())
        assert gap <= most
        assert (gap > 0) == (most > 0)


def with_slope(method: Any, step: Step, progress: float) -> list[Tensor]:
    loss = torch.stack(list(step.run(method, progress).values())).sum()
    slopes = torch.autograd.grad(loss, list(step.student.values()))
    return [loss.detach(), torch.cat([slope.flatten() for slope in slopes])]


def test_boxes_for_denoising_queries_need_a_student_that_builds_them() -> None:
    require_denoising(build_method({"type": "harmodistill"}), BEVFormer)
    with pytest.raises(ConfigError, match="BEVFormer is trained without denoising queries"):
        require_denoising(build_method({"type": "harmodistill", "denoising": True}), BEVFormer)

"""DistillBEV: hand-computed terms, the loop oracle, identities, and what may not change a loss."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.cache.quantize import dequantize, encode
from bevcask.detectors.base import Labels
from bevcask.geometry import Grid, bev_matrix
from bevcask.methods.base import Target
from bevcask.methods.distillbev import attention, channel_attention
from bevcask.targets.align import Align
from bevcask.targets.spec import Region, TapInfo, TargetSpec
from contracts.method import FLIP, TURN
from methods.distillbev_cases import (
    CHANNELS,
    MOVES,
    ONE,
    TERMS,
    WIDE,
    OneLevel,
    ThreeLevels,
    delta,
    dense,
    heatmap,
    oracle,
    set_kernel,
    values,
    wider,
)


class TestThreeLevels(ThreeLevels):
    pass


class TestOneLevel(OneLevel):
    pass


def test_every_term_by_hand() -> None:
    """Constant maps, S = 2 and T = 0: attention and kappa are 1, every squared gap is 4 a channel.

    One 2 x 1 m box (two cells, scale 1/sqrt 2) and ten confident cells far from it.
    """
    method = ONE.build()
    set_kernel(method, delta())
    box = torch.tensor([[1.0, 0.5, 0.0, 2.0, 1.0, 1.5, 0.0, 0.0, 0.0]])
    confident = torch.zeros(1, 16, 16, dtype=torch.bool)
    confident[0, 0, :10] = True
    targets = {
        "bev.neck": Target(torch.zeros(1, CHANNELS, 16, 16)),
        "head.heatmap": Target(torch.zeros(1, 10, 16, 16), confident),
    }
    labels = Labels([box], [torch.zeros(1, dtype=torch.int64)], [box])
    student: Mapping[str, TapInfo] = {"bev.neck": torch.full((1, CHANNELS, 16, 16), 2.0)}
    terms = values(method(student, targets, labels, Align.identity(1), 0.0))
    gap = 4.0 * CHANNELS
    assert terms["foreground"] == pytest.approx(6e-3 * 2 / math.sqrt(2) * gap)
    assert terms["background"] == pytest.approx(4e-2 * gap)
    assert terms["false_positive"] == pytest.approx(6e-2 * gap)
    assert terms["spatial"] == pytest.approx(2.5e-3 * 256 * 2)


def test_attention_by_hand() -> None:
    """Two valid cells with energies 0.5 ln 3 and 0 at tau 0.5: weights 3/4, 1/4, times two."""
    map_BCYX = torch.zeros(1, 2, 1, 3)
    map_BCYX[0, :, 0, 0] = torch.tensor([-math.log(3.0), 0.0])
    map_BCYX[0, :, 0, 2] = 99.0
    valid = torch.tensor([[[True, True, False]]])
    torch.testing.assert_close(attention(map_BCYX, valid, 0.5), torch.tensor([[[1.5, 0.5, 0.0]]]))
    assert (attention(map_BCYX, torch.zeros_like(valid), 0.5) == 0).all()


def test_channel_attention_by_hand() -> None:
    """Channel means 0.5 ln 3 and 0: softmax 3/4, 1/4, times two channels; invalid cells unseen."""
    map_BCYX = torch.zeros(1, 2, 1, 3)
    map_BCYX[0, 0, 0, :2] = torch.tensor([-1.0, 1.0]) * 0.5 * math.log(3.0)
    map_BCYX[0, 1, 0, 2] = 99.0
    valid = torch.tensor([[[True, True, False]]])
    torch.testing.assert_close(channel_attention(map_BCYX, valid, 0.5), torch.tensor([[1.5, 0.5]]))


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("seed", range(2))
def test_against_the_loop_oracle(move: str, seed: int) -> None:
    method = ONE.build(seed)
    step = ONE.step(2, 7, seed=seed, matrix=MOVES[move])
    step.targets["bev.neck"].values *= 3
    expected = oracle(method, step)
    found = values(step.run(method))
    assert all(expected[term] > 0 for term in TERMS)
    for term in TERMS:
        assert found[term] == pytest.approx(expected[term], rel=2e-5), term


@pytest.mark.parametrize("move", MOVES)
def test_oracle_on_grids_of_another_size(move: str) -> None:
    """A student that is finer and narrower than 0.8 m targets; cells beyond it count nowhere."""
    target, narrow = Grid.square(6.4, 0.8), Grid.square(5.0, 0.5)
    case = OneLevel()
    case.student = {"bev.neck": dense("bev.neck", CHANNELS, narrow)}
    case.teacher = {
        "bev.neck": dense("bev.neck", CHANNELS, target),
        "head.heatmap": heatmap(target),
    }
    method, step = case.build(), case.step(2, 9, seed=3, matrix=MOVES[move])
    expected, found = oracle(method, step, narrow, target), values(step.run(method))
    for term in TERMS:
        assert found[term] == pytest.approx(expected[term], rel=2e-5), term


@pytest.mark.parametrize("matrix", [bev_matrix(), FLIP, TURN], ids=["clean", "flip", "turn"])
def test_gradients_by_finite_differences(matrix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention is constant to the gradient: freezing it changes nothing, and then all agrees."""
    method, step = ONE.build().double(), ONE.step(1, 4, matrix=matrix)
    far = step.targets["bev.neck"].values.double()
    step.targets["bev.neck"] = Target(far)
    near = step.student["bev.neck"].detach().double().requires_grad_()
    sampled, valid = step.align.cells(near.detach(), WIDE, WIDE)
    frozen = (attention(far, valid, 0.5) + attention(sampled, valid, 0.5)) / 2

    def terms(near: Tensor) -> tuple[Tensor, ...]:
        losses = method({"bev.neck": near}, step.targets, step.labels, step.align, 0.0)
        return tuple(losses.values())

    free = [torch.autograd.grad(loss, near, retain_graph=True)[0] for loss in terms(near)]
    monkeypatch.setattr("bevcask.methods.distillbev.attention", lambda *_: frozen)
    held = [torch.autograd.grad(loss, near, retain_graph=True)[0] for loss in terms(near)]
    for one, other in zip(free, held, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(terms, (near,), fast_mode=True)


def test_spatial_term_trains_its_convolution() -> None:
    method, step = ONE.build(), ONE.step()
    step.run(method)["distillbev/neck/spatial"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


@pytest.mark.parametrize(
    "matrix", [FLIP, bev_matrix(flip_y=True), bev_matrix(flip_x=True, flip_y=True)]
)
def test_flipped_student_scores_the_same(matrix: Any) -> None:
    """A student that sees the flipped world and says the flipped map has lost nothing."""
    method = ONE.build()
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16  # looks the same flipped
    set_kernel(method, kernel, 0.1)
    plain = ONE.step(2, 6, seed=4)
    canonical = plain.labels.canonical_boxes
    align = Align(torch.as_tensor(matrix).expand(2, 4, 4))
    labels = Labels(align.boxes(canonical), plain.labels.classes, canonical)
    moved, _ = align.cells(plain.student["bev.neck"].detach(), WIDE, WIDE)  # own inverse
    flipped = replace(plain, student={"bev.neck": moved}, labels=labels, align=align)
    expected, found = values(plain.run(method)), values(flipped.run(method))
    for term in TERMS:
        assert found[term] == pytest.approx(expected[term], rel=1e-6)
    shifted = replace(flipped, align=Align.identity(2))
    assert values(shifted.run(method))["foreground"] != pytest.approx(expected["foreground"])


@pytest.mark.parametrize("move", MOVES)
def test_a_mean_over_channels_moves_like_its_map(move: str) -> None:
    """Interpolation is linear: the attention of a moved non-negative map needs only its mean."""
    align = Align(torch.as_tensor(MOVES[move])[None])
    map_BCYX = torch.rand(1, 64, 16, 16)
    moved, valid = align.cells(map_BCYX, WIDE, WIDE)
    mean, _ = align.cells(map_BCYX.mean(1, keepdim=True), WIDE, WIDE)
    torch.testing.assert_close(moved.mean(1), mean[:, 0], rtol=0, atol=1e-6)
    found, expected = (attention(maps, valid, 0.5) for maps in (mean, moved))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_more_channels_of_the_same() -> None:
    """Sums run over channels, means over channels stay: doubled maps double all but spatial."""
    twice = wider(2 * CHANNELS)
    step, method = ONE.step(), ONE.build()
    doubled = replace(
        step,
        student={"bev.neck": torch.cat([step.student["bev.neck"]] * 2, 1)},
        targets={
            **step.targets,
            "bev.neck": Target(torch.cat([step.targets["bev.neck"].values] * 2, 1)),
        },
    )
    wide = twice.build()
    wide.load_state_dict(method.state_dict())
    narrow_terms, wide_terms = values(step.run(method)), values(doubled.run(wide))
    for term in TERMS:
        factor = 1 if term == "spatial" else 2
        assert wide_terms[term] == pytest.approx(factor * narrow_terms[term], rel=1e-5)


@pytest.mark.parametrize("matrix", [bev_matrix(), FLIP, TURN], ids=["clean", "flip", "turn"])
def test_quantised_teacher(matrix: Any) -> None:
    """One byte a value moves losses by less than 1e-3 and gradients by less than 1e-2."""
    case = wider(32)
    method, step = case.build(), case.step(2, 6, seed=2, matrix=matrix)
    generator = torch.Generator().manual_seed(0)
    step.targets["bev.neck"] = Target(torch.randn((2, 32, 16, 16), generator=generator).relu())
    stored = {}
    for name, codec, region in (
        ("bev.neck", "uint8", Region()),
        ("head.heatmap", "uint8", Region("confident", 0.1)),
    ):
        spec = TargetSpec(case.teacher[name], codec, region)  # type: ignore[arg-type]
        encoded = encode(step.targets[name].values, spec)
        stored[name] = Target(dequantize(encoded.values, encoded.scale), encoded.region)
    gradients, terms = [], []
    for targets in (step.targets, stored):
        step.student["bev.neck"].grad = None
        losses = method(step.student, targets, step.labels, step.align, 0.0)
        torch.stack(list(losses.values())).sum().backward()
        gradient = step.student["bev.neck"].grad
        assert gradient is not None
        gradients.append(gradient.clone())
        terms.append(values(losses))
    for term in TERMS:
        assert terms[1][term] == pytest.approx(terms[0][term], rel=1e-3)
        assert terms[1][term] != terms[0][term]
    assert (gradients[1] - gradients[0]).norm() < 1e-2 * gradients[0].norm()


def test_false_positives_are_the_stored_bits() -> None:
    """Without bits the float32 heatmap decides; with them its values no longer matter."""
    method, step = ONE.build(), ONE.step()
    heat = step.targets["head.heatmap"]
    whole = Target(heat.values)
    blurred = Target(torch.full_like(heat.values, 0.5), heat.region_BYX)
    expected = values(step.run(method))
    assert expected["false_positive"] > 0
    for target in (whole, blurred):
        step.targets["head.heatmap"] = target
        assert values(step.run(method)) == expected

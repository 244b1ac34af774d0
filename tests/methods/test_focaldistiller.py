"""FocalDistiller: hand-computed terms, the loop oracle, scaling laws, and what is never read."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.cache.quantize import encode
from bevcask.geometry import bev_matrix
from bevcask.methods.focaldistiller import FocalDistiller, channelwise
from bevcask.targets.align import Align
from bevcask.targets.spec import Region, TargetSpec
from contracts.method import FLIP, TURN, Step
from methods import oracle_focaldistiller as oracle
from methods.focaldistiller_cases import (
    CASE,
    FINE,
    IMAGES,
    MOVES,
    PLAIN,
    Small,
    double,
    scene,
    values,
)
from methods.oracle_simdistill import Square
from methods.test_laws import with_settings

BLOB = 1 + 2 * math.exp(-0.72) + 2 * math.exp(-2.88)  # of a car: 5 cells, sigma 5/6
SQUARES = 1 + 2 * math.exp(-1.44) + 2 * math.exp(-5.76)


class TestFocalDistiller(Small):
    pass


@pytest.mark.parametrize("mode", ["clean", "compat"])
def test_channelwise_by_hand(mode: str) -> None:
    """Level 3 has two positions: p = (1/5, 4/5) against (1/2, 1/2), one channel of three."""
    step = scene()
    step.student["image.level3"][0, 1, 2, 0] = torch.tensor([0.0, 2 * math.log(4)])
    found = values(step.run(with_settings(PLAIN, mode=mode).build()))
    entropy = math.log(2)
    gap = -(math.log(1 / 5) + math.log(4 / 5)) / 2 - entropy
    expected = 0.25 * 4 * gap / (2 * 3)
    if mode == "compat":
        expected += 0.25 * 4 * entropy
    assert found["level3/channelwise"] == pytest.approx(expected, rel=1e-5)
    positions = {"level0": 15, "level1": 6, "level2": 4}
    for level, count in positions.items():
        constant = math.log(count) if mode == "compat" else 0.0
        assert found[f"{level}/channelwise"] == pytest.approx(constant, abs=1e-5)


def test_channelwise_gradient_by_hand() -> None:
    """tau (p - t) a channel, whether the entropy is in or not."""
    student = torch.tensor([[[0.0, 2 * math.log(4)]]], requires_grad=True)
    for cross in (False, True):
        loss = channelwise(student, torch.zeros(1, 1, 2), 2.0, cross)
        [slope] = torch.autograd.grad(loss, student)
        torch.testing.assert_close(slope, torch.tensor([[[-0.6, 0.6]]]))


def test_cross_entropy_and_divergence_have_one_gradient() -> None:
    """The logged values differ by the teacher's entropy, which no student changes."""
    step, both = double(CASE.step(2, 4, seed=3)), []
    for mode in ("clean", "compat"):
        method = with_settings(CASE, mode=mode).build().double()
        student = {name: value.clone().requires_grad_() for name, value in step.student.items()}
        losses = replace(step, student=student).run(method)
        total = torch.stack([losses[f"focaldistiller/{name}"] for name in IMAGES]).sum()
        images = [value for name, value in student.items() if name.startswith("image")]
        both.append((total, torch.autograd.grad(total, [*images, *method.widen.parameters()])))
    assert both[1][0] > both[0][0] + 1
    for clean, compat in zip(both[0][1], both[1][1], strict=True):
        torch.testing.assert_close(clean, compat, rtol=1e-10, atol=1e-13)


def test_masked_by_hand() -> None:
    """On cells of the mask's own size: sum m^2 g^2 C / sum m, in x and y alike."""
    case = with_settings(PLAIN, cell=0.32)
    step = scene((0.1, 0.1, 1.6, 0.7))
    step.student["bev.encoder"] += 2.0
    step.targets["bev.encoder"].values += 0.5
    found = values(step.run(case.build()))
    expected = 0.1 * 4 * 2.25 * SQUARES**2 / BLOB**2
    assert found["bev/masked"] == pytest.approx(expected, rel=1e-5)
    assert max(found[name] for name in IMAGES) == 0


def test_mask_is_where_the_box_is() -> None:
    """One box right of the middle and behind it: rows are y, columns x (T3)."""
    step = scene((3.0, -1.0, 4.0, 1.8))
    step.student["bev.encoder"].requires_grad_()
    step.targets["bev.encoder"].values += 1
    sum(step.run(PLAIN.build()).values()).backward()  # type: ignore[union-attr]
    slope = step.student["bev.encoder"].grad
    assert slope is not None
    rows, columns = slope[0, 0].nonzero().T
    y, x = ((index + 0.5) * 0.32 - 6.4 for index in (rows, columns))
    assert float((y + 1.0).abs().max()) < 2.5
    assert float((x - 3.0).abs().max()) < 2.5
    assert len(rows) == 12 * 13  # five cells of 0.8 m are 12.5 cells of 0.32 m


def loops(method: FocalDistiller, step: Step, settings: dict[str, float]) -> dict[str, float]:
    tau, cross = settings.get("temperature", 2.0), method.config.mode == "compat"
    found = {}
    for i in range(4):
        near = step.student[f"image.level{i}"]
        with torch.no_grad():
            wide = method.widen[f"level{i}"](near.flatten(0, 1)).unflatten(0, near.shape[:2])
        far = step.targets[f"image.level{i}"].values.numpy()
        loss = oracle.channelwise(wide.numpy(), far, tau, near.shape[2], cross)
        found[f"level{i}/channelwise"] = settings.get("channelwise", 0.25) * loss
    with torch.no_grad():
        restored = method.restore(step.student["bev.encoder"]).numpy()
    labels = step.labels
    loss = oracle.masked(
        restored,
        step.targets["bev.encoder"].values.numpy(),
        [own.double().tolist() for own in labels.canonical_boxes],
        [own.double().tolist() for own in labels.boxes],
        step.align.matrices_B44,
        Square(40, 0.32),
        settings.get("cell", 0.8),
    )
    found["bev/masked"] = settings.get("masked", 0.1) * loss
    return found


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.7, "channelwise": 2.0, "masked": 0.3, "cell": 0.32}],
    ids=["published", "others"],
)
def test_against_the_oracle(name: str, settings: dict[str, float]) -> None:
    case = with_settings(CASE, **settings)
    case.extent = 8.0  # some boxes lie off the grid in one frame or both, some just below it
    method = case.build(1).eval().double()
    assert isinstance(method, FocalDistiller)
    step = double(case.step(2, 9, 5, MOVES[name]))
    expected = loops(method, step, settings)
    assert min(expected.values()) > 0
    assert values(step.run(method)) == pytest.approx(expected, rel=1e-6)


def test_compat_against_the_oracle() -> None:
    method = with_settings(CASE, mode="compat").build(1).eval().double()
    assert isinstance(method, FocalDistiller)
    step = double(CASE.step(2, 9, 5))
    assert values(step.run(method)) == pytest.approx(loops(method, step, {}), rel=1e-6)


@pytest.mark.parametrize("read", ["image.level0", "image.level2", "bev.encoder"])
def test_gradients_by_finite_differences(read: str) -> None:
    method, step = CASE.build().eval().double(), double(CASE.step(2, 3, 4, TURN))

    def loss(value: Tensor) -> Tensor:
        losses = replace(step, student=step.student | {read: value}).run(method)
        return torch.stack(list(losses.values())).sum()

    value = step.student[read].requires_grad_()
    assert torch.autograd.gradcheck(loss, (value,), fast_mode=True, atol=1e-6)
    assert torch.autograd.grad(loss(value), value)[0].abs().sum() > 0


@pytest.mark.parametrize("term", ["channelwise", "masked"])
def test_a_weight_scales_its_own_terms_and_no_other(term: str) -> None:
    step, usual = CASE.step(2, 5, matrix=TURN), CASE.build()
    before = values(step.run(usual))
    heavy = with_settings(CASE, **{term: 3 * getattr(usual.config, term)}).build()
    expected = {key: loss * (3 if key.endswith(term) else 1) for key, loss in before.items()}
    assert values(step.run(heavy)) == pytest.approx(expected, rel=1e-6)


def test_maps_in_units_of_the_temperature_lose_its_square() -> None:
    step = PLAIN.step(2, 3)
    before = values(step.run(PLAIN.build()))
    for name in list(PLAIN.student)[:4]:
        step.student[name] = step.student[name].detach() * 3
        step.targets[name].values *= 3
    after = values(step.run(with_settings(PLAIN, temperature=6.0).build()))
    for name in IMAGES:
        assert after[name] == pytest.approx(9 * before[name], rel=1e-5)


def test_more_channels_or_images_of_the_same_change_nothing() -> None:
    """The divisor is N C; the BEV term is a sum over channels."""
    step = PLAIN.step(1, 3, matrix=FLIP)
    before = values(step.run(PLAIN.build()))
    wide = type(PLAIN)()
    for side in ("student", "teacher"):
        doubled = {
            name: replace(tap, shape=(tap.shape[0], 2 * tap.shape[1], *tap.shape[2:]))
            if name.startswith("image")
            else replace(tap, shape=(2 * tap.shape[0], *tap.shape[1:]))
            for name, tap in getattr(PLAIN, side).items()
        }
        setattr(wide, side, doubled)
    for name in PLAIN.student:
        dim = 2 if name.startswith("image") else 1
        own, target = step.student[name].detach(), step.targets[name]
        step.student[name] = torch.cat([own, own], dim)
        target.values = torch.cat([target.values, target.values], dim)
    after = values(step.run(wide.build()))
    expected = {key: loss * (2 if key == "bev/masked" else 1) for key, loss in before.items()}
    assert after == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", MOVES)
def test_a_sparse_target_equals_a_dense_one_to_the_bit(name: str) -> None:
    """Loss and every gradient (T2): nothing outside the mask is read."""
    method, step = CASE.build(), CASE.step(3, 5, 2, MOVES[name])
    tap = CASE.teacher["bev.encoder"]
    said = torch.randn(3, *tap.shape)
    results = []
    for region in (Region(), Region("focal", cell=0.8)):
        stored = encode(said, TargetSpec(tap, "float32", region), boxes=step.labels.canonical_boxes)
        target = step.targets["bev.encoder"]
        step.targets["bev.encoder"] = replace(
            target, values=stored.values, region_BYX=stored.region
        )
        own = step.student["bev.encoder"]
        loss = step.run(method)["focaldistiller/bev/masked"]
        results.append([loss, *torch.autograd.grad(loss, [own, *method.restore.parameters()])])
    kept = step.targets["bev.encoder"].region_BYX
    assert kept is not None
    assert 0.1 < kept.float().mean() < 0.9
    assert (step.targets["bev.encoder"].values[:, 0] != 0).equal(kept)
    for dense, sparse in zip(*results, strict=True):
        assert torch.equal(dense, sparse)
    assert results[0][0] > 0


@pytest.mark.parametrize("name", ["flip", "quarter"])
def test_a_student_that_moves_with_the_frame_loses_the_same(name: str) -> None:
    method, step = PLAIN.build(), PLAIN.step(2, 5, seed=3)
    before = step.run(method)
    there = Align(torch.as_tensor(MOVES[name]).expand(2, 4, 4))
    own = step.student["bev.encoder"].detach()
    moved = {**step.student, "bev.encoder": there.inverse().cells(own, FINE, FINE)[0]}
    canonical = step.labels.canonical_boxes
    labels = replace(step.labels, boxes=there.boxes(canonical))
    after = Step(moved, step.targets, labels, there).run(method)
    for term, loss in before.items():
        assert torch.equal(after[term], loss), term


def test_cells_out_of_sight_leave_sum_and_divisor() -> None:
    """Moved by 3.2 m: half of a blob is out of sight, a constant gap loses as before."""
    away: Any = bev_matrix()
    away[0, 3] = 3.2
    gaps = []
    for matrix in (bev_matrix(), away):
        step = scene((2.6, 0.1, 1.0, 1.0), matrix=matrix)
        step.student["bev.encoder"] += 1
        step.targets["bev.encoder"].values[..., 31:] = 1e3  # columns that move off the grid
        gaps.append(values(step.run(PLAIN.build()))["bev/masked"])
    assert gaps[0] > 100
    assert 0 < gaps[1] < 1


def test_a_scene_without_boxes_teaches_images_alone() -> None:
    for step in (scene(), scene((0.0, 0.0, 0.0, 1.0)), scene((6.5, 0.0, 2.0, 1.0))):
        step.student = {name: (value + 1).requires_grad_() for name, value in step.student.items()}
        loss = step.run(PLAIN.build())["focaldistiller/bev/masked"]
        loss.backward()
        slope = step.student["bev.encoder"].grad
        assert loss == 0
        assert slope is not None
        assert not slope.any()

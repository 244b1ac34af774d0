"""HarmoDistill's query terms: hand cases, the loop oracle, who fills a cell, gradients."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from bevcask.geometry import bev_matrix
from bevcask.methods.base import Method
from bevcask.methods.harmodistill import HarmoDistill
from bevcask.methods.harmodistill_queries import cells_of, mixer, ranks, winners, written
from contracts.method import FLIP, TURN
from methods import oracle_harmodistill as oracle
from methods.focaldistiller_cases import double, values
from methods.harmodistill_cases import (
    LARGER,
    LAYERS,
    LOCAL,
    RESPONSE,
    SIZES,
    Local,
    Response,
    images,
    queries,
    with_settings,
)

LOW, HIGH = (-51.2, -51.2, -5.0), (51.2, 51.2, 3.0)
TURNED = torch.as_tensor(TURN)


class TestLocal(Local):
    pass


class TestResponse(Response):
    pass


@pytest.mark.parametrize(
    ("metres", "index"),
    [(-51.2, 0), (0.0, 64), (-0.01, 63), (51.2, 127), (99.0, 127), (-99.0, 0), (-50.7, 1)],
)  # fmt: skip
def test_cells_are_those_of_the_release(metres: float, index: int) -> None:
    """trunc(x / 102.4 * 127 + 64) within 0 to 127; rows are y."""
    assert min(max(int(metres / 102.4 * 127 + 64), 0), 127) == index
    for axis, step in ((0, 1), (1, 128)):
        point = torch.zeros(1, 1, 1, 3, dtype=torch.float64)
        point[0, 0, 0, axis] = metres
        middle = 64 * (129 - step)
        assert int(cells_of(point[0], LOW, HIGH, 128)) == index * step + middle


def test_a_map_by_hand() -> None:
    """Query 1 fills three cells, query 0 what is left to it of two, nobody else anything."""
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], requires_grad=True)
    cells = torch.tensor([[[0, 4, 4], [4, 7, 8]]])
    for order, shared in (((0, 1), 3.0), ((1, 0), 1.0)):
        found = written(states, cells, torch.tensor([order]), 3)
        expected = torch.tensor([[1.0, 0, 0], [0, shared, 0], [0, 3, 3]])
        assert torch.equal(found[0, 0], expected)
        assert torch.equal(found[0, 1], torch.where(expected > 0, expected + 1, expected))
        [slope] = torch.autograd.grad(found[0, 0].sum(), states)
        owned = (expected == 1).sum(), (expected == 3).sum()
        assert slope[0, :, 0].tolist() == list(owned)
        assert not slope[0, :, 1].any()


def test_no_point_fills_two_cells() -> None:
    """So no gradient is summed over cells; and each lies in the cell that it fills."""
    generator = torch.Generator().manual_seed(2)
    cells = torch.randint(16, (3, 7, 4), generator=generator)
    order = torch.stack([torch.randperm(7, generator=generator) for _ in range(3)])
    points, taken = winners(cells, order, 4)
    for own, filled, his, rank in zip(points, taken, cells, order, strict=True):
        assert filled.nonzero()[:, 0].tolist() == his.unique().tolist()
        chosen = own[filled]
        assert len(chosen.unique()) == len(chosen)
        assert torch.equal(his.flatten()[chosen], filled.nonzero()[:, 0])
        for cell, point in enumerate(own.tolist()):
            there = (his == cell).any(1)
            assert not there.any() or rank[point // 4] == rank[there].max()


def test_the_last_of_equals_is_highest() -> None:
    scores = torch.tensor([[0.5, 0.1, 0.5, 0.9], [0.2, 0.2, 0.2, 0.2]])
    assert ranks(scores).tolist() == [[1, 0, 2, 3], [0, 1, 2, 3]]


def one_cell(duplicates: str, mode: str = "clean") -> Tensor:
    """Return the slope of the student's states where all queries look at one cell."""
    case = with_settings(LOCAL, duplicates=duplicates, mode=mode)
    step = case.step(1)
    step.student["query.references"] = torch.full((1, 5, 3), 0.5)
    step.student["query.offsets"] = torch.zeros(1, 10, 6)
    scores = torch.rand(1, 10, 10) * 0.5
    scores[0, 1, 7] = scores[0, 3, 2] = 0.9  # of equals the last
    scores[0, 5, 0] = 0.8
    step.student["query.scores"] = scores
    torch.stack(list(step.run(case.build()).values())).sum().backward()
    slope = step.student["query.states"].grad
    assert slope is not None
    return slope[0].abs().sum(1)


@pytest.mark.parametrize(
    ("duplicates", "mode", "rows"),
    [("score", "clean", [3, 5]), ("last", "clean", [4, 9]), ("score", "compat", [4, 9])],
)
def test_who_fills_a_cell(duplicates: str, mode: str, rows: list[int]) -> None:
    assert one_cell(duplicates, mode).nonzero()[:, 0].tolist() == rows


def test_scores_are_asked_for_where_they_decide() -> None:
    asked = {"query.states", "query.references", "query.offsets"}
    for settings, more in (
        ({}, {"query.scores"}), ({"duplicates": "last"}, set()), ({"mode": "compat"}, set())
    ):  # fmt: skip
        method = with_settings(LOCAL, **settings).build()
        assert set(method.student_taps()) == {n.tap for n in method.needs()} == asked | more


def test_the_order_of_queries_does_not_matter_where_scores_decide() -> None:
    method, step = LOCAL.build(), LOCAL.step(1)
    before = values(step.run(method))
    order = torch.tensor([3, 0, 4, 1, 2])
    both = torch.cat([order, order + 5])
    shuffled = {
        name: value[:, order if "references" in name else both]
        for name, value in step.student.items()
    }
    assert values(replace(step, student=shuffled).run(method)) == pytest.approx(before, rel=1e-5)


def maps(
    taps: Mapping[str, Tensor], case: Local, layer: int, kernel: Tensor, matrix: Any, rule: str
) -> list[npt.NDArray[np.float64]]:
    low, high, found = case.section["low"], case.section["high"], []
    for b in range(len(taps["query.states"])):
        own = {name: value[b].detach().numpy() for name, value in taps.items()}
        num = len(own["query.references"])
        rows = slice(layer * num, (layer + 1) * num)
        points = oracle.looks(own["query.references"], own["query.offsets"][rows], low, high)
        for q, k in np.ndindex(*points.shape[:2]):
            points[q, k] = (matrix @ np.append(points[q, k], 1))[:3]
        scores = own["query.scores"][rows].max(1).tolist() if rule == "score" else None
        states = own["query.states"][rows]
        map_ = oracle.spread(states, points, scores, low, high, case.section["cells"])
        found.append(oracle.mixed(map_, kernel.detach().numpy()))
    return found


@pytest.mark.parametrize("matrix", [bev_matrix(), FLIP, TURN], ids=["clean", "flip", "turn"])
@pytest.mark.parametrize(
    ("settings", "which"),
    [({}, range(LAYERS)), ({"duplicates": "last", "local_layers": "last", "balance": 2.0,
                            "local_temperature": 0.7, "local": 0.3}, [LAYERS - 1])],
    ids=["released weights", "others"],
)  # fmt: skip
def test_local_against_the_oracle(
    settings: Mapping[str, Any], which: list[int], matrix: Any
) -> None:
    case = with_settings(LOCAL, **settings)
    method = case.build(1).double()
    trained(method)
    step = double(case.step(2, 1, 3, matrix))
    said = {name: target.values for name, target in step.targets.items()}
    rule, tau = settings.get("duplicates", "score"), settings.get("local_temperature", 4.0)
    total = 0.0
    for layer in which:
        near = maps(step.student, case, layer, method.mix["student"][1].weight, np.eye(4), rule)
        far = maps(said, case, layer, method.mix["teacher"][1].weight, matrix, rule)
        total += oracle.balanced(
            np.stack(near), np.stack(far), (1.0, settings.get("balance", 7.0)), (tau, tau), 3
        )
    expected = settings.get("local", 0.1) * (1 - 0.3) * total / len(which)
    assert expected > 1e-3
    assert values(step.run(method, 0.3))["queries/local"] == pytest.approx(expected, rel=1e-6)


def trained(method: Method) -> None:
    """Give both convolutions weights as if they had learnt something."""
    assert isinstance(method, HarmoDistill)
    generator = torch.Generator().manual_seed(7)
    for parameter in method.mix.parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data += drawn


@pytest.mark.parametrize("matrix", [FLIP, bev_matrix(math.pi / 2)], ids=["flip", "quarter"])
def test_a_student_that_looks_where_the_teacher_went_loses_nothing(matrix: Any) -> None:
    """Points move in closed form: offsets turn, references move."""
    case = with_settings(LOCAL, local_layers="last")
    case.student = case.teacher
    step = case.step(2, 1, 2, matrix)
    said = {name: target.values for name, target in step.targets.items()}
    turn = torch.as_tensor(matrix)[:3, :3].float()
    centre = (said["query.references"] * 2 - 1) @ turn.T
    moved = {
        **said,
        "query.references": (centre + 1) / 2,
        "query.offsets": (said["query.offsets"].view(2, 8, 2, 3) @ turn.T).flatten(2),
    }
    assert values(replace(step, student=moved).run(case.build()))["queries/local"] < 1e-6
    assert values(replace(step, student=said).run(case.build()))["queries/local"] > 1e-4


def test_local_fades_and_knows_no_schedule() -> None:
    step, method = LOCAL.step(), LOCAL.build()
    first = values(step.run(method, 0.0))["queries/local"]
    for progress in (0.25, 1.0):
        found = values(step.run(method, progress))["queries/local"]
        assert found == pytest.approx((1 - progress) * first, rel=1e-6)
    off = with_settings(LOCAL, schedule=False).build()
    assert values(step.run(off, 0.0))["queries/local"] == first


def test_mixers_start_by_sums_and_lose_the_border() -> None:
    map_ = torch.rand(1, 2, 9, 9)
    for start in ("own", "all"):
        net = mixer(2, 3, start)  # type: ignore[arg-type]
        found = net(map_)
        assert found.shape == (1, 3, 5, 5)
        own = 9 * torch.nn.functional.avg_pool2d(torch.nn.functional.avg_pool2d(map_, 3, 1), 3, 1)
        expected = (
            own[:, [0, 1, 0]] if start == "own" else own.sum(1, keepdim=True).expand(1, 3, 5, 5)
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("mode", "same"), [("clean", False), ("compat", True)])
def test_channels_that_start_as_one_stay_one(mode: str, same: bool) -> None:
    """Released: every weight is 1, so all channels learn the same. Own sums learn their own."""
    case = with_settings(LOCAL, mode=mode)
    method, step = case.build(), case.step()
    step.run(method)["harmodistill/queries/local"].backward()
    last = method.mix["student"][1]
    slopes = last.weight.grad
    assert torch.allclose(slopes[0], slopes[1], rtol=1e-4) == same
    assert slopes.abs().sum() > 0
    teacher = method.mix["teacher"][1].weight
    assert teacher.grad is not None
    frozen = with_settings(LOCAL, teacher_mixer="frozen").build()
    assert not frozen.mix["teacher"][1].weight.requires_grad


@pytest.mark.parametrize("case", [LOCAL, RESPONSE], ids=["local", "response"])
def test_gradients_by_finite_differences(case: Any) -> None:
    method, step = case.build().eval().double(), double(case.step(2, 1, 4, TURN))

    def loss(value: Tensor) -> Tensor:
        losses = replace(step, student=step.student | {"query.states": value}).run(method, 0.4)
        return torch.stack(list(losses.values())).sum()

    value = step.student["query.states"].requires_grad_()
    assert torch.autograd.gradcheck(loss, (value,), fast_mode=True, atol=1e-7)
    assert torch.autograd.grad(loss(value), value)[0].abs().sum() > 0


@pytest.mark.parametrize("kind", ["balanced", "square", "compat square"])
def test_responses_against_the_oracle(kind: str) -> None:
    mode = "compat" if kind == "compat square" else "clean"
    settings = {
        "response_loss": kind.rpartition(" ")[2],
        "mode": mode,
        "response": 0.3,
        "response_temperature": 1.5,
    }
    case = with_settings(RESPONSE, **settings, modulated=0.0)
    method, step = case.build().double(), double(case.step(2, 1, 6))
    said = {name: target.values for name, target in step.targets.items()}
    found = values(step.run(method, 0.3))
    assert len(found) == 4
    for i in range(4):
        name, sides = f"image.modulated{i}", []
        for taps in (step.student, said):
            states = taps["query.states"].numpy().reshape(2, LAYERS, 4, -1)
            features = taps[name].numpy()
            sides.append(np.stack([
                oracle.response(states[b], features[b, v]) for b in range(2) for v in range(2)
            ]))  # fmt: skip
        near, far = sides
        if kind == "balanced":
            loss = oracle.balanced(near, far, oracle.factors(0.3, 7.0, True), (1.5, 1.5), 4)
        else:
            larger = np.stack([[oracle.enlarge(q, *near.shape[2:]) for q in n] for n in far])
            loss = float(((near - larger) ** 2).mean()) / (4 if mode == "compat" else 1)
        expected = 0.3 * (0.1 if i == 3 else 1) * loss
        assert found[f"level{i}/response"] == pytest.approx(expected, rel=1e-6)


def test_modulated_levels_against_the_oracle() -> None:
    case = with_settings(RESPONSE, response=0.0, modulated=0.2)
    method, step = case.build(1).eval().double(), double(case.step(2, 1, 6))
    found = values(step.run(method, 0.3))
    for i in range(4):
        near = step.student[f"image.modulated{i}"].flatten(0, 1)
        with torch.no_grad():
            wide = method.widen[f"level{i}_modulated"](near).numpy()
        far = step.targets[f"image.modulated{i}"].values.flatten(0, 1).numpy()
        loss = oracle.balanced(wide, far, oracle.factors(0.3, 7.0, True), (2.0, 2.0), 3)
        expected = 0.2 * (0.1 if i == 3 else 1) * loss
        assert found[f"level{i}/modulated"] == pytest.approx(expected, rel=1e-6)
    assert set(method.student_taps()) == {f"image.modulated{i}" for i in range(4)}


def test_everything_at_once_is_its_parts() -> None:
    """No term reads a setting, a target or a weight of another."""
    parts = {
        "balanced": ({}, 4),
        "modulated": ({"modulated": 0.1}, 4),
        "response": ({"response": 0.2}, 4),
        "local": ({"local": 0.1}, 1),
    }
    case = with_settings(LOCAL, balanced=0.1, modulated=0.1, response=0.2)
    for side, sizes in (("student", SIZES), ("teacher", LARGER)):
        levels = images("image.level", 3, sizes) | images("image.modulated", 3, sizes)
        setattr(case, side, levels | queries(3))
    step = case.step(2, 1, 3, TURN)
    whole = values(step.run(case.build()))
    assert len(whole) == 13
    for term, (weights, count) in parts.items():
        one = with_settings(case, **{"balanced": 0.0, "modulated": 0.0, "response": 0.0,
                                     "local": 0.0, term: 0.1, **weights})  # fmt: skip
        one.student, one.teacher = case.student, case.teacher
        method = one.build()
        reduced = replace(
            step,
            student={name: step.student[name] for name in method.student_taps()},
            targets={need.tap: step.targets[need.tap] for need in method.needs()},
        )
        found = values(reduced.run(method))
        assert len(found) == count
        assert found == {name: whole[name] for name in found}

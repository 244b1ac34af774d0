"""Set losses: by hand, against a loop in float64, and how they scale."""

import itertools
import math

import pytest
import torch

from bevcask.detectors.blocks.set_loss import (
    SetLossConfig,
    Wanted,
    decode_queries,
    focal_loss,
    match,
    matching_cost,
    set_losses,
    wanted,
)
from bevcask.targets.query_code import encode_query_boxes
from contracts.detector import boxes_of_all_classes

CONFIG = SetLossConfig()
WEIGHTS = torch.tensor(CONFIG.code_weights)


def problem(queries: int = 6, boxes: int = 3) -> tuple[torch.Tensor, torch.Tensor, Wanted]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((queries, 10), generator=generator, dtype=torch.float64)
    codes = 3 * torch.randn((queries, 10), generator=generator, dtype=torch.float64)
    truth = Wanted(
        torch.randint(10, (boxes,), generator=generator),
        3 * torch.randn((boxes, 10), generator=generator, dtype=torch.float64),
    )
    return logits, codes, truth


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def cost_by_hand(logits: list[float], code: list[float], cls: int, wanted: list[float]) -> float:
    p = sigmoid(logits[cls])
    right = -math.log(p + 1e-12) * 0.25 * (1 - p) ** 2
    wrong = -math.log(1 - p + 1e-12) * 0.75 * p**2
    return 2 * (right - wrong) + 0.25 * sum(
        abs(a - b) for a, b in zip(code[:8], wanted[:8], strict=True)
    )


def test_costs_by_hand() -> None:
    logits, codes, truth = problem()
    found = matching_cost(logits, codes, truth, CONFIG)
    for q, n in itertools.product(range(6), range(3)):
        hand = cost_by_hand(
            logits[q].tolist(),
            codes[q].tolist(),
            int(truth.classes_N[n]),
            truth.codes_NE[n].tolist(),
        )
        assert float(found[q, n]) == pytest.approx(hand, abs=1e-9)


def test_matching_is_the_cheapest_of_all() -> None:
    logits, codes, truth = problem()
    cost = matching_cost(logits, codes, truth, CONFIG)
    queries, boxes = match(logits, codes, truth, CONFIG)
    least = min(
        sum(float(cost[q, n]) for n, q in enumerate(order))
        for order in itertools.permutations(range(6), 3)
    )
    assert float(cost[queries, boxes].sum()) == pytest.approx(least)
    assert sorted(boxes.tolist()) == [0, 1, 2]


def test_velocity_is_not_matched() -> None:
    logits, codes, truth = problem()
    moved = codes.clone()
    moved[:, 8:] += 100
    assert torch.equal(
        matching_cost(logits, codes, truth, CONFIG), matching_cost(logits, moved, truth, CONFIG)
    )


def test_losses_against_a_loop() -> None:
    logits, codes, truth = problem()
    none = Wanted(truth.classes_N[:0], truth.codes_NE[:0])
    given = torch.stack([logits, logits + 1]), torch.stack([codes, codes + 1])
    classes, boxes = set_losses(*given, [truth, none], CONFIG, WEIGHTS.double())
    queries, given_boxes = match(logits, codes, truth, CONFIG)
    owner = dict(zip(queries.tolist(), given_boxes.tolist(), strict=True))
    focal, l1 = 0.0, 0.0
    for sample, q, k in itertools.product(range(2), range(6), range(10)):
        p = sigmoid(float(given[0][sample, q, k]))
        box = owner.get(q) if sample == 0 else None
        right = box is not None and int(truth.classes_N[box]) == k
        focal += -0.25 * (1 - p) ** 2 * math.log(p) if right else -0.75 * p**2 * math.log(1 - p)
    for q, box in owner.items():
        gaps = (codes[q] - truth.codes_NE[box]).abs().tolist()
        l1 += sum(gaps[:8]) + 0.2 * sum(gaps[8:])
    assert float(classes) == pytest.approx(2 * focal / 3)
    assert float(boxes) == pytest.approx(0.25 * l1 / 3)


def test_a_pair_without_extent_is_left_out_of_the_boxes() -> None:
    logits, codes, truth = problem()
    broken = truth.codes_NE.clone()
    broken[1, 2] = -math.inf
    one, other = (
        set_losses(logits[None], codes[None], [own], CONFIG, WEIGHTS.double())
        for own in (truth, Wanted(truth.classes_N, broken))
    )
    assert bool(other[1].isfinite())
    assert float(other[1]) < float(one[1])


def test_nothing_wanted() -> None:
    logits, codes, truth = problem()
    none = Wanted(truth.classes_N[:0], truth.codes_NE[:0])
    classes, boxes = set_losses(logits[None], codes[None], [none], CONFIG, WEIGHTS.double())
    assert float(boxes) == 0
    assert float(classes) == pytest.approx(2 * float(focal_loss(logits, torch.zeros_like(logits))))


def test_numbers_that_are_not_finite_do_not_stop_the_matching() -> None:
    logits, codes, truth = problem()
    codes[2] = math.nan
    queries, _ = match(logits, codes, truth, CONFIG)
    assert 2 not in queries.tolist()
    codes[:] = math.nan
    _, boxes = set_losses(logits[None], codes[None], [truth], CONFIG, WEIGHTS.double())
    assert bool(boxes.isnan()), "the loss says that something is wrong"


def test_gradients() -> None:
    logits, codes, truth = problem(4, 2)
    logits.requires_grad_()
    codes.requires_grad_()

    def run(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.stack(set_losses(one[None], other[None], [truth], CONFIG, WEIGHTS.double()))

    assert torch.autograd.gradcheck(run, (logits, codes))


def test_centres_on_the_border_are_not_wanted() -> None:
    boxes = torch.zeros((4, 9))
    boxes[:, 3:6] = 1
    boxes[:, 0] = torch.tensor([51.2, -51.2, 51.1, 0.0])
    boxes[:, 2] = 40.0  # heights do not matter
    reach = torch.tensor([51.2, 51.2])
    (found,) = wanted([boxes], [torch.arange(4)], -reach, reach)
    assert found.classes_N.tolist() == [2, 3]


def test_best_pairs_are_decoded() -> None:
    boxes, classes = boxes_of_all_classes()
    codes = encode_query_boxes(boxes)
    logits = torch.full((20, 10), -5.0)
    logits[torch.arange(20), classes] = torch.linspace(3, 1, 20)
    logits[0, (int(classes[0]) + 1) % 10] = 2.9  # a query may say two boxes
    (found,) = decode_queries(logits[None], codes[None], SetLossConfig(max_boxes=5))
    assert len(found.scores_N) == 5
    torch.testing.assert_close(found.boxes_N9[:2], boxes[[0, 0]])
    assert found.classes_N[:2].tolist() == [int(classes[0]), (int(classes[0]) + 1) % 10]
    near = SetLossConfig(max_boxes=200, centre_range=(20.0, 20.0, 10.0))
    (found,) = decode_queries(logits[None], codes[None], near)
    assert 0 < len(found.boxes_N9) < 200
    assert bool((found.boxes_N9[:, :2].abs() <= 20).all())


def test_a_centre_on_the_border_is_said() -> None:
    codes = torch.zeros((1, 2, 10))
    codes[0, :, 0] = torch.tensor([20.0, 20.5])
    config = SetLossConfig(centre_range=(20.0, 20.0, 10.0))
    (found,) = decode_queries(torch.zeros((1, 2, 10)), codes, config)
    assert found.boxes_N9[:, 0].unique().tolist() == [20.0]

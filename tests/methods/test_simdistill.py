"""SimDistill: hand-computed terms, the loop oracle, identities, and what may not matter."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.cache.quantize import encode
from bevcask.detectors.base import Labels
from bevcask.geometry import Grid, bev_matrix
from bevcask.methods.base import Method, Target
from bevcask.methods.simdistill import quality_focal
from bevcask.targets.align import Align
from bevcask.targets.box_code import TASK_OF_CLASS, encode_boxes
from bevcask.targets.heatmap import centre_cells
from bevcask.targets.spec import Region, TargetSpec
from contracts.method import FLIP, TURN, Step
from methods import oracle_simdistill as oracle
from methods.simdistill_cases import (
    CASE,
    GRID,
    MOVES,
    PLAIN,
    TERMS,
    WEIGHT,
    Fused,
    Identity,
    dense,
    repeated,
    scene,
    student_taps,
    teacher_taps,
    values,
)


class TestSimDistill(Fused):
    pass


def test_intra_modal_and_fusion_by_hand() -> None:
    step = scene()
    step.student["bev.camera"] += 2.0
    step.targets["bev.camera"].values += 0.5
    step.student["bev.fused"][0, 0] += 3.0  # one channel of five
    found = values(step.run(PLAIN.build()))
    assert found["intra_modal"] == 2.25
    assert found["fusion"] == pytest.approx(9 / 5)
    assert found["cross_modal"] == found["quality"] == found["box"] == 0


@pytest.mark.parametrize(
    ("boxes", "factor"),
    [
        ({"one": (0, 0.5, 0.5)}, 1),
        ({"one": (0, 0.5, 0.5), "same class": (0, 0.4, 0.4)}, 1),
        ({"one": (0, 0.5, 0.5), "other class": (8, 0.4, 0.4)}, 4),
    ],
)
def test_cross_modal_by_hand(boxes: dict[str, tuple[int, float, float]], factor: int) -> None:
    """A 5 x 5 blob of sigma 5/6: sum of m^2 = (1 + 2 e^-1.44 + 2 e^-5.76)^2. Classes add up."""
    step = scene(**boxes)
    step.student["bev.simulated"] += 2.0
    squares = (1 + 2 * math.exp(-1.44) + 2 * math.exp(-5.76)) ** 2
    expected = 100 * factor * squares * 4 / 144
    assert values(step.run(PLAIN.build()))["cross_modal"] == pytest.approx(expected, rel=1e-6)


def test_quality_by_hand() -> None:
    """Each class by its own count: a truck with a gap, a bus that the teacher does not see."""
    step = scene()
    student, teacher = step.student["head.heatmap"], step.targets["head.heatmap"].values
    student[0, 1, 2, 3], teacher[0, 1, 2, 3] = 0.5, 0.9
    teacher[0, 2, 7, 7] = student[0, 2, 7, 7] = 0.3  # construction vehicle: agrees, counts
    student[0, 3, 5, 5], teacher[0, 3, 5, 5] = 0.25, 0.05
    truck = math.log(2) * 0.16 / 1
    bus = -(0.05 * math.log(0.25) + 0.95 * math.log(0.75)) * 0.04 / 1
    found = values(step.run(PLAIN.build()))
    assert found["quality"] == pytest.approx(0.25 * (truck + bus), rel=1e-5)
    assert found["box"] == 0


def test_box_by_hand() -> None:
    """Cars differ by 1 m in height and 0.05 in a size; a cone by 2 m/s. Means by task, summed."""
    step = scene(one=(0, 0.5, 0.5), two=(0, -2.5, 3.5), cone=(9, 4.5, -1.5))
    student = step.student["head.codes"]
    student[0, 2, 6, 6] = 1.0
    student[0, 3, 9, 3] = 0.05
    student[0, 50 + 9, 4, 10] = -2.0
    student[0, 40 + 9, 4, 10] = 7.0  # another task's code in a cone's cell
    student[0, 2, 0, 0] = 7.0  # no box here
    cars = ((1 - 1 / 18) + 0.05**2 / 2 * 9) / 2
    cone = 0.2 * 2 - 1 / 18  # the gap is weighted, then its distance measured
    found = values(step.run(PLAIN.build()))
    assert found["box"] == pytest.approx(0.25 * (cars + cone), rel=1e-5)


def loops(method: Method, step: Step, fine: bool = False) -> dict[str, float]:
    """Return the oracle's terms before their weights; `fine`: LiDAR and head on half a metre."""
    near = {name: value.numpy() for name, value in step.student.items()}
    near["wide"] = method.get_submodule("widen")(step.student["bev.simulated"]).detach().numpy()
    far = {name: target.values.numpy() for name, target in step.targets.items()}
    boxes = [own.double().tolist() for own in step.labels.canonical_boxes]
    moved = [own.double().tolist() for own in step.labels.boxes]
    classes = [own.tolist() for own in step.labels.classes]
    grid, turns = oracle.Square(12, 1.0), step.align.matrices_B44
    other = oracle.Square(24, 0.5) if fine else grid
    weights = oracle.object_weights(boxes, moved, classes, other)
    camera, fused = ((near[tap], far[tap]) for tap in ("bev.camera", "bev.fused"))
    return {
        "intra_modal": oracle.feature_term(*camera, None, turns, grid),
        "cross_modal": oracle.feature_term(near["wide"], far["bev.lidar"], weights, turns, other),
        "fusion": oracle.feature_term(*fused, None, turns, grid),
        "quality": oracle.quality_term(
            near["head.heatmap"], far["head.heatmap"], turns, other, threshold=0.1
        ),
        "box": oracle.box_term(
            near["head.codes"], far["head.codes"], boxes, moved, classes, turns, other
        ),
    }


def double(step: Step) -> Step:
    """Return the step in float64, without gradients."""
    targets = {
        name: replace(target, values=target.values.double())
        for name, target in step.targets.items()
    }
    student = {name: value.detach().double() for name, value in step.student.items()}
    return replace(step, student=student, targets=targets)


@pytest.mark.parametrize("matrix", MOVES.values(), ids=MOVES.keys())
@pytest.mark.parametrize("seed", [0, 1])
def test_against_the_oracle(matrix: Any, seed: int) -> None:
    case = Fused()
    case.extent = 6.5  # some boxes lie off the grid in one frame or both
    method = case.build(seed).eval().double()
    step = double(case.step(2, 9, seed, matrix))
    found, expected = values(step.run(method)), loops(method, step)
    assert set(found) == set(expected) == set(TERMS)
    for term, loss in expected.items():
        assert found[term] == pytest.approx(WEIGHT[term] * loss, rel=1e-5), term
        assert loss > 0


@pytest.mark.parametrize("matrix", [FLIP, TURN], ids=["flip", "turn"])
def test_oracle_on_two_grids(matrix: Any) -> None:
    """Every term reads the grid of its own maps."""
    halves, case = Grid.square(6.0, 0.5), Fused()
    case.student = student_taps(3, halves) | {n: dense(n, c) for n, c in WIDTHS.items()}
    case.teacher = teacher_taps(4, halves) | {n: dense(n, c) for n, c in WIDTHS.items()}
    method = case.build().eval().double()
    step = double(case.step(2, 6, 2, matrix))
    expected = {term: WEIGHT[term] * loss for term, loss in loops(method, step, True).items()}
    assert values(step.run(method)) == pytest.approx(expected, rel=1e-5)


READS = {
    "intra_modal": "bev.camera",
    "cross_modal": "bev.simulated",
    "fusion": "bev.fused",
    "quality": "head.heatmap",
    "box": "head.codes",
}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("matrix", [FLIP, TURN], ids=["flip", "turn"])
def test_gradients_by_finite_differences(term: str, matrix: Any) -> None:
    method = CASE.build().eval().double()
    step = CASE.step(2, 3, seed=4, matrix=matrix)
    for target in step.targets.values():
        target.values = target.values.double()
    step.student = {name: value.detach().double() for name, value in step.student.items()}
    read = READS[term]

    def loss(value: Tensor) -> Tensor:
        losses = replace(step, student=step.student | {read: value}).run(method)
        return losses[f"simdistill/{term}"]

    assert torch.autograd.gradcheck(
        loss, (step.student[read].requires_grad_(),), fast_mode=True, atol=1e-6
    )
    others = torch.autograd.grad(loss(step.student[read]), step.student[read])[0]
    assert others.abs().sum() > 0


def test_each_term_reads_one_tap() -> None:
    step = CASE.step()
    losses = step.run(CASE.build())
    for term, read in READS.items():
        slopes = torch.autograd.grad(
            losses[f"simdistill/{term}"],
            list(step.student.values()),
            allow_unused=True,
            retain_graph=True,
        )
        reached = {
            n for n, s in zip(step.student, slopes, strict=True) if s is not None and s.any()
        }
        assert reached == {read}


def test_the_focal_factor_is_differentiated() -> None:
    """d/dp of H(p) (p - t)^2 at p = 0.5, t = 0.9: dH = -1.6, so -1.6 x 0.16 - 0.8 ln 2."""
    p = torch.full((1, 10, 1, 1), 0.0)
    t = p.clone()
    p[0, 0], t[0, 0] = 0.5, 0.9
    p.requires_grad_()
    quality_focal(p, t, torch.ones(1, 1, 1, dtype=torch.bool), 0.1).backward()
    assert p.grad is not None
    assert float(p.grad[0, 0]) == pytest.approx(-1.6 * 0.16 - 0.8 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("name", ["clean", "flip", "quarter"])
def test_sparse_targets_equal_dense_ones_bitwise(name: str) -> None:
    """LiDAR cells outside the Gaussians and codes outside the centres are never read."""
    method, step = CASE.build().eval(), CASE.step(3, 5, seed=2, matrix=MOVES[name])
    said = {tap: torch.rand(3, *CASE.teacher[tap].shape) for tap in ("bev.lidar", "head.codes")}
    results = []
    for regions in ({}, {"bev.lidar": "gaussians", "head.codes": "centres"}):
        for tap, maps in said.items():
            region = Region(regions.get(tap, "all"))  # type: ignore[arg-type]
            spec = TargetSpec(CASE.teacher[tap], "float32", region)
            stored = encode(maps, spec, boxes=step.labels.canonical_boxes)
            step.targets[tap] = Target(stored.values, stored.region)
        results.append(step.run(method))
    kept = step.targets["bev.lidar"].region_BYX
    assert kept is not None
    assert 0 < kept.float().mean() < 0.9
    for term in TERMS:
        assert torch.equal(results[0][f"simdistill/{term}"], results[1][f"simdistill/{term}"])


@pytest.mark.parametrize("name", ["flip", "quarter"])
def test_a_student_that_moves_with_the_frame_loses_the_same(name: str) -> None:
    """Maps permuted, codes moved: dense terms to the bit, codes to rounding."""
    method, step = PLAIN.build(), PLAIN.step(2, 5, seed=3)
    before = step.run(method)
    matrix = MOVES[name]
    there = Align(torch.as_tensor(matrix).expand(2, 4, 4))
    moved = {
        tap: there.inverse().cells(value.detach(), GRID, GRID)[0]
        for tap, value in step.student.items()
    }
    labels = Labels(
        there.boxes(step.labels.canonical_boxes), step.labels.classes, step.labels.canonical_boxes
    )
    codes = torch.zeros_like(moved["head.codes"])
    for b, boxes in enumerate(step.labels.canonical_boxes):
        old, new = (centre_cells(group[b], GRID)[0] for group in (step.labels.boxes, labels.boxes))
        tasks = torch.tensor(TASK_OF_CLASS)[step.labels.classes[b]]
        own = step.student["head.codes"].detach()[b].view(6, 10, 12, 12)
        own = own[tasks, :, old[:, 0], old[:, 1]]
        sample = torch.full((len(boxes),), b)
        own = there.codes(own, sample, old, new, GRID)
        codes[b].view(6, 10, 12, 12)[tasks, :, new[:, 0], new[:, 1]] = own
    after = Step(moved | {"head.codes": codes}, step.targets, labels, there).run(method)
    for term in ("intra_modal", "cross_modal", "fusion"):
        assert torch.equal(after[f"simdistill/{term}"], before[f"simdistill/{term}"])
    for term in ("quality", "box"):  # summed in another order; smooth L1 sees rotated numbers
        if term == "box" and name == "quarter":
            continue
        assert float(after[f"simdistill/{term}"]) == pytest.approx(
            float(before[f"simdistill/{term}"].detach()), rel=1e-5
        )


@pytest.mark.parametrize("matrix", MOVES.values(), ids=MOVES.keys())
def test_box_codes_of_the_truth_agree_in_both_frames(matrix: Any) -> None:
    """Teacher and student both say the ground truth, each of its own frame and cells."""
    step = scene(matrix, car=(0, 1.2, -2.4), bus=(3, -3.1, 0.7), cone=(9, 2.2, 3.9))
    for maps, boxes in (
        (step.student["head.codes"], step.labels.boxes[0]),
        (step.targets["head.codes"].values, step.labels.canonical_boxes[0]),
    ):
        cells, inside = centre_cells(boxes, GRID)
        assert inside.all()
        tasks = torch.tensor(TASK_OF_CLASS)[step.labels.classes[0]]
        code = encode_boxes(boxes, cells, GRID)
        maps.view(6, 10, 12, 12)[tasks, :, cells[:, 0], cells[:, 1]] = code
    assert values(step.run(PLAIN.build()))["box"] == pytest.approx(0, abs=1e-9)
    step.student["head.codes"] += 0.5
    assert values(step.run(PLAIN.build()))["box"] > 1


def test_cells_out_of_sight_leave_sums_and_normalisers() -> None:
    """Moved by two cells: a constant gap has the same mean, and nothing there is read."""
    away = bev_matrix()
    away[0, 3] = 2.0
    step = scene(away)
    for name in ("bev.camera", "bev.fused"):
        step.student[name] += 3.0
        step.targets[name].values[..., 10:] = 1e3  # columns that move off the student's grid
    step.student["head.heatmap"][..., :2] = 0.9  # columns the teacher says nothing about
    assert values(step.run(PLAIN.build())) == pytest.approx(
        {"intra_modal": 9, "cross_modal": 0, "fusion": 9, "quality": 0, "box": 0}, abs=1e-6
    )
    step.student["head.heatmap"][..., 2] = 0.9
    assert values(step.run(PLAIN.build()))["quality"] > 0


@pytest.mark.parametrize("name", MOVES)
def test_more_channels_of_the_same_change_nothing(name: str) -> None:
    """Means run over channels: doubling every feature map leaves every term."""
    double = Identity()
    double.student = student_taps(8) | {n: dense(n, 2 * c) for n, c in WIDTHS.items()}
    double.teacher = teacher_taps(8) | {n: dense(n, 2 * c) for n, c in WIDTHS.items()}
    step = PLAIN.step(2, 5, matrix=MOVES[name])
    before = values(step.run(PLAIN.build()))
    for maps in ("bev.camera", "bev.fused", "bev.simulated", "bev.lidar"):
        if maps in step.student:
            step.student[maps] = step.student[maps].detach().repeat(1, 2, 1, 1)
        if maps in step.targets:
            step.targets[maps].values = step.targets[maps].values.repeat(1, 2, 1, 1)
    assert values(step.run(double.build())) == pytest.approx(before, rel=1e-5)


WIDTHS = {"bev.camera": 3, "bev.fused": 5}


def test_a_repeated_batch_changes_the_sum_over_samples_alone() -> None:
    method, step = CASE.build().eval(), CASE.step(2, 5, matrix=TURN)
    once = values(step.run(method))
    once["quality"] *= 3  # as released: a sum over samples, each by its own count
    assert values(repeated(step, 3).run(method)) == pytest.approx(once, rel=1e-5)


@pytest.mark.parametrize("flat", [False, True], ids=["none", "one without area"])
def test_an_empty_sample_is_silent_about_objects(flat: bool) -> None:
    step = scene(**({"flat": (0, 0.5, 0.5)} if flat else {}))
    for boxes in (step.labels.boxes[0], step.labels.canonical_boxes[0]):
        boxes[:, 4] = 0
    step.student = {name: value + 0.3 for name, value in step.student.items()}
    found = values(step.run(PLAIN.build()))
    assert found["cross_modal"] == found["box"] == 0
    assert found["quality"] > 0  # claims of objects are wrong

"""FD3D: hand-computed terms, the loop oracle, gradients, and a frozen head equal to its source."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bevcask.cache.quantize import encode
from bevcask.detectors.blocks.query_decoder import query_taps
from bevcask.geometry import bev_matrix
from bevcask.methods.base import Target
from bevcask.methods.fd3d import FD3D
from bevcask.methods.fd3d_queries import Layer, TrainedHead, best, focal
from bevcask.targets.align import Align
from bevcask.targets.kinds import kind_of
from bevcask.targets.spec import Region, TargetSpec
from contracts.method import FLIP, TURN, MethodContract, Step
from methods import oracle_fd3d as oracle
from methods.fd3d_cases import (
    BARE,
    CHANNELS,
    FROZEN,
    IMAGES,
    LAYERS,
    PLACES,
    QUERIES,
    QUERY_TAPS,
    SIZES,
    TRAINED,
    TRUTH,
    Frozen,
    Trained,
    silent,
)
from methods.focaldistiller_cases import MOVES, double, values
from methods.oracle_simdistill import Square
from methods.test_laws import with_settings
from targets.test_rectangles import images


class TestTrained(Trained):
    pass


class TestFrozen(Frozen):
    pass


def one_box(matrix: Any = None) -> Step:
    """Return a silent sample with one box of 2 m, four metres ahead."""
    step = silent(BARE.step(1, 1))
    boxes = torch.tensor([[0.0, 4.0, 0.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0]])
    align = Align(torch.as_tensor(bev_matrix() if matrix is None else matrix)[None], images())
    labels = replace(step.labels, canonical_boxes=[boxes], boxes=align.boxes([boxes]))
    return replace(step, labels=labels, align=align)


def test_generative_by_hand() -> None:
    """A gap of 1.5 in three or four channels, over the cells of the box alone."""
    step = one_box()
    for name in ("image.level0", "bev.encoder"):
        step.student[name] += 1.5
    found = values(step.run(BARE.build()))
    assert found["level0/generative"] == pytest.approx(0.25 * 3 * 2.25, rel=1e-5)
    assert found["bev/generative"] == pytest.approx(0.1 * 4 * 2.25, rel=1e-5)
    assert found["level1/generative"] == found["level3/generative"] == 0
    step.student["bev.encoder"][..., :22, :] = 1e3  # rows below 0.64 m: outside
    assert values(step.run(BARE.build()))["bev/generative"] == found["bev/generative"]
    rows, columns = slice(22, 29), slice(16, 24)  # of 0.32 m; 3 m to 5 m ahead are 29.375 to 35.6
    step.student["bev.encoder"][..., rows, columns] = 1e3
    assert values(step.run(BARE.build()))["bev/generative"] == found["bev/generative"]
    step.student["bev.encoder"][..., 30, 20] = 0
    assert values(step.run(BARE.build()))["bev/generative"] < found["bev/generative"]


def test_focal_by_hand() -> None:
    """One query reads one cell with each head: (W s + b - t)^2 summed, by its score."""
    map_BCYX = torch.zeros(1, 2, 2, 4)
    map_BCYX[0, :, 1, 2] = torch.tensor([3.0, 5.0])
    middle = torch.tensor([2.5 / 4, 1.5 / 2])  # x, y of row 1, column 2
    layer = Layer(
        middle.expand(1, 1, 2, 1, 2),
        torch.ones(1, 1, 2, 1),
        torch.tensor([[[1.0, -2.0]]]),
        torch.tensor([[0.5]]),
        torch.tensor([[[1.0, 1.0], [0.0, 2.0]]]),
        torch.tensor([[0.25, -1.0]]),
    )
    valid = torch.ones(1, 2, 4, dtype=torch.bool)
    square = (3 + 5 + 0.25 - 1) ** 2 + (2 * 5 - 1 + 2) ** 2
    assert float(focal([layer], map_BCYX, valid, by_score=False)) == pytest.approx(square)
    assert float(focal([layer], map_BCYX, valid, by_score=True)) == pytest.approx(square / 2)
    other = replace(layer, scores_BQ=torch.zeros(1, 1))
    both = focal([layer, other], map_BCYX, valid, by_score=True)
    assert float(both) == pytest.approx(square / 4)
    valid[0, 1, 2] = False
    assert float(focal([layer, other], map_BCYX, valid, by_score=True)) == 0
    valid[0, 1, 2], valid[0, 0] = True, False  # a neighbour that is not read
    assert float(focal([layer], map_BCYX, valid, by_score=False)) == pytest.approx(square)


def test_best_boxes_by_hand() -> None:
    config = TRUTH.build().get_submodule("").settings  # type: ignore[union-attr]
    rows = torch.tensor([[0.0] * 9, [1.0] * 9, [2.0] * 9, [99.0] * 9])
    found = best(rows, torch.tensor([0.1, 0.4, 0.3, 0.9]), config)  # type: ignore[arg-type]
    assert found[:, 0].tolist() == [99, 1]  # 0.3 itself is not above it
    assert found[0, 3:6].tolist() == [30, 30, 30]
    few = replace_config(most_boxes=1)
    assert best(rows, torch.tensor([0.1, 0.4, 0.3, 0.9]), few)[:, 0].tolist() == [99]
    assert best(rows[:1], torch.tensor([0.9]), config)[0, 3:6].tolist() == pytest.approx([0.1] * 3)  # type: ignore[arg-type]


def replace_config(**settings: Any) -> Any:
    return with_settings(TRUTH, **settings).build().settings


@pytest.mark.parametrize("level", range(4))
def test_blanks_fall_into_boxes_in_the_share_asked_for(level: int) -> None:
    method = FROZEN.build()
    assert isinstance(method, FD3D)
    inside = torch.zeros(2, 6, 60, 60, dtype=torch.bool)
    inside[:, :, 10:50, 20:] = True
    blanks = method._blanks(inside, f"level{level}", 0.25)
    assert not blanks[~inside].any()
    for share in blanks.flatten(1).sum(1) / inside.flatten(1).sum(1):
        assert 0.48 < share < 0.67


def test_blanks_are_drawn_anew_by_step_place_map_and_seed() -> None:
    method = FROZEN.build()
    other = with_settings(FROZEN, seed=1).build()
    assert isinstance(method, FD3D)
    assert isinstance(other, FD3D)
    inside = torch.ones(2, 30, 30, dtype=torch.bool)
    first = method._blanks(inside, "bev", 0.25)
    assert torch.equal(first, method._blanks(inside, "bev", 0.25))
    assert torch.equal(first[:1], method._blanks(inside[:1], "bev", 0.25))
    assert not torch.equal(first[0], first[1])
    for drawn in (
        method._blanks(inside, "bev", 0.5),
        method._blanks(inside, "level0", 0.25),
        other._blanks(inside, "bev", 0.25),
    ):
        assert not torch.equal(first, drawn)


def test_what_is_blanked_is_not_seen() -> None:
    """All cells of boxes blanked, nearly: the student may say anything there."""
    method = with_settings(BARE, blank=[0.999999, 0.999999], masked=0.0).build()
    step = one_box()
    step.targets["bev.encoder"].values += 1
    losses = []
    for value in (0.0, 1e3):
        step.student["bev.encoder"][..., 29:36, 16:24] = value
        losses.append(values(step.run(method))["bev/generative"])
    assert losses[0] == losses[1] == pytest.approx(0.1 * 4)


def in_double(method: Any) -> FD3D:
    """Return the method in float64, but for its head, which is always read in float32."""
    assert isinstance(method, FD3D)
    method.eval().double()
    if method.head is not None:
        method.head.float()
    return method


def loops(method: FD3D, step: Step) -> dict[str, float]:
    """Return the oracle's terms; blanks, generators and the head's numbers are given to it."""
    config, align = method.settings, step.align
    assert align.images is not None
    assert align.images.lidar_to_image_BV44 is not None
    said = method._said(step.targets, step.labels)
    chosen = said.boxes if config.boxes_by == "predicted" else step.labels.canonical_boxes
    boxes = [own.double().tolist() for own in chosen]
    moved = [own.double().tolist() for own in align.boxes([own.double() for own in chosen])]
    to_image, found = align.images.lidar_to_image_BV44.numpy(), {}
    fine = Square(40, 0.32)
    with torch.no_grad():
        for i, size in enumerate(SIZES):
            near = step.student[f"image.level{i}"]
            inside = np.stack(
                [oracle.rectangles(b, m, size, 64) for b, m in zip(boxes, to_image, strict=True)]
            )
            blank = method._blanks(torch.from_numpy(inside), f"level{i}", 0.5)
            seen = near * ~blank[:, :, None]
            made = method.generate[f"level{i}"](seen.flatten(0, 1)).numpy()
            far = step.targets[f"image.level{i}"].values.flatten(0, 1).numpy()
            loss = oracle.generative(made, far, inside.reshape(-1, *size))
            found[f"level{i}/generative"] = config.generative_image * loss
        near = step.student["bev.encoder"]
        own = Square(near.shape[-1], 12.8 / near.shape[-1])
        inside = np.stack([oracle.footprints(b, own) for b in moved])
        blank = method._blanks(torch.from_numpy(inside), "bev", 0.5)
        made = method.generate["bev"](near * ~blank[:, None]).numpy()
    read, valid = oracle.at_canonical_cells(made, align.matrices_B44, fine)
    area = np.stack([oracle.footprints(b, fine) for b in boxes]) & valid
    far = step.targets["bev.encoder"].values.numpy()
    found["bev/generative"] = config.generative_bev * oracle.generative(read, far, area)
    given = [
        {
            name: getattr(layer, name).detach().double().numpy()
            for name in Layer.__dataclass_fields__
        }
        for layer in said.layers
    ]
    found["bev/focal"] = config.focal * oracle.focal(given, read, valid, config.by_score)
    return found


@pytest.mark.parametrize("name", ["clean", "flip", "turn"])
@pytest.mark.parametrize("case", [TRAINED, FROZEN, TRUTH], ids=["trained", "frozen", "truth"])
def test_against_the_oracle(case: MethodContract, name: str) -> None:
    method = in_double(case.build(1))
    step = double(case.step(2, 5, 5, MOVES[name]))
    expected, found = loops(method, step), values(step.run(method))
    for term, loss in expected.items():
        assert found[term] == pytest.approx(loss, rel=1e-5, abs=1e-9), term
    assert expected["bev/focal"] > 0
    assert expected["bev/generative"] > 0
    assert expected["level0/generative"] > 0


OTHERS: dict[str, Any] = {
    "generate_over": "everywhere",
    "by_score": False,
    "generative_image": 2.0,
    "generative_bev": 3.0,
    "focal": 0.7,
}


def test_other_settings() -> None:
    """Everywhere: areas are whole maps. Weights scale their own terms."""
    plain = with_settings(FROZEN, generate_over="everywhere", by_score=False)
    step = FROZEN.step(2, 3, matrix=FLIP)
    before = values(step.run(plain.build().eval()))  # type: ignore[union-attr]
    after = values(step.run(with_settings(FROZEN, **OTHERS).build().eval()))  # type: ignore[union-attr]
    factors = dict.fromkeys(IMAGES, 8.0) | {"bev/generative": 30.0, "bev/focal": 7.0}
    expected = {name: loss * factors.get(name, 1.0) for name, loss in before.items()}
    assert after == pytest.approx(expected, rel=1e-5)
    step = one_box()
    step.student["bev.encoder"][0, 0, 0, 0] = 2.0
    whole = with_settings(BARE, generate_over="everywhere").build()
    assert values(step.run(whole))["bev/generative"] == pytest.approx(0.1 * 4 / 1600)
    assert values(step.run(BARE.build()))["bev/generative"] == 0


@pytest.mark.parametrize("read", ["image.level1", "bev.encoder"])
@pytest.mark.parametrize("case", [TRAINED, TRUTH], ids=["trained", "truth"])
def test_gradients_by_finite_differences(case: MethodContract, read: str) -> None:
    method = in_double(case.build())
    step = double(case.step(2, 3, 4, TURN))

    def loss(value: Tensor) -> Tensor:
        losses = replace(step, student=step.student | {read: value}).run(method)
        return torch.stack(
            [own for name, own in losses.items() if name.endswith(("generative", "focal"))]
        ).sum()

    value = step.student[read].requires_grad_()
    assert torch.autograd.gradcheck(loss, (value,), fast_mode=True, atol=1e-5)
    assert torch.autograd.grad(loss(value), value)[0].abs().sum() > 0


@pytest.mark.parametrize("side", ["teacher", "head"])
def test_what_the_head_learns_from_the_focal_term(side: str) -> None:
    """Of its value projections alone, or nothing; never where to look."""
    method = with_settings(TRAINED, stop_gradient=side).build()
    assert isinstance(method, FD3D)
    assert isinstance(method.head, TrainedHead)
    loss = TRAINED.step(2, 3).run(method)["fd3d/bev/focal"]
    names, parameters = zip(*method.head.named_parameters(), strict=True)
    slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
    reached = {n for n, s in zip(names, slopes, strict=True) if s is not None and s.any()}
    expected = {
        f"decoder.layers.{i}.read.value.{part}" for i in (0, 1) for part in ("weight", "bias")
    }
    assert reached == (expected if side == "teacher" else set())


def test_the_head_learns_from_the_truth_alone() -> None:
    """Each of its parameters has a slope, none of its losses reaches the student."""
    method, step = TRAINED.build(), TRAINED.step(2, 3)
    losses = step.run(method)
    head = losses["fd3d/head/classes"] + losses["fd3d/head/boxes"]
    assert isinstance(method, FD3D)
    assert method.head is not None
    slopes = torch.autograd.grad(head, list(method.head.parameters()), retain_graph=True)
    assert sum(bool(slope.any()) for slope in slopes) > 0.9 * len(slopes)
    reached = torch.autograd.grad(head, list(step.student.values()), allow_unused=True)
    assert reached == (None,) * len(step.student)
    heavy = values(step.run(with_settings(TRAINED, detection=2.5).build()))
    assert heavy["head/boxes"] == pytest.approx(
        2.5 * float(losses["fd3d/head/boxes"].detach()), rel=1e-5
    )


def test_the_head_learns_in_the_canonical_frame() -> None:
    """Its teacher's map is canonical: what the student's frame is does not matter."""
    method = TRAINED.build().eval()
    assert isinstance(method, FD3D)
    here, there = (values(TRAINED.step(2, 3, matrix=m).run(method)) for m in (None, TURN))
    assert here["head/boxes"] == there["head/boxes"]
    assert here["head/classes"] == there["head/classes"]


def as_stored(method: FD3D, step: Step, extra: int = 2) -> dict[str, Target]:
    """Return what a trained head says as a frozen head's targets, by the taps of a detector."""
    assert method.head is not None
    decoder, map_BCYX = method.head.decoder, step.targets["bev.encoder"].values
    with torch.no_grad():
        boxes = method.head(map_BCYX, step.labels).boxes
        taps = decoder.taps(decoder(map_BCYX))
    rows_BN11 = torch.zeros(len(boxes), max(map(len, boxes)) + extra, 11)
    for rows_N11, found in zip(rows_BN11, boxes, strict=True):
        rows_N11[: len(found), :9], rows_N11[: len(found), 9] = found, 0.9
    count_B = torch.tensor([len(own) for own in boxes])
    stored = {name: Target(taps[name].detach()) for name in QUERY_TAPS if name in taps}
    for name, target in stored.items():
        assert target.values.shape[1:] == QUERY_TAPS[name].shape
        kind_of(QUERY_TAPS[name]).check(QUERY_TAPS[name], target.values)
    return {**stored, "head.boxes": Target(rows_BN11, None, count_B)}


@pytest.mark.parametrize("name", ["clean", "turn"])
def test_a_frozen_head_from_the_cache_equals_the_head_itself(name: str) -> None:
    """Every term, and every gradient of the student's."""
    trained, frozen = TRAINED.build().eval(), FROZEN.build(7).eval()
    assert isinstance(trained, FD3D)
    assert isinstance(frozen, FD3D)
    assert trained.head is not None
    for name_of, own in trained.head.named_parameters():
        if name_of.endswith("value.bias"):  # 0 at the start
            torch.nn.init.uniform_(own, -1, 1)
    state = {k: v for k, v in trained.state_dict().items() if not k.startswith("head.")}
    frozen.load_state_dict(state)
    step = TRAINED.step(2, 4, matrix=MOVES[name])
    other = replace(step, targets={**step.targets, **as_stored(trained, step)})
    results = []
    for method, given in ((trained, step), (frozen, other)):
        losses = {k: v for k, v in given.run(method).items() if "head" not in k}
        total = torch.stack(list(losses.values())).sum()
        slopes = torch.autograd.grad(total, list(step.student.values()))
        results.append((values(losses), slopes))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert results[0][0]["bev/focal"] > 0
    for one, two in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", MOVES)
def test_a_sparse_target_equals_a_dense_one_to_the_bit(name: str) -> None:
    """With boxes of ground truth: cells of the mask and of boxes are all that is read."""
    method, step = TRUTH.build(), TRUTH.step(3, 5, 2, MOVES[name])
    assert isinstance(method, FD3D)
    [need] = [need for need in method.needs() if need.role == "bev"]
    assert str(need.region) == "focal 0.8 m + foreground +0 m"
    tap = TRUTH.teacher["bev.encoder"]
    said = torch.randn(3, *tap.shape)
    results = []
    for region in (Region(), need.region):
        spec = TargetSpec(tap, "float32", region)
        stored = encode(said, spec, boxes=step.labels.canonical_boxes)
        step.targets["bev.encoder"] = Target(stored.values, stored.region)
        losses = step.run(method)
        total = torch.stack(list(losses.values())).sum()
        slopes = torch.autograd.grad(total, [*step.student.values(), *method.parameters()])
        results.append([*losses.values(), *slopes])
    kept = step.targets["bev.encoder"].region_BYX
    assert kept is not None
    assert 0.05 < kept.float().mean() < 0.9
    for dense, sparse in zip(*results, strict=True):
        assert torch.equal(dense, sparse)


def test_unused_rows_of_the_box_set_say_nothing() -> None:
    method, step = FROZEN.build().eval(), FROZEN.step(2, 0)
    assert isinstance(method, FD3D)
    losses = values(step.run(method))
    assert [losses[name] for name in (*IMAGES, "bev/generative")] == [0] * 5
    assert losses["bev/focal"] > 0


def test_a_reading_at_float32_needs_no_dense_map() -> None:
    """Frozen, without the generative term of the BEV map: nothing but the mask's cells."""
    method = with_settings(FROZEN, generative_bev=0.0).build()
    [need] = [need for need in method.needs() if need.role == "bev"]
    assert need.region == Region("focal", cell=0.8)
    names = values(FROZEN.step().run(method))
    assert "bev/generative" not in names
    assert "bev/focal" in names


def test_a_detector_describes_the_taps_that_a_frozen_head_reads() -> None:
    described = {tap.name: tap for tap in query_taps(LAYERS, QUERIES, CHANNELS, 2, PLACES // 2, 10)}
    for name, tap in QUERY_TAPS.items():
        if name != "head.boxes":
            assert (tap.kind, tap.shape) == (described[name].kind, described[name].shape)

"""TiGDistill-BEV: hand-computed terms, the loop oracle, identities, and what may not matter."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bevcask.detectors.base import Labels
from bevcask.errors import TargetMismatchError
from bevcask.geometry import Grid, bev_matrix
from bevcask.methods import build_method
from bevcask.methods.base import Target
from bevcask.methods.tigdistill import TiGDistill, box_keypoints, read_points, relations
from bevcask.targets.align import Align, ImageAug
from bevcask.targets.pixels import PIXELS
from bevcask.targets.region import region_mask
from bevcask.targets.spec import Region, TargetSpec
from contracts.method import FLIP, TURN
from methods.oracle_tigdistill import STEPS, box_terms, keypoint
from methods.tigdistill_cases import (
    CASE,
    COARSE,
    DEPTH,
    FEATURES,
    GRID,
    SECTION,
    Taught,
    built,
    neck,
    scene,
)


class TestTiGDistill(Taught):
    pass


def as_tuple(grid: Grid) -> tuple[float, float, float, int, int]:
    return grid.x_min, grid.y_min, grid.cell, grid.num_x, grid.num_y


def test_relations_by_hand() -> None:
    """Vectors (1, 0), (1, 1): Gram rows (1, 1) and (1, 2), scaled to length 1."""
    found = relations(torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]))
    expected = torch.tensor([[[1.0, 1.0], [1.0, 2.0]]])
    torch.testing.assert_close(found, expected / torch.tensor([[2.0], [5.0]]).sqrt())


def test_both_terms_by_hand() -> None:
    """One-channel maps, one twice the other: keypoints relate alike, so do channels of one."""
    method = built(neck(1, GRID), neck(1, GRID))
    student = {"bev.neck": torch.rand(1, 1, 32, 32) + 0.1}
    targets = {"bev.neck": Target(2 * student["bev.neck"])}
    boxes = [torch.tensor([[0.0, 0.0, 0.0, 3.0, 2.0, 1.5, 0.3, 0.0, 0.0]])]
    labels = Labels(boxes, [torch.zeros(1, dtype=torch.int64)], boxes)
    terms = method(student, targets, labels, Align.identity(1), 0.0)
    assert float(terms["tigdistill/inter_keypoint"].detach()) == pytest.approx(0, abs=1e-9)
    assert float(terms["tigdistill/inter_channel"].detach()) == pytest.approx(0, abs=1e-9)
    targets = {"bev.neck": Target(torch.zeros(1, 1, 32, 32))}
    terms = method(student, targets, labels, Align.identity(1), 0.0)
    # A silent teacher relates nothing: every student row has length 1, so each row's gap is 1.
    assert float(terms["tigdistill/inter_keypoint"].detach()) == pytest.approx(100, rel=1e-5)
    assert float(terms["tigdistill/inter_channel"].detach()) == pytest.approx(10, rel=1e-5)


def test_four_keypoints_by_hand() -> None:
    """Two channels at the corners of a box that are cell centres; `widen` changes nothing.

    Channels of the student (1, 1, 1, 1) and (1, -1, 1, -1) have Gram rows (1, 0), (0, 1); those of
    the teacher (1, 1, 1, 1) and (2, 0, 2, 0) have (1, 1) / sqrt 2, (1, 2) / sqrt 5. Rows of unit
    length a and b are 2 - 2 a b apart. Points relate as (2, 0, 2, 0) and (0, 2, 0, 2), as
    (5, 1, 5, 1) and (1, 1, 1, 1).
    """
    method = built(neck(2, GRID), neck(2, GRID))
    method.config = method.config.model_copy(update={"keypoints": 2, "margin": 0.0})
    method.widen = torch.nn.Identity()
    student, teacher = torch.zeros(2, 1, 2, 32, 32)
    student[0, :, 15:17, 15:17] = torch.tensor([[[1.0, 1], [1, 1]], [[1, -1], [1, -1]]])
    teacher[0, :, 15:17, 15:17] = torch.tensor([[[1.0, 1], [1, 1]], [[2, 0], [2, 0]]])
    boxes = [torch.tensor([[0.0, 0.0, 0.0, 0.5, 0.5, 1.5, 0.0, 0.0, 0.0]])]
    labels = Labels(boxes, [torch.zeros(1, dtype=torch.int64)], boxes)
    terms = method(
        {"bev.neck": student}, {"bev.neck": Target(teacher)}, labels, Align.identity(1), 0.0
    )
    channel = 2 - 2**0.5 + 2 - 4 / 5**0.5
    keypoint = 2 - 2 * 10 / 104**0.5 + 2 - 2**0.5
    assert float(terms["tigdistill/inter_channel"]) == pytest.approx(10 * channel / 2, rel=1e-5)
    assert float(terms["tigdistill/inter_keypoint"]) == pytest.approx(100 * keypoint / 2, rel=1e-5)


def test_keypoints_are_the_published_lattice() -> None:
    box = torch.tensor([[1.0, -2.0, 0.0, 4.0, 2.0, 1.5, 0.7, 0.0, 0.0]], dtype=torch.float64)
    points = box_keypoints(box, 1.6, STEPS)[0]
    for i, j in ((0, 0), (0, 23), (23, 0), (5, 17), (23, 23)):
        assert points[i * STEPS + j].tolist() == pytest.approx(keypoint(box[0].numpy(), i, j))


@pytest.mark.parametrize(
    ("matrix", "steps"),
    [(bev_matrix(), 7), (FLIP, 7), (TURN, 7), (TURN, STEPS)],
    ids=["clean", "flip", "turn", "turn, as published"],
)
def test_against_the_oracle(matrix: Any, steps: int) -> None:
    method = built(neck(4, COARSE), neck(6, GRID)).double()
    assert method.config.keypoints == STEPS
    method.config = method.config.model_copy(update={"keypoints": steps})
    step = scene(3, 2, matrix)
    student = {name: value.detach().double() for name, value in step.student.items()}
    targets = {"bev.neck": Target(step.targets["bev.neck"].values.double())}
    found = method(student, targets, step.labels, step.align, 0.0)
    assert isinstance(method.widen, torch.nn.Linear)
    weight, bias = (p.detach().numpy() for p in (method.widen.weight, method.widen.bias))
    totals, count = np.zeros(2), 0
    for b in range(2):
        for box in step.labels.boxes[b].double().numpy():
            back = np.linalg.inv(step.align.matrices_B44[b])
            maps = student["bev.neck"][b].numpy(), targets["bev.neck"].values[b].numpy()
            terms = box_terms(
                maps[0], as_tuple(COARSE), maps[1], as_tuple(GRID), box, back, weight, bias, steps
            )
            totals, count = totals + terms, count + 1
    assert count == 4
    names = ("inter_channel", "inter_keypoint")
    for name, expected in zip(names, totals / count, strict=True):
        assert float(found[f"tigdistill/{name}"].detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("term", ["inter_channel", "inter_keypoint"])
@pytest.mark.parametrize("matrix", [FLIP, TURN], ids=["flip", "turn"])
def test_gradients_by_finite_differences(term: str, matrix: Any) -> None:
    """On the student's map, and on what widens it: only the channels' term trains that."""
    method = built(neck(3, COARSE), neck(2, COARSE)).double()
    method.config = method.config.model_copy(update={"keypoints": 4})
    align = Align(torch.as_tensor(matrix)[None])
    boxes = [torch.tensor([[0.3, 0.2, 0.0, 3.0, 2.0, 1.5, 0.4, 0.0, 0.0]])]
    labels = Labels(align.boxes(boxes), [torch.zeros(1, dtype=torch.int64)], boxes)
    target = {"bev.neck": Target(torch.rand(1, 2, 16, 16, dtype=torch.float64))}
    assert isinstance(method.widen, torch.nn.Linear)
    bias = method.widen.bias.detach().requires_grad_()

    def loss(map_BCYX: Tensor, weight: Tensor) -> Tensor:
        parameters = {"widen.weight": weight, "widen.bias": bias}
        arguments = ({"bev.neck": map_BCYX}, target, labels, align, 0.0)
        found: dict[str, Tensor] = torch.func.functional_call(method, parameters, arguments)
        return found[f"tigdistill/{term}"]

    start = torch.rand(1, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    weight = method.widen.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (start, weight), fast_mode=True, atol=1e-6)
    slopes = torch.autograd.grad(loss(start, weight), (start, weight))
    assert slopes[0].any()
    assert slopes[1].any() == (term == "inter_channel")


def test_scale_does_not_matter() -> None:
    """Of the teacher's map to either term; of the student's to keypoints (channels have a bias)."""
    method, step = built(neck(4, COARSE), neck(6, GRID)), scene()
    before = step.run(method)
    step.targets["bev.neck"].values *= 7.0
    torch.testing.assert_close(step.run(method), before, rtol=1e-5, atol=0)
    step.student = {"bev.neck": step.student["bev.neck"] * 3.0}
    after = step.run(method)
    name = "tigdistill/inter_keypoint"
    torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=0)


def test_more_channels_of_the_same_change_nothing() -> None:
    """Every Gram row of doubled maps is the old one, twice over or twice as long."""
    narrow, wide = built(neck(4, COARSE), neck(6, GRID)), built(neck(8, COARSE), neck(12, GRID))
    assert isinstance(narrow.widen, torch.nn.Linear)
    weight, bias = narrow.widen.parameters()
    padded = torch.cat([weight, torch.zeros_like(weight)], 1)
    wide.load_state_dict(
        {"widen.weight": torch.cat([padded, padded]), "widen.bias": torch.cat([bias, bias])}
    )
    step = scene(matrix=TURN)
    before = step.run(narrow)
    step.student = {"bev.neck": step.student["bev.neck"].repeat(1, 2, 1, 1)}
    step.targets = {"bev.neck": Target(step.targets["bev.neck"].values.repeat(1, 2, 1, 1))}
    torch.testing.assert_close(step.run(wide), before, rtol=1e-5, atol=0)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["32", "bf16-mixed"])
@pytest.mark.parametrize("matrix", [bev_matrix(), FLIP, TURN], ids=["clean", "flip", "turn"])
def test_sparse_cells_give_the_dense_loss_bitwise(matrix: Any, precision: torch.dtype) -> None:
    step = scene(1, 3, matrix)
    dense_BCYX = torch.rand(2, 6, 32, 32)
    region = Region("keypoints", margin=1.6 / 0.95)
    mask = region_mask(region, dense_BCYX, GRID, step.labels.canonical_boxes)
    assert mask is not None
    assert 0.05 < float(mask.float().mean()) < 0.95
    losses = []
    for kind, target in (
        ("all", Target(dense_BCYX)),
        ("keypoints", Target(dense_BCYX * mask[:, None], mask)),
    ):
        step.targets = {"bev.neck": target}
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            losses.append(step.run(built(neck(4, COARSE), neck(6, GRID), kind)))
    for name in losses[0]:
        assert torch.equal(losses[0][name], losses[1][name])


def test_boxes_of_the_batch_weigh_alike_and_chunks_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method, step = built(neck(4, COARSE), neck(6, GRID)), scene(2, 5)
    whole = step.run(method)
    monkeypatch.setattr("bevcask.methods.tigdistill._CHUNK", 2)
    for name, loss in step.run(method).items():
        torch.testing.assert_close(loss, whole[name])
    step.labels.boxes[0] = step.labels.boxes[0][:1]
    step.labels.canonical_boxes[0] = step.labels.canonical_boxes[0][:1]
    uneven = step.run(method)
    alone = [step.sample(b).run(method) for b in range(2)]
    for name, loss in uneven.items():
        torch.testing.assert_close(loss, (alone[0][name] + 5 * alone[1][name]) / 6)


def test_a_linear_field_is_read_exactly() -> None:
    """f(x, y) = (x, y, 1) at any point between the outer cell centres; outside is told."""
    centres = torch.tensor(COARSE.centres())
    field = torch.stack([centres[..., 0], centres[..., 1], torch.ones_like(centres[..., 0])])
    points = torch.rand(1, 50, 2, dtype=torch.float64) * 15 - 7.5
    values, inside = read_points(field, COARSE, points)
    assert inside.all()
    torch.testing.assert_close(values[0, :, :2], points[0])
    _, inside = read_points(field, COARSE, torch.tensor([[[7.6, 0.0], [0.0, -7.6]]]))
    assert not inside.any()


def test_too_small_a_scale_is_refused_on_sparse_targets() -> None:
    method, step = built(neck(4, COARSE), neck(6, GRID), "keypoints"), scene()
    scaled = [torch.as_tensor(bev_matrix(0.0, scale)) for scale in (1.0, 0.9)]
    step.align = Align(torch.stack(scaled))
    with pytest.raises(TargetMismatchError, match=r"shrinks to 0\.900.*smallest_scale=0\.95"):
        step.run(method)
    step.targets["bev.neck"] = replace(step.targets["bev.neck"], region_BYX=None)
    step.run(method)  # whole maps have every cell


def test_target_of_a_narrower_region_is_refused() -> None:
    spec = TargetSpec(neck(6, GRID), "uint8", Region("keypoints", margin=1.0))
    method = build_method(FEATURES)
    with pytest.raises(TargetMismatchError, match=r"'keypoints \+1 m' as uint8, the loss reads"):
        method.build({"bev.neck": neck(4, COARSE)}, {"bev.neck": spec})
    wide = Region("keypoints", margin=2.0)
    union = Region("union", parts=(Region("foreground"), wide))
    for region in (wide, union, Region()):
        build_method(FEATURES).build(
            {"bev.neck": neck(4, COARSE)}, {"bev.neck": TargetSpec(neck(6, GRID), "uint8", region)}
        )


def test_without_inner_depth_neither_points_nor_depth_are_needed() -> None:
    method = build_method(FEATURES)
    assert [need.tap for need in method.needs()] == ["bev.neck"]
    assert method.student_taps() == ["bev.neck"]
    terms = scene().run(built(neck(4, COARSE), neck(6, GRID)))
    assert list(terms) == ["tigdistill/inter_channel", "tigdistill/inter_keypoint"]


def test_a_student_without_depth_is_told_what_to_do() -> None:
    for student in (
        {"bev.neck": neck(4, COARSE)},
        {"bev.neck": neck(4, COARSE), "image.depth": replace(DEPTH, bins=())},
    ):
        with pytest.raises(TargetMismatchError, match=r"'image\.depth'.*inner_depth=0"):
            build_method(SECTION).build(student, CASE.specs())
    specs = {name: spec for name, spec in CASE.specs().items() if name != PIXELS.name}
    with pytest.raises(TargetMismatchError, match=r"no target 'lidar\.pixels'.*inner_depth=0"):
        build_method(SECTION).build(CASE.student, specs)


def test_a_student_without_images_is_refused() -> None:
    step = scene()
    step.align = Align(torch.as_tensor(step.align.matrices_B44))
    with pytest.raises(TargetMismatchError, match="a student that has images"):
        step.run(CASE.build())


def test_inner_depth_reads_the_tap_through_its_bins() -> None:
    """Two cells of one box, all probability in one bin each: 5.5 and 13.5 m, measured 6 and 20."""
    method = CASE.build()
    assert isinstance(method, TiGDistill)
    probabilities = torch.zeros(1, 6, 12, 4, 11)
    probabilities[0, 2, 1, 1, 3] = probabilities[0, 2, 3, 1, 4] = 1
    points = torch.zeros(1, *PIXELS.shape)
    points[0, 0] = torch.tensor([2, 16 * 3 + 8, 16 * 1 + 8, 6.0, 9])
    points[0, 1] = torch.tensor([2, 16 * 4 + 8, 16 * 1 + 8, 20.0, 9])
    points[0, 2] = torch.tensor([2, 16 * 5 + 8, 16 * 1 + 8, 60.0, 9])  # too far
    step = scene(num_boxes=0)
    step = step.sample(0)
    step.student["image.depth"] = probabilities
    step.targets[PIXELS.name] = Target(points, None, torch.tensor([3]))
    loss = step.run(method)["tigdistill/inner_depth"]
    # The first cell is 0.5 m off, the second 6.5 m: the first is the reference.
    assert float(loss) == pytest.approx(((13.5 - 5.5) - (20 - 6)) ** 2 / 2)
    method.config = method.config.model_copy(update={"inner_depth": 3.0})
    assert float(step.run(method)["tigdistill/inner_depth"]) == pytest.approx(3 * float(loss))


def test_the_reference_of_depth_is_chosen_at_the_middle_of_bins() -> None:
    """Expected 5.5, 13.5, 21.5 m; measured 6, 13.9, 20: the second is nearest, by half a bin."""
    method, step = CASE.build(), scene(num_boxes=0).sample(0)
    probabilities = torch.zeros(1, 6, 12, 4, 11)
    points = torch.zeros(1, *PIXELS.shape)
    for column, depth in enumerate((6.0, 13.9, 20.0)):
        probabilities[0, 2, 1 + 2 * column, 1, column] = 1
        points[0, column] = torch.tensor([2, 16 * column + 8, 16 + 8, depth, 9])
    step.student["image.depth"] = probabilities
    step.targets[PIXELS.name] = Target(points, None, torch.tensor([3]))
    loss = step.run(method)["tigdistill/inner_depth"]
    assert float(loss) == pytest.approx(((7.9 - 8) ** 2 + (8 - 6.1) ** 2) / 3, rel=1e-5)


def test_inner_depth_does_not_care_for_the_bev_augmentation() -> None:
    method = CASE.build()
    plain, turned = scene(5), scene(5, matrix=TURN)
    assert float(plain.run(method)["tigdistill/inner_depth"].detach()) > 0
    terms = [step.run(method)["tigdistill/inner_depth"] for step in (plain, turned)]
    assert torch.equal(*terms)


def test_inner_depth_follows_the_image_augmentation() -> None:
    """A flipped student that says the flipped thing loses the same."""
    method, step = CASE.build(), scene(6)
    before = step.run(method)["tigdistill/inner_depth"]
    flip = torch.tensor([[-1.0, 0, 175], [0, 1, 0], [0, 0, 1]])
    step.align = Align(
        torch.as_tensor(step.align.matrices_B44), ImageAug(flip.expand(2, 6, 3, 3), (64, 176))
    )
    step.student["image.depth"] = step.student["image.depth"].flip(-1)
    torch.testing.assert_close(step.run(method)["tigdistill/inner_depth"], before)

import math

import pytest
import torch

from bevcask.detectors.blocks.heads import (
    CenterHead,
    CenterHeadConfig,
    heatmap_loss,
)
from bevcask.geometry import CLASSES, Grid, bev_matrix, transform_boxes
from bevcask.targets.box_code import decode_boxes
from contracts.detector import boxes_of_all_classes, labels_of, no_boxes

GRID = Grid.square(51.2, 0.8)


def head(**changes: object) -> CenterHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CenterHeadConfig.model_validate({"channels": 8, **changes})
        return CenterHead(config, 12, GRID)


def blank(num_samples: int = 1) -> dict[str, torch.Tensor]:
    """A silent head: no score anywhere, unit boxes in the middle of their cells."""
    code = torch.zeros((num_samples, 6, 10, 128, 128))
    code[:, :, :2] = 0.5
    return {"heatmap": torch.full((num_samples, 10, 128, 128), -12.0), "code": code}


def put(preds: dict[str, torch.Tensor], name: str, row: int, column: int, score: float) -> None:
    preds["heatmap"][0, CLASSES.index(name), row, column] = math.log(score / (1 - score))


def test_heatmap_loss_of_known_numbers() -> None:
    target = torch.zeros((1, 10, 1, 3))
    target[0, 0, 0] = torch.tensor([1.0, 0.5, 0.0])  # car: one centre
    logits = torch.full((1, 10, 1, 3), -30.0)
    logits[0, 0, 0] = torch.tensor([0.0, 0.0, math.log(3.0)])  # p = 1/2, 1/2, 3/4
    loss = float(heatmap_loss(logits, target))
    expected = 0.25 * math.log(2) + 0.5**4 * 0.25 * math.log(2) + 0.75**2 * math.log(4)
    assert loss == pytest.approx(expected, abs=1e-5)


def test_heatmap_loss_divides_each_group_by_its_own_centres() -> None:
    logits = torch.zeros((1, 10, 1, 4))
    one = torch.zeros((1, 10, 1, 4))
    one[0, 1, 0, 0] = 1  # truck
    two = one.clone()
    two[0, 2, 0, 1] = 1  # construction vehicle, the same group
    cell = 0.25 * math.log(2)
    assert float(heatmap_loss(logits, one)) == pytest.approx(40 * cell, rel=1e-5)
    assert float(heatmap_loss(logits, two)) == pytest.approx((32 + 8 / 2) * cell, rel=1e-5)


def test_box_loss_of_known_numbers() -> None:
    net = head(velocity_weight=0.5, box_weight=2.0)
    boxes = torch.tensor([[0.4, 0.4, 1.0, 1.0, 1.0, 1.0, 0.0, 2.0, -4.0]])
    labels = labels_of((boxes, torch.tensor([4])))  # reg .5 .5, height 1, log 0, sin 0 cos 1
    loss = net.loss(blank(), labels)["box"]
    assert float(loss) == pytest.approx(2.0 * (1.0 + 1.0 + 0.5 * (2 + 4)) / 1.0001, rel=1e-5)


def test_boxes_of_two_groups_may_share_a_cell() -> None:
    net = head()
    boxes = torch.tensor([[0.4, 0.4, 0.0, 4.0, 2.0, 1.5, 0.0, 1.0, 0.0]]).repeat(2, 1)
    boxes[1, 3:6] = 0.7
    targets = net.targets(labels_of((boxes, torch.tensor([0, 8]))))
    assert targets.task_N.tolist() == [0, 5]
    assert targets.cells_N2[0].tolist() == targets.cells_N2[1].tolist()
    assert targets.code_NE[0, 3] != targets.code_NE[1, 3]


def test_loss_gradients_match_finite_differences() -> None:
    boxes, classes = boxes_of_all_classes()
    labels = labels_of((boxes[:3], classes[:3]))
    net = head()
    generator = torch.Generator().manual_seed(1)
    preds = {
        name: torch.randn(value.shape, generator=generator).requires_grad_()
        for name, value in blank().items()
    }
    losses = net.loss(preds, labels)
    (losses["heatmap"] + losses["box"]).backward()
    direction = {name: value.grad / value.grad.norm() for name, value in preds.items()}
    step = 1e-2
    with torch.no_grad():
        totals = []
        for sign in (1, -1):
            moved = {name: v + sign * step * direction[name] for name, v in preds.items()}
            totals.append(sum(float(v) for v in net.loss(moved, labels).values()))
    slope = (totals[0] - totals[1]) / (2 * step)
    assert slope == pytest.approx(sum(float(v.grad.norm()) for v in preds.values()), rel=2e-2)


def test_decode_reads_the_cell_of_the_peak() -> None:
    preds = blank()
    put(preds, "truck", 20, 100, 0.9)
    preds["code"][0, 1, :, 20, 100] = torch.tensor(
        [0.25, 0.75, -1.0, 1.0, 0.0, 2.0, 0.5, math.sqrt(3) / 2, 3.0, -4.0]
    )
    (found,) = head().decode(preds)
    expected = [
        100.25 * 0.8 - 51.2,
        20.75 * 0.8 - 51.2,
        -1.0,
        math.e,
        1.0,
        math.e**2,
        math.pi / 6,
        3.0,
        -4.0,
    ]
    assert found.boxes_N9.tolist() == [pytest.approx(expected, abs=1e-4)]
    assert found.scores_N.tolist() == [pytest.approx(0.9)]
    assert [CLASSES[i] for i in found.classes_N] == ["truck"]


def test_decode_drops_low_scores_and_far_centres() -> None:
    preds = blank()
    put(preds, "car", 10, 10, 0.3)
    put(preds, "car", 60, 60, 0.8)
    put(preds, "car", 100, 127, 0.8)
    preds["code"][0, 0, 0, 100, 127] = 30.0  # 24 m beyond the border
    (found,) = head(score_threshold=0.5).decode(preds)
    assert len(found.boxes_N9) == 1
    assert found.boxes_N9[0, :2].tolist() == pytest.approx([-2.8, -2.8], abs=1e-4)


def test_decode_suppresses_within_a_group_only() -> None:
    preds = blank()
    put(preds, "motorcycle", 40, 40, 0.9)
    put(preds, "bicycle", 40, 41, 0.8)  # 0.8 m away, same group, radius 0.92 m
    put(preds, "pedestrian", 40, 41, 0.7)  # another group
    put(preds, "traffic_cone", 40, 42, 0.6)  # 0.8 m from the pedestrian, radius 0.42 m
    (found,) = head().decode(preds)
    names = [CLASSES[i] for i in found.classes_N]
    assert names == ["motorcycle", "pedestrian", "traffic_cone"]


def test_rotated_suppression_looks_at_footprints() -> None:
    """Two 1 x 1 m boxes 0.8 m apart share 0.2 of 1.8 square metres: IoU 0.11."""
    preds = blank()
    put(preds, "motorcycle", 40, 40, 0.9)
    put(preds, "bicycle", 40, 41, 0.8)
    for overlap, kept in ((0.10, 1), (0.12, 2)):
        (found,) = head(nms="rotated", nms_overlap=overlap).decode(preds)
        assert len(found.boxes_N9) == kept


def test_decode_returns_at_most_83_boxes_a_group_and_500_in_all() -> None:
    preds = blank()
    preds["heatmap"][:] = 5.0
    (found,) = head(nms_radius=(0.1,) * 6).decode(preds)
    per_task = torch.bincount(found.classes_N, minlength=10).split([1, 2, 2, 1, 2, 2])
    assert [int(part.sum()) for part in per_task] == [83] * 6
    assert len(found.boxes_N9) <= 500


def test_decode_keeps_samples_apart() -> None:
    preds = blank(2)
    put(preds, "car", 60, 60, 0.8)
    first, second = head().decode(preds)
    assert len(first.boxes_N9) == 1
    assert second.boxes_N9.shape == (0, 9)
    assert second.classes_N.dtype == torch.int64


def test_flipped_boxes_decode_from_flipped_targets() -> None:
    boxes, classes = boxes_of_all_classes()
    flipped = transform_boxes(boxes, bev_matrix(flip_x=True))
    net = head()
    plain = net.targets(labels_of((boxes, classes))).heatmap_BKYX
    other = net.targets(labels_of((flipped, classes))).heatmap_BKYX
    assert torch.equal(other, plain.flip(3))


def test_shared_map_depth_and_branch_depth_follow_the_config() -> None:
    deep = head(shared_convs=2, branch_convs=3)
    assert len(deep.shared) == 2
    assert len(deep.tasks[0].heatmap) == 3
    names = {name.partition(".")[0] for name, _ in deep.named_parameters()}
    assert names == {"shared", "tasks"}
    out = deep(torch.randn(1, 12, 128, 128))
    assert out["heatmap"].shape == (1, 10, 128, 128)
    assert out["code"].shape == (1, 6, 10, 128, 128)


@pytest.mark.parametrize("branch_convs", [1, 2])
def test_joined_convolutions_equal_branch_after_branch(branch_convs: int) -> None:
    net = head(branch_convs=branch_convs).eval()
    map_BCYX = torch.randn((1, 12, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        got = net(map_BCYX)
        shared = net.shared(map_BCYX)
        heatmap = torch.cat([task.heatmap(shared) for task in net.tasks], dim=1)
        for number, task in enumerate(net.tasks):
            parts = [task.reg, task.height, task.dim, task.rot, task.vel]
            code = torch.cat([part(shared) for part in parts], dim=1)
            torch.testing.assert_close(got["code"][:, number], code, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got["heatmap"], heatmap, atol=1e-5, rtol=1e-5)


def test_untrained_head_is_unsure_everywhere() -> None:
    preds = head().eval()(torch.zeros(1, 12, 128, 128))
    mean = float(CenterHead.probabilities(preds).detach().mean())
    assert mean == pytest.approx(0.1, abs=0.02)


def test_probabilities_leave_the_logits_alone() -> None:
    preds = head()(torch.randn(1, 12, 128, 128))
    before = preds["heatmap"].clone()
    CenterHead.probabilities(preds).detach().zero_()
    assert torch.equal(preds["heatmap"], before)


def test_codes_are_task_major_and_carry_gradient() -> None:
    preds = head()(torch.randn(2, 12, 128, 128))
    codes = CenterHead.taps(preds)["head.codes"]
    assert codes.shape == (2, 60, 128, 128)
    for task in range(6):
        assert torch.equal(codes[:, 10 * task : 10 * task + 10], preds["code"][:, task])
    assert codes.data_ptr() == preds["code"].data_ptr()  # costs nothing
    (gradient,) = torch.autograd.grad(codes[0, 37, 5, 6], preds["code"])
    assert gradient.nonzero().tolist() == [[0, 3, 7, 5, 6]]


def test_codes_at_a_centre_decode_to_the_box() -> None:
    boxes, classes = boxes_of_all_classes()
    net = head()
    targets = net.targets(labels_of((boxes, classes)))
    preds = blank()
    rows, columns = targets.cells_N2.unbind(1)
    preds["code"][0, targets.task_N, :, rows, columns] = targets.code_NE
    codes = CenterHead.taps(preds)["head.codes"].view(6, 10, 128, 128)
    read = codes[targets.task_N, :, rows, columns]
    torch.testing.assert_close(
        decode_boxes(read, targets.cells_N2, GRID), boxes, atol=1e-4, rtol=1e-5
    )


def test_codes_are_float32_under_autocast() -> None:
    net = head()
    with torch.autocast("cpu", torch.bfloat16):
        preds = net(torch.randn(1, 12, 128, 128))
        taps = net.taps(preds)
    assert preds["code"].dtype == torch.bfloat16
    assert {own.dtype for own in taps.values()} == {torch.float32}


def test_no_boxes_no_box_loss() -> None:
    losses = head().loss(blank(), labels_of(no_boxes()))
    assert float(losses["box"]) == 0
    assert float(losses["heatmap"]) >= 0

"""Heads in the images: what cells say, which boxes they are given, and what that costs."""

import numpy as np
import pytest
import torch

from bevcask.detectors.blocks.focal_image_head import (
    FocalImageHead,
    FocalImageLoss,
    heat_of,
    image_cost,
    match_images,
    token_scores,
)
from bevcask.detectors.blocks.image_overlap import overlap
from bevcask.detectors.blocks.yolox_image_head import (
    Priors,
    YoloxImageHead,
    YoloxImageLoss,
    assign,
    box_corners,
    box_targets,
)
from bevcask.targets.image_boxes import IMAGE_CHANNEL, ImageBoxes
from detectors.golden import BAR, FOLDER, MISSING, gap
from detectors.stream_golden import Golden

needs_golden = pytest.mark.skipif(not (FOLDER / "raydn_a.npz").is_file(), reason=MISSING)
ONE = ImageBoxes(torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([[24.0, 20]]), torch.tensor([4]))
NONE = ImageBoxes(torch.zeros(0, 4), torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))


def test_overlaps_by_hand() -> None:
    one = torch.tensor([0.0, 0, 4, 4])
    others = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 4], [8, 0, 12, 4]])
    torch.testing.assert_close(overlap(one, others), torch.tensor([1, 1 / 3, 0]))
    wanted = torch.tensor([1, 1 / 3, -(48 - 32) / 48])
    torch.testing.assert_close(overlap(one, others, generalised=True), wanted)


def test_a_cell_says_distances_to_its_sides() -> None:
    torch.manual_seed(0)
    head = FocalImageHead(32, 10, 16)
    torch.nn.init.zeros_(head.sides.weight)
    head.sides.bias.data = torch.tensor([0.1, 0.2, 0.25, 0.9]).logit()
    said = head(torch.randn(1, 2, 32, 2, 4), (32, 64))
    centre = torch.tensor([(16 + 8) / 64, 8 / 32])  # row 0, column 1
    low = (centre - torch.tensor([0.1, 0.2])).clamp(0, 1)
    high = (centre + torch.tensor([0.25, 0.9])).clamp(0, 1)
    wanted = torch.cat([(low + high) / 2, high - low])
    torch.testing.assert_close(said["image/boxes"][0, 1, 1], wanted)
    torch.nn.init.zeros_(head.centres.weight)
    torch.nn.init.zeros_(head.centres.bias)
    again = head(torch.randn(1, 1, 32, 2, 4), (32, 64))["image/centres"][0, 0, 1]
    torch.testing.assert_close(again, centre)
    assert token_scores(said).shape == (1, 16)


def test_a_hill_is_as_wide_as_its_centre_is_far_from_the_border() -> None:
    """17 pixels to the nearest side: two cells; the cell of the centre is cut towards zero."""
    boxes = ImageBoxes(
        torch.tensor([[10.0, 10, 90, 90]]), torch.tensor([[27.0, 50]]), torch.tensor([0])
    )
    heat = heat_of(boxes, (6, 6), 16)
    assert heat[3, 1] == 1
    spread = 5 / 6
    torch.testing.assert_close(heat[3, 3], torch.tensor(np.exp(-4 / (2 * spread**2))).float())
    assert heat[3, 4] == 0
    assert heat[0].sum() == 0


@needs_golden
def test_matching_in_images() -> None:
    golden = Golden("streampetr_a")
    ours = torch.tensor(IMAGE_CHANNEL).argsort()
    truth = ImageBoxes(
        golden["match2d/gt_boxes"],
        golden["match2d/gt_centres"],
        ours[golden["match2d/gt_labels"].long()],
    )
    parts = [golden[f"match2d/{name}"] for name in ("cls", "box", "centre")]
    cost = image_cost(*parts, truth, (64, 176), FocalImageLoss())
    assert gap(cost, golden["match2d/cost"]) < BAR
    names = ("image/logits", "image/boxes", "image/centres")
    said = {name: own[None] for name, own in zip(names, parts, strict=True)}
    matched = match_images(said, [truth], (64, 176), FocalImageLoss())
    assigned = golden["match2d/assigned"].long()
    assert torch.equal(matched.cells_M2[:, 1], torch.nonzero(assigned >= 0)[:, 0])
    rows = assigned[assigned >= 0]
    assert torch.equal(matched.corners_M4, truth.corners_N4[rows])


@needs_golden
def test_what_the_heads_say_and_are_given() -> None:
    golden = Golden("streampetr_a")
    detector = golden.make().train()
    for frame in golden.frames:
        batch, key = golden.batch(frame), f"train/{frame}"
        said = detector.image_head(golden.features(batch)[0], golden.config.image_size_HW)
        names = {"logits": "enc_cls_scores", "boxes": "enc_bbox_preds"}
        names |= {"centres": "pred_centers2d", "heat": "centerness"}
        for own, theirs in names.items():
            found = said[f"image/{own}"].flatten(0, 1).detach()
            assert gap(found, golden[f"{key}/roi/{theirs}"]) < BAR, own
        count = golden[f"{key}/roi/topk_indexes"].shape[1]
        best = token_scores(said).topk(count).indices
        assert torch.equal(best, golden[f"{key}/roi/topk_indexes"][..., 0].long())
        images = [own for sample in golden.image_truth(batch) for own in sample]
        heat = torch.stack([heat_of(own, (4, 11), 16) for own in images])
        assert gap(heat, golden[f"{key}/heatmap2d"].flatten(0, 1)) < BAR
        flat = {name: own.flatten(0, 1) for name, own in said.items() if own.ndim > 1}
        matched = match_images(flat, images, golden.config.image_size_HW, FocalImageLoss())
        assigned = golden[f"{key}/assign2d"].flatten(0, 1).long()
        assert torch.equal(matched.cells_M2, torch.nonzero(assigned >= 0))
        boxes = torch.cat(
            [own.corners_N4[row[row >= 0]] for own, row in zip(images, assigned, strict=True)]
        )
        assert torch.equal(matched.corners_M4, boxes)


@needs_golden
def test_cells_are_given_to_boxes_as_released() -> None:
    golden = Golden("raydn_a")
    detector = golden.make().train()
    head = detector.image_head
    assert isinstance(head, YoloxImageHead)
    for frame in golden.frames:
        batch, key = golden.batch(frame), f"train/{frame}/roi"
        said = head(golden.features(batch))
        names = {"logits": "enc_cls_scores", "boxes": "enc_bbox_preds"}
        names |= {"objects": "objectnesses", "centres": "pred_centers2d_offset"}
        for own, theirs in names.items():
            levels = [golden[f"{key}/{theirs}/{n}"].flatten(2).transpose(1, 2) for n in range(4)]
            assert gap(said[f"image/{own}"].detach(), torch.cat(levels, 1)) < BAR, own
        priors = head.priors(said["image/shapes_L2"], torch.device("cpu"))
        corners = box_corners(said["image/boxes"], priors).detach()
        scores = (said["image/logits"].sigmoid() * said["image/objects"].sigmoid()).detach()
        images = [own for sample in golden.image_truth(batch) for own in sample]
        for number, truth in enumerate(images):
            place = f"{number // golden.sizes['N']}/{number % golden.sizes['N']}"
            given = assign(scores[number], corners[number], truth, priors)
            mask = torch.zeros(len(corners[number]), dtype=torch.uint8)
            mask[given.cells_M] = 1
            assert torch.equal(mask, golden[f"{key}/pos/{place}"])
            wanted = ImageBoxes(*(own[given.boxes_M] for own in truth))
            assert torch.equal(wanted.corners_N4, golden[f"{key}/box_target/{place}"])
            middle, centre = box_targets(wanted, priors, given.cells_M)
            assert gap(middle, golden[f"{key}/l1_target/{place}"]) < BAR
            assert gap(centre, golden[f"{key}/center_target/{place}"]) < BAR
            rows = golden[f"{key}/cls_target/{place}"]
            assert gap(given.overlap_M, rows.sum(1)) < BAR


def test_a_prior_with_several_boxes_keeps_the_cheapest() -> None:
    """Two boxes around the only cell: it says the second, and the second takes it."""
    priors = Priors(torch.tensor([[16.0, 16]]), torch.tensor([16.0]))
    truth = ImageBoxes(
        torch.tensor([[0.0, 0, 48, 48], [16, 16, 32, 32]]),
        torch.tensor([[24.0, 24], [24, 24]]),
        torch.tensor([0, 0]),
    )
    corners = box_corners(torch.tensor([[[0.5, 0.5, 0, 0]]]), priors)[0]
    torch.testing.assert_close(corners[0], torch.tensor([16.0, 16, 32, 32]))
    given = assign(torch.full((1, 10), 0.5), corners, truth, priors)
    assert given.cells_M.tolist() == [0]
    assert given.boxes_M.tolist() == [1]
    torch.testing.assert_close(given.overlap_M, torch.ones(1))


def test_images_without_boxes() -> None:
    torch.manual_seed(0)
    focal, yolox = FocalImageHead(32, 10, 16), YoloxImageHead(8, 8, 10, (8, 16))
    said = focal(torch.randn(2, 1, 32, 2, 4), (32, 64))
    losses = focal.loss(said, [[NONE], [NONE]], (32, 64), FocalImageLoss())
    other = yolox([torch.randn(2, 1, 8, 4, 8), torch.randn(2, 1, 8, 2, 4)])
    losses |= {
        f"yolox/{n}": v for n, v in yolox.loss(other, [[NONE]] * 2, YoloxImageLoss()).items()
    }
    zero = {"image/box", "image/overlap", "image/centre", "yolox/image/class", "yolox/image/box"}
    for name, value in losses.items():
        assert bool(value.isfinite()), name
        if name in zero:
            assert value == 0, name
    assert losses["image/class"] > 0


def test_a_step_brings_what_is_said_nearer() -> None:
    torch.manual_seed(0)
    head, map_ = FocalImageHead(32, 10, 16), torch.randn(1, 1, 32, 3, 4)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    totals = []
    for _ in range(12):
        losses = head.loss(head(map_, (48, 64)), [[ONE]], (48, 64), FocalImageLoss())
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.7 * totals[0]

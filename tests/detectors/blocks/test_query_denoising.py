"""Disturbed ground truth: by hand, by geometry, and who may hear whom."""

import torch
from torch import Tensor

from bevcask.detectors.blocks.query_denoising import (
    Draws,
    Noisy,
    along_rays,
    blocked,
    disturb,
    draw,
    plain_group,
    ray_steps,
)
from bevcask.detectors.blocks.ray_positions import Cameras
from detectors.small_stream import SMALL_PETR, SMALL_RAY, seen, small

DENOISING = SMALL_RAY.denoising
IN_VIEW = torch.tensor([2.0, 20.0, 1.5, 4.0, 2.0, 3.0, 0.3, 1.0, 0.0])  # of the first camera
ABOVE = torch.tensor([0.0, 2.0, 7.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0])  # of all cameras


def cameras(samples: int) -> Cameras:
    return small(SMALL_RAY)._cameras(seen(samples, 0))


def half(boxes: int, along: Tensor | None = None) -> Draws:
    plain = torch.full((DENOISING.groups, boxes, 3), 0.5)
    along = torch.full((5, boxes), 0.9) if along is None else along
    return Draws(plain, along, torch.full((boxes,), 0.75))


def pixel(place: Tensor, camera: Cameras, view: int, sample: int = 0) -> Tensor:
    seen_4 = camera.lidar_to_image_BV44[sample, view] @ torch.cat([place, torch.ones(1)])
    return seen_4[:2] / seen_4[2]


def test_a_plain_group_by_hand() -> None:
    """A draw of 1 is a face of the box; what moves farther than the split is no object."""
    draws = torch.tensor([[[1.0, 0.5, 0.5]], [[0.5, 0.8, 0.5]]])
    centres, labels = plain_group(IN_VIEW[None], torch.tensor([4]), draws, DENOISING, 10)
    torch.testing.assert_close(centres[0, 0], torch.tensor([4.0, 20.0, 1.5]))
    torch.testing.assert_close(centres[1, 0], torch.tensor([2.0, 20.6, 1.5]))
    assert labels.tolist() == [[10], [4]]


def test_the_shortest_step_is_the_object() -> None:
    """Its sign is dropped; where even it is too long another is drawn, box by box."""
    along = torch.tensor([[0.9, 0.95, 0.2], [0.45, 0.9, 0.9], [0.8, 0.05, 0.95]])
    draws = Draws(torch.zeros(0), along, torch.tensor([0.25, 0.9]))
    steps, best = ray_steps(draws, DENOISING)
    assert best.tolist() == [1, 1, 0]
    torch.testing.assert_close(steps[:, 0], torch.tensor([2.4, 0.3, 1.8]))
    torch.testing.assert_close(steps[:, 1], torch.tensor([2.7, -0.375, -2.7]))
    torch.testing.assert_close(steps[:, 2], torch.tensor([0.6, 2.4, 2.7]), msg="redrawn")


def test_steps_go_along_the_ray_of_a_camera() -> None:
    """Centres stay at their pixel; steps are half mean sizes in depth."""
    camera, boxes = cameras(1), torch.stack([IN_VIEW, ABOVE])
    steps = torch.tensor([[1.0, 1.0], [-2.0, 1.0]])
    moved, found = along_rays(boxes, torch.tensor([0, 0]), steps, camera, range(6))
    assert found.tolist() == [True, False]
    assert torch.equal(moved[:, 1], ABOVE[:3].expand(2, 3)), "nobody sees it"
    for step, place in zip(steps[:, 0], moved[:, 0], strict=True):
        torch.testing.assert_close(
            pixel(place, camera, 0), pixel(IN_VIEW[:3], camera, 0), atol=1e-3, rtol=0
        )
        depth = camera.lidar_to_image_BV44[0, 0, 2] @ torch.cat([place, torch.ones(1)])
        before = camera.lidar_to_image_BV44[0, 0, 2] @ torch.cat([IN_VIEW[:3], torch.ones(1)])
        torch.testing.assert_close(depth - before, step * 1.5, atol=1e-3, rtol=0)


def test_all_draws_of_all_boxes_are_at_one_pixel() -> None:
    """Anywhere in range, under a BEV augmentation; each box is an object once, and near itself."""
    shown = seen(2, 4)
    assert not any(torch.equal(own, torch.eye(4)) for own in shown.bev_aug_B44)
    camera, order = small(SMALL_RAY)._cameras(shown), SMALL_RAY.camera_order
    generator = torch.Generator().manual_seed(5)
    boxes = torch.rand((300, 9), generator=generator)
    boxes[:, :2] = 90 * boxes[:, :2] - 45
    boxes[:, 2], boxes[:, 3:6] = 4 * boxes[:, 2] - 2, 0.5 + 4 * boxes[:, 3:6]
    samples, draws = torch.arange(300) % 2, draw(300, DENOISING)
    steps, best = ray_steps(draws, DENOISING)
    moved, found = along_rays(boxes, samples, steps, camera, order)
    height, width = camera.size_HW
    matrices = camera.lidar_to_image_BV44.double()
    compared = 0
    for box, sample in enumerate(samples.tolist()):
        place = torch.cat([boxes[box, :3], torch.ones(1)]).double()
        pixels = {
            view: (own[:2] / own[2], own[2])
            for view in order
            for own in [matrices[sample, view] @ place]
        }
        sees = [
            v
            for v, (at, depth) in pixels.items()
            if depth > 0 and bool((at >= 0).all()) and at[0] < width and at[1] < height
        ]
        assert bool(found[box]) == bool(sees)
        for place in moved[:, box] if sees else ():
            own = matrices[sample, sees[-1]] @ torch.cat([place, torch.ones(1)]).double()
            if abs(own[2]) > 1:  # nearer a millimetre is more than a pixel
                compared += 1
                assert float((own[:2] / own[2] - pixels[sees[-1]][0]).abs().max()) < 1e-3
    assert compared > 500
    assert bool((steps.gather(0, best[None]).abs() <= DENOISING.split).all())


def test_every_box_is_one_object_of_its_rays() -> None:
    boxes = torch.stack([IN_VIEW] * 40)
    boxes[:, 0] = torch.linspace(-8, 8, 40)
    kinds = torch.arange(40) % 10
    parts = [[own[:25], own[25:]] for own in (boxes, kinds)]
    found = disturb(*parts, draw(40, DENOISING), SMALL_RAY, cameras(2))
    rays = found.labels_R[DENOISING.groups * 40 :].view(5, 40)
    assert bool(((rays != 10).sum(0) == 1).all())
    assert torch.equal(rays.amin(0), kinds)


def test_the_last_camera_that_sees_a_box_moves_it() -> None:
    camera = cameras(1)
    matrices = camera.lidar_to_image_BV44.clone()
    matrices[0, 3] = matrices[0, 0]
    matrices[0, 3, 0] += 4 * matrices[0, 3, 2]  # it sees the same 4 pixels to the right
    camera = camera._replace(lidar_to_image_BV44=matrices)
    steps, one = torch.ones(1, 1), IN_VIEW[None]
    found = {}
    for order in ((0, 3), (3, 0)):
        moved, _ = along_rays(one, torch.tensor([0]), steps, camera, order)
        found[order] = moved[0, 0]
        last = order[-1]
        torch.testing.assert_close(
            pixel(moved[0, 0], camera, last), pixel(IN_VIEW[:3], camera, last), atol=1e-3, rtol=0
        )
    assert len(found) == 2


def noisy(boxes: list[Tensor], draws: Draws, released: bool = False) -> Noisy:
    config = SMALL_RAY.model_copy(update={"released": released})
    classes = [torch.arange(len(own)) for own in boxes]
    return disturb(boxes, classes, draws, config, cameras(len(boxes)))


def test_one_object_of_the_five() -> None:
    found = noisy([torch.stack([IN_VIEW, IN_VIEW])], half(2))
    ray = found.labels_R[2 * DENOISING.groups :].view(5, 2)
    assert [(ray[:, box] == box).sum() for box in range(2)] == [1, 1]
    assert int((ray == 10).sum()) == 8


def test_a_box_that_no_camera_sees_denies_its_place_only_as_released() -> None:
    for released, wanted in ((False, 1), (True, 5)):
        found = noisy([ABOVE[None]], half(1), released)
        assert len(found.labels_R) == DENOISING.groups + wanted
        assert (found.labels_R == 10).sum() == wanted - 1


def test_rows_belong_to_their_sample_and_group() -> None:
    boxes = [torch.stack([IN_VIEW] * 3), IN_VIEW[None]]
    boxes[0][:, 0] = torch.tensor([-3.0, 0.0, 3.0])
    found = noisy(boxes, half(4))
    assert found.references_BN3.shape == (2, 3 * (DENOISING.groups + 5), 3)
    metres = found.references_BN3 * torch.tensor([102.4, 102.4, 13.0]) - torch.tensor(
        [51.2, 51.2, 5.0]
    )
    torch.testing.assert_close(metres[0, 3:6, 0], boxes[0][:, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(metres[1, 3], IN_VIEW[:3], atol=1e-4, rtol=0)
    assert not bool(found.references_BN3[1, 4:6].any()), "rows that fill up"
    assert torch.equal(found.boxes_R9[:4], torch.cat(boxes))


def test_who_may_hear_whom() -> None:
    """Two boxes, two plain groups and five draws of one ray group."""
    mask = blocked(2, SMALL_RAY, torch.device("cpu"))
    pad, others = 2 * 7, SMALL_RAY.queries + SMALL_RAY.propagated
    assert mask.shape == (pad + others, pad + SMALL_RAY.queries + SMALL_RAY.memory)
    free = ~mask
    assert bool(free[:, pad:].all()), "all hear learned queries and memory"
    assert not bool(free[pad:, :pad].any()), "nobody else hears the disturbed"
    wanted = torch.zeros(pad, pad, dtype=torch.bool)
    for low, high in ((0, 2), (2, 4), (4, 14)):
        wanted[low:high, low:high] = True
    assert torch.equal(free[:pad, :pad], wanted)


def test_numbers_follow_torchs_seed() -> None:
    """So that a run that goes on from a checkpoint draws what it would have drawn."""
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append([draw(2000, DENOISING), draw(2000, DENOISING)])
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(found[0][0].plain_GN3, found[0][1].plain_GN3)
    assert not torch.equal(found[0][0].plain_GN3, found[2][0].plain_GN3)
    beta = found[0][0].along_RN
    assert abs(float(beta.mean()) - 0.8) < 0.01
    assert abs(float(beta.var()) - 8 * 2 / (100 * 11)) < 0.001
    assert 0.49 < float(found[0][0].plain_GN3.mean()) < 0.51


def test_no_boxes_at_all() -> None:
    none = torch.zeros((0, 9))
    found = noisy([none, none], half(0))
    assert found.references_BN3.shape == (2, 0, 3)
    assert found.blocked_QM is None


def test_without_rays() -> None:
    config = SMALL_PETR
    draws = draw(3, config.denoising)
    assert draws.along_RN.shape == (0, 3)
    found = disturb([torch.stack([IN_VIEW] * 3)], [torch.arange(3)], draws, config, cameras(1))
    assert found.references_BN3.shape == (1, 3 * config.denoising.groups, 3)

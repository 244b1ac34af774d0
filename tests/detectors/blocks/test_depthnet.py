"""Camera numbers, depth pooling and the depth loss, by hand."""

import math

import pytest
import torch

from bevcask.detectors.blocks.depthnet import (
    ASPP,
    NUM_CAMERA_NUMBERS,
    DepthNet,
    camera_numbers,
    depth_loss,
)
from bevcask.detectors.blocks.lift_splat import Cameras


def cameras() -> Cameras:
    intrinsics = torch.tensor([[1200.0, 0, 800], [0, 1100, 450], [0, 0, 1]])
    image_aug = torch.tensor([[0.5, 0.1, -20], [-0.1, 0.4, 30], [0, 0, 1]])
    pose = torch.arange(16.0).view(4, 4)
    bev_aug = torch.tensor([[0.0, -2, 0, 0], [2, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    return Cameras(
        intrinsics.expand(1, 2, 3, 3),
        image_aug.expand(1, 2, 3, 3),
        pose.expand(1, 2, 4, 4),
        bev_aug[None],
    )


def test_camera_numbers_in_kilopixels_and_metres() -> None:
    numbers = camera_numbers(cameras())
    assert tuple(numbers.shape) == (1, 2, NUM_CAMERA_NUMBERS)
    expected = [1.2, 1.1, 0.8, 0.45, 0.5, 0.1, -0.1, 0.4, -0.02, 0.03, 0, -2, 2, 0, 3]
    torch.testing.assert_close(
        numbers[0, 1], torch.tensor([*expected, *(float(n) for n in range(12))])
    )


def test_the_camera_gates_both_branches() -> None:
    net = DepthNet(6, 8, 5, 7, num_blocks=1, dilations=(1, 2)).eval()
    features = torch.rand(1, 2, 6, 4, 6)
    numbers = camera_numbers(cameras()).clone()
    with torch.no_grad():
        logits, context = net(features, numbers)
        assert tuple(logits.shape) == (1, 2, 7, 4, 6)
        assert tuple(context.shape) == (1, 2, 5, 4, 6)
        numbers[0, 1, 0] += 1.0
        other_logits, other_context = net(features, numbers)
    for before, after in ((logits, other_logits), (context, other_context)):
        assert torch.equal(before[:, 0], after[:, 0])
        assert not torch.allclose(before[:, 1], after[:, 1])


def test_aspp_keeps_the_size_and_sees_the_whole_image() -> None:
    aspp = ASPP(16, (1, 6)).eval()
    features = torch.rand(1, 16, 8, 20)
    changed = features.clone()
    changed[:, :, 0, 0] += 1
    with torch.no_grad():
        before, after = aspp(features), aspp(changed)
    assert before.shape == features.shape
    assert not torch.equal(before[:, :, 7, 19], after[:, :, 7, 19])


def test_depth_loss_by_hand() -> None:
    logits = torch.zeros(1, 1, 3, 1, 4)
    logits[0, 0, :, 0, 0] = torch.tensor([math.log(2.0), 0.0, 0.0])  # p = 1/2, 1/4, 1/4
    depth = torch.tensor([[[[2.9, 0.0, 8.0, 1.9]]]])  # bins [2, 4) [4, 6) [6, 8): one cell counts
    expected = -(math.log(1 / 2) + 2 * math.log(3 / 4))
    assert float(depth_loss(logits, depth, low=2.0, bin_size=2.0)) == pytest.approx(expected)


def test_depth_loss_is_the_cross_entropy_of_the_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 3, 5, 4, 6), generator=generator, dtype=torch.float32)
    depth = 12 * torch.rand((2, 3, 4, 6), generator=generator)
    depth[torch.rand(depth.shape, generator=generator) < 0.5] = 0
    total, count = 0.0, 0
    for index in torch.cartesian_prod(*(torch.arange(n) for n in (2, 3, 4, 6))).tolist():
        b, v, h, w = index
        metres = float(depth[b, v, h, w])
        if 1.0 <= metres < 11.0:
            p = logits[b, v, :, h, w].softmax(dim=0)
            target = torch.zeros(5)
            target[int((metres - 1.0) / 2.0)] = 1.0
            total += float(torch.nn.functional.binary_cross_entropy(p, target, reduction="sum"))
            count += 1
    assert float(depth_loss(logits, depth, 1.0, 2.0)) == pytest.approx(total / count, rel=1e-5)


def test_depth_loss_gradient() -> None:
    logits = torch.randn(1, 2, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    depth = torch.tensor([1.5, 2.5, 0.0, 3.5, 4.5, 1.2, 9.0, 2.2]).view(1, 2, 2, 2)
    assert torch.autograd.gradcheck(lambda own: depth_loss(own, depth, 1.0, 1.0), (logits,))
    depth_loss(logits, depth, 1.0, 1.0).backward()
    assert logits.grad is not None
    assert float(logits.grad[0, 0, :, 1, 0].abs().sum()) == 0  # no LiDAR point there


@pytest.mark.parametrize("scale", [1e3, -1e3])
def test_confident_mistakes_keep_a_finite_gradient(scale: float) -> None:
    logits = torch.zeros(1, 1, 3, 1, 1)
    logits[0, 0, 1] = scale
    logits.requires_grad_()
    loss = depth_loss(logits, torch.full((1, 1, 1, 1), 1.5), 1.0, 1.0)
    loss.backward()
    assert logits.grad is not None
    assert bool(loss.isfinite())
    assert bool(logits.grad.isfinite().all())
    assert float(logits.grad[0, 0, 0]) < 0


def test_no_lidar_means_no_loss_but_a_gradient_path() -> None:
    logits = torch.zeros(1, 1, 3, 1, 1, requires_grad=True)
    loss = depth_loss(logits, torch.zeros(1, 1, 1, 1), 1.0, 1.0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None


def test_autocast_does_not_round_the_loss() -> None:
    logits = torch.randn(1, 1, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    depth = torch.full((1, 1, 3, 3), 3.3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = depth_loss(logits, depth, 1.0, 1.0)
    assert torch.equal(loss, depth_loss(logits, depth, 1.0, 1.0))

"""How many operations a detector takes: what a step could save, before any GPU is touched."""

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from bevcask.config import Config
from bevcask.detectors.base import Batch, Detector, Inputs
from bevcask.geometry import CAMERAS

_POINTS = 30_000  # a LiDAR scan of nuScenes, most of it within range
_REACH = 40.0  # metres, standard deviation of their places


def operations(plugin: type[Detector], config: Config, training: bool = False) -> int:
    """Return the floating point operations of a forward pass of one frame.

    Matrix products and convolutions are counted, two a multiplication and addition; what samples,
    normalises or sums is not. Weights and pixels are random; the frame has no frame before it.

    Args:
        plugin: the detector's class.
        config: its architecture.
        training: with heads that only training has.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = plugin(config).train(training).requires_grad_(requires_grad=False)
    inputs = replace(plugin.inputs(config), depth=False)
    batch = random_frame(inputs)
    if inputs.history and not inputs.memory:
        batch.history = tuple(random_frame(inputs) for _ in range(inputs.history))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        detector(batch)
    return int(counter.get_total_flops())


def random_frame(inputs: Inputs, number: int = 0) -> Batch:
    """Return a frame of random pixels from six cameras around the car, and points if wanted.

    Args:
        inputs: what the detector wants.
        number: which frame of a scene; it goes on with the one before.
    """
    generator = torch.Generator().manual_seed(number)
    batch = Batch(
        tokens=[str(number)],
        bev_aug_B44=torch.eye(4)[None],
        can_bus_B18=torch.full((1, 18), float(number), dtype=torch.float64),
        seconds_B=torch.full((1,), 0.5 * number, dtype=torch.float64),
        lidar_to_global_B44=torch.eye(4, dtype=torch.float64)[None],
        after=[None if number == 0 else str(number - 1)],
    )
    if inputs.num_sweeps:
        width = 17 if inputs.virtual_points else 5
        points_P5 = torch.randn((_POINTS * inputs.num_sweeps, width), generator=generator)
        points_P5[:, :2] *= _REACH
        batch.points = [points_P5]
    if inputs.image_size_HW is None:
        return batch
    num, scale = len(CAMERAS), inputs.image_size_HW[1] / 1600
    angle_V = 2 * torch.pi * torch.arange(num) / num
    pose_V44 = torch.eye(4).repeat(num, 1, 1)
    pose_V44[:, 0, 0], pose_V44[:, 0, 2] = angle_V.cos(), -angle_V.sin()
    pose_V44[:, 1, 0], pose_V44[:, 1, 2] = angle_V.sin(), angle_V.cos()
    pose_V44[:, 2, 1], pose_V44[:, 2, 2], pose_V44[:, 2, 3] = -1.0, 0.0, 1.5
    intrinsics_33 = torch.tensor([[1260.0, 0, 800], [0, 1260, 450], [0, 0, 1]])
    return replace(
        batch,
        images_BVCHW=torch.randint(
            256, (1, num, 3, *inputs.image_size_HW), generator=generator, dtype=torch.uint8
        ),
        intrinsics_BV33=intrinsics_33.expand(1, num, 3, 3),
        image_aug_BV33=torch.diag(torch.tensor([scale, scale, 1.0])).expand(1, num, 3, 3),
        camera_to_lidar_BV44=pose_V44[None],
    )

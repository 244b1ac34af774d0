"""StreamPETR and RayDN of a few thousand weights, and frames for them."""

import math
from dataclasses import replace
from typing import Any, TypeVar

import torch

from bevcask.detectors.base import Batch
from bevcask.detectors.streampetr import RayDN, RayDNConfig, StreamPETR, StreamPETRConfig
from bevcask.geometry import bev_matrix
from detectors.scenes import camera_batch

Petr = TypeVar("Petr", StreamPETR, RayDN)
SIZE_HW = (32, 64)
_COMMON: dict[str, Any] = {
    "image_size_HW": SIZE_HW,
    "channels": 16,
    "heads": 2,
    "feed_forward": 24,
    "dropout": 0.0,
    "layers": 2,
    "queries": 12,
    "propagated": 4,
    "memory": 10,
    "kept": 5,
    "max_boxes": 20,
}
_BACKBONE = {
    "blocks": (1, 1, 1, 1),
    "width": 4,
    "stride_first": False,
    "deformable": (),
    "frozen_stages": -1,
}
SMALL = StreamPETRConfig.model_validate(
    {**_COMMON, "depth_bins": 32, "backbone": {**_BACKBONE, "levels": ("c4", "c5")}}
)
SMALL_RAYDN = RayDNConfig.model_validate(
    {**_COMMON, "points": 3, "groups": 4, "backbone": {**_BACKBONE, "levels": ("c3", "c4", "c5")}}
)


def seen(num_samples: int, seed: int) -> Batch:
    """Return frames half a second apart, the ego a kilometre off, driving and turning."""
    batch = camera_batch(num_samples, seed, SIZE_HW)
    poses = torch.stack([pose(seed + i) for i in range(num_samples)])
    seconds = 1.5e9 + 0.5 * (seed + torch.arange(num_samples, dtype=torch.float64))
    return replace(batch, lidar_to_global_B44=poses, seconds_B=seconds)


def pose(frame: int) -> torch.Tensor:
    matrix = torch.from_numpy(bev_matrix(0.1 * frame)).double()
    matrix[:3, 3] = torch.tensor([1000 + 4 * frame, 1500 - math.sin(frame), 0.5])
    return matrix


def small_streampetr() -> StreamPETR:
    """Return it with fixed weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _stirred(StreamPETR(SMALL))


def small_raydn() -> RayDN:
    """Return it with fixed weights, none of which is 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _stirred(RayDN(SMALL_RAYDN))


def _stirred(detector: Petr) -> Petr:
    with torch.no_grad():
        for own in detector.head.parameters():
            own.add_(0.1 * torch.randn(own.shape))
    return detector

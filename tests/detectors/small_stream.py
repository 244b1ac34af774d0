"""A StreamPETR and a RayDN of a few thousand weights, and frames for them."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bevcask.config import build_config
from bevcask.detectors.base import Batch
from bevcask.detectors.raydn import RayDN, RayDNConfig
from bevcask.detectors.stream_config import StreamConfig
from bevcask.detectors.stream_family import StreamDetector
from bevcask.detectors.streampetr import StreamPETR, StreamPETRConfig
from bevcask.geometry import bev_matrix, pose_matrix
from bevcask.groups import load_group
from detectors.scenes import camera_batch

_COMMON: dict[str, Any] = {
    "image_size_HW": (48, 64),
    "camera_size_HW": (450, 800),
    "backbone": {"blocks": (1, 1, 1, 1), "width": 4, "bottlenecks": False},
    "channels": 32,
    "heads": 2,
    "feed_forward": 16,
    "dropout": 0.0,
    "layers": 2,
    "queries": 24,
    "propagated": 6,
    "kept": 8,
    "memory": 20,
    "low": (-51.2, -51.2, -5.0),
    "high": (51.2, 51.2, 8.0),
    "history": 1,
    "denoising": {"groups": 2},
}
SMALL_PETR = StreamPETRConfig.model_validate(_COMMON | {"depth_bins": 32})
SMALL_RAY = RayDNConfig.model_validate(
    _COMMON | {"groups": 4, "points": 3, "image_channels": 8, "levels": 4}
)


def pose(seed: int) -> torch.Tensor:
    """Where the car is in frame `seed`, far from the origin and not level."""
    yaw = 0.1 * seed
    turn = (np.cos(yaw / 2), 0.01, 0.0, np.sin(yaw / 2))
    return torch.from_numpy(pose_matrix((1000.0 + 4 * seed, 600.0 - seed, 1.0), turn))


def seen(num_samples: int, seed: int) -> Batch:
    """Return frames half a second apart, each under a BEV augmentation of its own."""
    frames = range(seed, seed + num_samples)
    bev = [bev_matrix(0.05 * (frame % 5), 1 + 0.01 * (frame % 3)) for frame in frames]
    return replace(
        camera_batch(num_samples, seed, SMALL_PETR.image_size_HW),
        bev_aug_B44=torch.from_numpy(np.stack(bev)).float(),
        seconds_B=torch.tensor([1.5e9 + 0.5 * frame for frame in frames], dtype=torch.float64),
        lidar_to_global_B44=torch.stack([pose(frame) for frame in frames]),
    )


def small(config: StreamConfig) -> StreamDetector:
    """Return it with fixed weights; none of them silent."""
    kind = RayDN if isinstance(config, RayDNConfig) else StreamPETR
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = kind(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, own in detector.named_parameters():
            if name.endswith(("gamma.weight", "beta.weight", "read.weights.weight")):
                own.normal_(std=0.1, generator=generator)
    return detector


def shipped(name: str) -> StreamConfig:
    _, config = build_config("detector", load_group("detector", name), "student.detector")
    assert isinstance(config, StreamConfig)
    return config

"""A BEVFormer of a few thousand weights, and frames for it."""

from dataclasses import replace

import torch

from bevcask.config import build_config
from bevcask.detectors.base import Batch
from bevcask.detectors.bevformer import BEVFormer, BEVFormerConfig
from bevcask.groups import load_group
from detectors.scenes import camera_batch

SMALL = BEVFormerConfig.model_validate(
    {
        "image_size_HW": (30, 60),
        "pad_divisor": 16,
        "backbone": {"blocks": (1, 1, 1, 1), "width": 4, "frozen_stages": 1},
        "channels": 16,
        "heads": 2,
        "feed_forward": 16,
        "dropout": 0.0,
        "bev_size_YX": (10, 8),
        "half_extent": 51.2,
        "encoder": {"layers": 2, "spatial_points": 4},
        "decoder_layers": 2,
        "decoder_points": 2,
        "queries": 24,
        "history": 1,
    }
)


def can_bus(num_samples: int, seed: int) -> torch.Tensor:
    return torch.stack(
        [
            torch.randn(18, generator=torch.Generator().manual_seed(seed + i)).double()
            for i in range(num_samples)
        ]
    )


def seen(num_samples: int, seed: int) -> Batch:
    batch = camera_batch(num_samples, seed, SMALL.image_size_HW)
    return replace(batch, can_bus_B18=can_bus(num_samples, seed))


def small_bevformer() -> BEVFormer:
    """Return it with fixed weights, offsets and weights that listen to the queries."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = BEVFormer(SMALL)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, own in detector.named_parameters():
            if name.endswith(("offsets.weight", "weights.weight", "conv_offset.weight")):
                own.normal_(std=0.1, generator=generator)
    return detector


def shipped(name: str) -> BEVFormerConfig:
    plugin, config = build_config("detector", load_group("detector", name), "student.detector")
    assert plugin is BEVFormer
    assert isinstance(config, BEVFormerConfig)
    return config

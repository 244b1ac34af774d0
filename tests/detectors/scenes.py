"""Random inputs with sane geometry; sample i depends on seed + i alone."""

import math

import torch

from bevcask.detectors.base import MEAN_RGB, STD_RGB, Batch

VIEWS = 6


def scan(seed: int) -> torch.Tensor:
    """Points on rings, thinner far away."""
    generator = torch.Generator().manual_seed(seed)
    num_points = 2500 + seed % 7 * 100
    u_P5 = torch.rand((num_points, 5), generator=generator)
    radius, angle = 60 * u_P5[:, 0], 2 * math.pi * u_P5[:, 1]
    x, y, z = radius * angle.cos(), radius * angle.sin(), 4 * u_P5[:, 2] - 3
    return torch.stack([x, y, z, 255 * u_P5[:, 3], 0.5 * u_P5[:, 4]], dim=1)


def camera_to_lidar() -> torch.Tensor:
    """Six level cameras on a ring, the first looking along +y, (6, 4, 4)."""
    poses = []
    for view in range(VIEWS):
        angle = 2 * math.pi * view / VIEWS
        c, s = math.cos(angle), math.sin(angle)
        poses.append([[c, 0, -s, 0], [s, 0, c, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
    return torch.tensor(poses)


def painted(normal: torch.Tensor) -> torch.Tensor:
    """Pixels, not whole, that are these numbers (..., 3, H, W) once normalised."""
    mean_311, std_311 = (torch.tensor(own).view(3, 1, 1) for own in (MEAN_RGB, STD_RGB))
    return normal * std_311 + mean_311


def images(seed: int, size_HW: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Six images and sparse depth maps (V, H, W), metres."""
    generator = torch.Generator().manual_seed(seed)
    pixels = painted(torch.randn((VIEWS, 3, *size_HW), generator=generator))
    depth = 60 * torch.rand((VIEWS, *size_HW), generator=generator)
    depth[torch.rand(depth.shape, generator=generator) < 0.9] = 0
    return pixels, depth


def in_original(depth_VHW: torch.Tensor, image_aug_33: torch.Tensor) -> torch.Tensor:
    """Points (P, 5) that are drawn as these depth maps; `targets.pixels.FIELDS`."""
    view_P, row_P, column_P = depth_VHW.nonzero(as_tuple=True)
    network_P3 = torch.stack([column_P, row_P, torch.ones_like(row_P)], 1).double()
    original_P3 = network_P3 @ image_aug_33.double().inverse().T
    depth_P = depth_VHW[view_P, row_P, column_P]
    fields = [view_P, original_P3[:, 0], original_P3[:, 1], depth_P, torch.zeros_like(depth_P)]
    return torch.stack([own.float() for own in fields], 1)


def camera_batch(num_samples: int, seed: int, size_HW: tuple[int, int]) -> Batch:
    """Six cameras of 800 x 450 pixels, resized to the width and cut at the top."""
    seen = (images(seed + i, size_HW) for i in range(num_samples))
    pixels, depth = zip(*seen, strict=True)
    height, width = size_HW
    scale = width / 800
    intrinsics = torch.tensor([[500.0, 0, 400], [0, 500, 225], [0, 0, 1]])
    image_aug = torch.tensor([[scale, 0, 0], [0, scale, (height - 450 * scale) / 2], [0, 0, 1]])
    return Batch(
        tokens=[str(seed + i) for i in range(num_samples)],
        bev_aug_B44=torch.eye(4).expand(num_samples, 4, 4),
        images_BVCHW=torch.stack(pixels),
        intrinsics_BV33=intrinsics.expand(num_samples, VIEWS, 3, 3),
        image_aug_BV33=image_aug.expand(num_samples, VIEWS, 3, 3),
        camera_to_lidar_BV44=camera_to_lidar().expand(num_samples, VIEWS, 4, 4),
        pixels=[in_original(own, image_aug) for own in depth],
    )

"""Mean and variance of each channel: what stays of a map when its places are forgotten.

A companion of a dense map or an image feature, a tap beside it: to normalise what a student is
compared with, or for losses of style.
"""

import torch
from torch import Tensor

from bevcask.config import AugmentConfig
from bevcask.errors import TargetMismatchError
from bevcask.targets.kinds import Kind, moves_bev, turns_or_scales
from bevcask.targets.spec import Alignment, Codec, Region, TapInfo
from bevcask.targets.target import full_precision


class ChannelMoments(Kind):
    """Mean and variance of each channel of a map (2, C), over all of its cells.

    With `TapInfo.grid`, that of the BEV map they are of; without, they are of images.
    """

    axes: tuple[str, ...] = ("2", "C")
    codecs: tuple[Codec, ...] = ("float32",)

    def describe_problems(self, tap: TapInfo) -> list[str]:
        found = super().describe_problems(tap)
        if not found and tap.shape[0] != 2:
            found.append(f"{tap.name}: expected a mean and a variance, got {tap.shape[0]} rows")
        if tap.grid is None and not tap.depends_on_images:
            found.append(
                f"{tap.name}: give the grid of the map that these moments are of; or, of an image "
                "feature, say depends_on_images"
            )
        return found

    def problems(self, tap: TapInfo, values: Tensor) -> list[str]:
        found = super().problems(tap, values)
        if not found and values.numel() and values[:, 1].min() < 0:
            found.append(f"{tap.name}: variances must not be negative")
        return found

    def codec(self, tap: TapInfo, region: Region) -> Codec:
        return "float32"

    def bev_alignment(self, tap: TapInfo, augment: AugmentConfig) -> Alignment:
        """Return `approximate` where other ground comes into the map than was under it.

        Flips of a symmetric grid permute its cells, and moments do not care.
        """
        if tap.grid is None or not moves_bev(augment):
            return "exact"
        permutes = tap.grid.is_symmetric and not turns_or_scales(augment)
        return "exact" if permutes else "approximate"


def channel_moments(maps: Tensor) -> Tensor:
    """Return mean and variance of each channel (B, 2, C), float32 at least.

    Args:
        maps: (B, C, ...): all axes after the channel count alike; differentiable. Of an image
            feature (B, V, C, H, W) put cameras behind channels first.

    Raises:
        TargetMismatchError: there is nothing behind the channels.
    """
    if maps.ndim < 3:
        raise TargetMismatchError(
            f"moments are taken over the places of a map (B, C, ...), got {tuple(maps.shape)}"
        )
    variance_BC, mean_BC = torch.var_mean(full_precision(maps).flatten(2), dim=2, correction=0)
    return torch.stack([mean_BC, variance_BC], dim=1)

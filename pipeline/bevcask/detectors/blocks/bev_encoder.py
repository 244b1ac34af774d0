"""BEV encoder of the BEVDet family: residual stages going down, a neck coming back up."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.resnet import BasicBlock


class BEVBackbone(nn.Module):
    """Stages of basic blocks; the shortcut of the first is a 3x3 convolution (BEVDet).

    Args:
        in_channels: channels of the input map.
        channels: channels of each stage.
        num_blocks: blocks a stage.
        strides: stride of each stage; 2 each unless given.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        num_blocks: int,
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        stages = []
        for width, stride in zip(channels, strides or [2] * len(channels), strict=True):
            first = BasicBlock(in_channels, width, stride)
            first.downsample = nn.Conv2d(in_channels, width, 3, stride, padding=1)
            rest = [BasicBlock(width, width) for _ in range(num_blocks - 1)]
            stages.append(nn.Sequential(first, *rest))
            in_channels = width
        self.stages = nn.ModuleList(stages)

    def forward(self, map_BCYX: Tensor) -> list[Tensor]:
        """Return the map of every stage, finest first; non-negative."""
        maps = []
        for stage in self.stages:
            map_BCYX = stage(map_BCYX)
            maps.append(map_BCYX)
        return maps


class BEVNeck(nn.Module):
    """Join the coarsest with the finest stage and return to twice the finest stage's resolution.

    The last 1x1 convolution carries a batch norm and a ReLU, so that the map is non-negative like a
    LiDAR teacher's (DistillBEV release).

    Args:
        in_channels: of the finest and the coarsest stage together.
        join_channels: width inside.
        channels: of the output.
        as_released: BEVDet's own: the last convolution is biased and alone, so that the map has
            both signs, and maps are enlarged with aligned corners.
    """

    def __init__(
        self, in_channels: int, join_channels: int, channels: int, as_released: bool = False
    ) -> None:
        super().__init__()
        self.align_corners = as_released
        self.join = nn.Sequential(
            *_conv_norm_relu(in_channels, join_channels),
            *_conv_norm_relu(join_channels, join_channels),
        )
        self.output = nn.Sequential(
            *_conv_norm_relu(join_channels, channels),
            *(
                [nn.Conv2d(channels, channels, 1)]
                if as_released
                else _conv_norm_relu(channels, channels, kernel=1)
            ),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse the stages, finest first, into (B, channels, 2 Y, 2 X) of the finest stage."""
        finest = maps[0]
        coarse = nn.functional.interpolate(
            maps[-1], size=finest.shape[-2:], mode="bilinear", align_corners=self.align_corners
        )
        joined = self.join(torch.cat([finest, coarse], dim=1))
        upsampled = nn.functional.interpolate(
            joined, scale_factor=2.0, mode="bilinear", align_corners=self.align_corners
        )
        output: Tensor = self.output(upsampled)
        return output


def _conv_norm_relu(in_channels: int, out_channels: int, kernel: int = 3) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]

"""ASPP neck of PillarNeXt: one map seen through the same 3x3 weights at several dilations.

Not `depthnet.ASPP`, which has weights, a norm and a ReLU a branch and a global average.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.resnet import BasicBlock
from bevcask.detectors.blocks.second import conv_norm_relu, norm_2d


class ASPPNeck(nn.Module):
    """A 1x1 convolution and a basic block; then identity, 1x1 and dilated 3x3, joined by a 1x1.

    The branches are linear and keep the size; all dilated ones share one weight. Deviations from
    the release: its basic block has a ReLU before the addition too, and its shared weight starts
    from a normal distribution of deviation 1; ours starts like any convolution's.

    Args:
        num_in: channels of the last stage.
        channels: channels inside and out.
        dilations: of the shared 3x3 weight.
    """

    def __init__(self, num_in: int, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.dilations = tuple(dilations)
        self.enter = nn.Sequential(
            conv_norm_relu(num_in, channels, kernel=1),
            BasicBlock(channels, channels, norm=norm_2d),
        )
        self.point = nn.Conv2d(channels, channels, 1, bias=False)
        self.shared = nn.Conv2d(channels, channels, 3, bias=False)
        self.join = conv_norm_relu(channels * (2 + len(self.dilations)), channels, kernel=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return a map (B, channels, Y, X), non-negative, of the last of the maps."""
        entered = self.enter(maps[-1])
        parts = [entered, self.point(entered)]
        parts += [
            nn.functional.conv2d(entered, self.shared.weight, padding=step, dilation=step)
            for step in self.dilations
        ]
        joined: Tensor = self.join(torch.cat(parts, dim=1))
        return joined

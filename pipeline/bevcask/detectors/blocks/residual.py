"""Residual BEV stages in the manner of a ResNet-18 (PillarNet, PillarNeXt), dense.

Every map leaves a ReLU, so it is non-negative.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from bevcask.detectors.blocks.resnet import BasicBlock
from bevcask.detectors.blocks.second import conv_norm_relu, norm_2d


class ResidualStages(nn.Module):
    """Stages of one 3x3 convolution that may stride, then `blocks` basic blocks.

    The originals convolve occupied cells only, with compiled ops; here every cell takes part, so
    that their weights do not fit and empty cells take time and memory too.

    Args:
        num_in: channels of the input map.
        channels: channels of each stage.
        blocks: basic blocks of each stage.
        strides: stride of each stage.
    """

    def __init__(
        self, num_in: int, channels: Sequence[int], blocks: Sequence[int], strides: Sequence[int]
    ) -> None:
        super().__init__()
        stages = []
        for num_out, depth, stride in zip(channels, blocks, strides, strict=True):
            rest = [BasicBlock(num_out, num_out, norm=norm_2d) for _ in range(depth)]
            stages.append(nn.Sequential(conv_norm_relu(num_in, num_out, stride=stride), *rest))
            num_in = num_out
        self.stages = nn.ModuleList(stages)

    def forward(self, map_BCYX: Tensor) -> list[Tensor]:
        """Return the output of every stage, finest first."""
        maps = []
        for stage in self.stages:
            map_BCYX = stage(map_BCYX)
            maps.append(map_BCYX)
        return maps

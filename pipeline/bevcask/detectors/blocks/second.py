"""SECOND: a plain convolutional BEV backbone and the neck that joins its stages.

Every tapped map leaves a ReLU, so it is non-negative.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

NORM_EPS = 1e-3  # CenterPoint, SECOND
NORM_MOMENTUM = 0.01  # CenterPoint, SECOND


def norm_2d(channels: int) -> nn.BatchNorm2d:
    """Return the batch norm of the SECOND family."""
    return nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)


def conv_norm_relu(num_in: int, num_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return convolution (same padding, no bias), batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(num_in, num_out, kernel, stride=stride, padding=kernel // 2, bias=False),
        norm_2d(num_out),
        nn.ReLU(inplace=True),
    )


def set_norm_momentum(module: nn.Module, momentum: float) -> None:
    """Set how fast every batch norm inside follows the batches.

    At 0.01 the running statistics need several hundred steps; short trainings need more.
    """
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.momentum = momentum


class SECOND(nn.Module):
    """Stages of 3x3 convolutions: one that strides, then `convs` that keep the size.

    Args:
        num_in: channels of the input map.
        channels: channels of each stage.
        convs: convolutions after the striding one, each stage.
        strides: stride of each stage.
    """

    def __init__(
        self, num_in: int, channels: Sequence[int], convs: Sequence[int], strides: Sequence[int]
    ) -> None:
        super().__init__()
        stages = []
        for num_out, depth, stride in zip(channels, convs, strides, strict=True):
            layers = [conv_norm_relu(num_in, num_out, stride=stride)]
            layers += [conv_norm_relu(num_out, num_out) for _ in range(depth)]
            stages.append(nn.Sequential(*layers))
            num_in = num_out
        self.stages = nn.ModuleList(stages)

    def forward(self, map_BCYX: Tensor) -> list[Tensor]:
        """Return the output of every stage, finest first."""
        maps = []
        for stage in self.stages:
            map_BCYX = stage(map_BCYX)
            maps.append(map_BCYX)
        return maps


class SECONDFPN(nn.Module):
    """Bring every stage to one resolution and concatenate.

    Args:
        channels: channels of each stage.
        out_channels: channels each stage contributes.
        scales: enlargement of each stage; 0.5 halves (stride-2 convolution), 1 keeps (1x1), whole
            numbers above enlarge (transposed convolution).
    """

    def __init__(
        self, channels: Sequence[int], out_channels: Sequence[int], scales: Sequence[float]
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            _resize(num_in, num_out, scale)
            for num_in, num_out, scale in zip(channels, out_channels, scales, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the joined map (B, sum of out_channels, Y, X)."""
        return torch.cat(
            [branch(own) for branch, own in zip(self.branches, maps, strict=True)], dim=1
        )


def _resize(num_in: int, num_out: int, scale: float) -> nn.Sequential:
    """Return a convolution whose kernel equals its stride, batch norm, ReLU."""
    conv: nn.Module
    if scale >= 1:
        factor = round(scale)
        conv = nn.ConvTranspose2d(num_in, num_out, factor, stride=factor, bias=False)
    else:
        factor = round(1 / scale)
        conv = nn.Conv2d(num_in, num_out, factor, stride=factor, bias=False)
    return nn.Sequential(conv, norm_2d(num_out), nn.ReLU(inplace=True))

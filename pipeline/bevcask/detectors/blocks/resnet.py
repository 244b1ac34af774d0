"""Image backbones: ResNet-18, -50, -101 and a thin one, in plain torch.

Parameter names and shapes are those of torchvision's classification ResNets without `fc`, so that
ImageNet checkpoints load through `student.init`. Not a classifier, and not pretrained by itself.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.levels import LEVELS, ImageBackbone, Level

Variant = Literal["resnet18", "resnet50", "resnet101", "resnet_tiny"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5 left)."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.downsample = _projection(in_channels, width * self.expansion, stride)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        residual = torch.relu(self.bn1(self.conv1(map_BCHW)))
        residual = self.bn2(self.conv2(residual))
        return torch.relu(residual + _shortcut(self.downsample, map_BCHW))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride), 1x1 and a shortcut (He et al. 2016, figure 5 right)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = _projection(in_channels, width * self.expansion, stride)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        residual = torch.relu(self.bn1(self.conv1(map_BCHW)))
        residual = torch.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return torch.relu(residual + _shortcut(self.downsample, map_BCHW))


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


def _shortcut(projection: nn.Module | None, map_BCHW: Tensor) -> Tensor:
    if projection is None:
        return map_BCHW
    projected: Tensor = projection(map_BCHW)
    return projected


Block = type[BasicBlock] | type[Bottleneck]
_SHAPES: Mapping[Variant, tuple[Block, tuple[int, int, int, int], int]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), 64),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 64),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 64),
    "resnet_tiny": (BasicBlock, (1, 1, 1, 1), 16),
}


class ResNet(ImageBackbone):
    """A residual network.

    Of published files `fc.*` is not read. Batch-norm step counters (`num_batches_tracked`) may be
    absent, as in checkpoints older than PyTorch 0.4.1: nothing reads them.
    """

    published = "torchvision weights"

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        block, depths, width = _SHAPES[variant]
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        in_channels = width
        self.channels = {}
        for stage, depth in enumerate(depths):
            layers: list[nn.Module] = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(block(in_channels, width * 2**stage, stride))
                in_channels = width * 2**stage * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
            self.channels[LEVELS[stage]] = in_channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCHW: Tensor) -> dict[Level, Tensor]:
        hidden = torch.relu(self.bn1(self.conv1(images_BCHW)))
        hidden = nn.functional.max_pool2d(hidden, 3, stride=2, padding=1)
        maps: dict[Level, Tensor] = {}
        for stage, level in enumerate(LEVELS):
            hidden = self.get_submodule(f"layer{stage + 1}")(hidden)
            maps[level] = hidden
        return maps

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = self.state_dict()
        counters = {name: own[name] for name in own if name.endswith("num_batches_tracked")}
        return counters | {n: value for n, value in tensors.items() if not n.startswith("fc.")}

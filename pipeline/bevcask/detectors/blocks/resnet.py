"""Image backbones: ResNet-18, -50, -101 and a thin one, in plain torch.

Parameter names and shapes are those of torchvision's classification ResNets without `fc`, so that
ImageNet checkpoints load through `student.init`. Not a classifier, and not pretrained by itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.deformable_conv import DeformableConv
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
    """1x1, 3x3, 1x1 and a shortcut (He et al. 2016, figure 5 right).

    Args:
        in_channels: of the input.
        width: of the 3x3 convolution; a quarter of the output.
        stride: of the 3x3 convolution, or of the first one.
        stride_first: the first convolution strides, as in Caffe's networks.
        deformable: the 3x3 convolution is deformable (`DeformableConv`).
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        stride_first: bool = False,
        deformable: bool = False,
    ) -> None:
        super().__init__()
        strides = (stride, 1) if stride_first else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, strides[0], bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2: nn.Module = (
            DeformableConv(width, width, strides[1])
            if deformable
            else nn.Conv2d(width, width, 3, strides[1], padding=1, bias=False)
        )
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


@dataclass(frozen=True)
class Shape:
    """What a ResNet is made of.

    Attributes:
        blocks: of each of the four stages.
        width: of the first stage; each later one is twice as wide.
        bottlenecks: rather than basic blocks.
        stride_first: see `Bottleneck`.
        deformable: stages, 1 to 4, whose 3x3 convolutions are deformable.
    """

    blocks: tuple[int, int, int, int]
    width: int = 64
    bottlenecks: bool = True
    stride_first: bool = False
    deformable: tuple[int, ...] = ()

    def block(self, stage: int, in_channels: int, stride: int) -> BasicBlock | Bottleneck:
        """Return a block of a stage, 1 to 4."""
        width = self.width * 2 ** (stage - 1)
        if not self.bottlenecks:
            return BasicBlock(in_channels, width, stride)
        deformable = stage in self.deformable
        return Bottleneck(in_channels, width, stride, self.stride_first, deformable)


SHAPES: Mapping[Variant, Shape] = {
    "resnet18": Shape((2, 2, 2, 2), bottlenecks=False),
    "resnet50": Shape((3, 4, 6, 3)),
    "resnet101": Shape((3, 4, 23, 3)),
    "resnet_tiny": Shape((1, 1, 1, 1), width=16, bottlenecks=False),
}


class ResNet(ImageBackbone):
    """A residual network.

    Of published files `fc.*` is not read. Batch-norm step counters (`num_batches_tracked`) may be
    absent, as in checkpoints older than PyTorch 0.4.1: nothing reads them.
    """

    published = "torchvision weights"

    def __init__(self, shape: Variant | Shape) -> None:
        super().__init__()
        shape = shape if isinstance(shape, Shape) else SHAPES[shape]
        in_channels = shape.width
        self.conv1 = nn.Conv2d(3, in_channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.channels = {}
        for stage, count in enumerate(shape.blocks, start=1):
            layers: list[nn.Module] = []
            for index in range(count):
                block = shape.block(stage, in_channels, 2 if stage > 1 and index == 0 else 1)
                layers.append(block)
                in_channels = shape.width * 2 ** (stage - 1) * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
            self.channels[LEVELS[stage - 1]] = in_channels
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.endswith("conv_offset"):
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

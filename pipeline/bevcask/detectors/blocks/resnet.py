"""Image backbones: ResNet-18, ResNet-50 and a thin one, in plain torch.

Parameter names and shapes are those of torchvision's classification ResNets without `fc`, so that
ImageNet checkpoints load through `student.init`. Not a classifier, and not pretrained by itself.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from bevcask.detectors.weights import read_weights
from bevcask.errors import CheckpointError

Variant = Literal["resnet18", "resnet50", "resnet101", "resnet_tiny"]
Level = Literal["c2", "c3", "c4", "c5"]

LEVELS: tuple[Level, ...] = ("c2", "c3", "c4", "c5")
STRIDES: Mapping[Level, int] = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
_SHOWN = 3


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


class ResNet(nn.Module):
    """A residual network whose four stages give the pyramid levels c2 to c5.

    Attributes:
        channels: channels of each level.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        block, depths, width = _SHAPES[variant]
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        in_channels = width
        self.channels: dict[Level, int] = {}
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

    @staticmethod
    def level_channels(variant: Variant) -> dict[Level, int]:
        """Return the channels of each level without building the network."""
        block, _, width = _SHAPES[variant]
        return {level: width * 2**i * block.expansion for i, level in enumerate(LEVELS)}

    def forward(self, images_BCHW: Tensor) -> dict[Level, Tensor]:
        """Return the maps of c2 to c5, strides 4 to 32.

        Args:
            images_BCHW: (B, 3, H, W) float, ImageNet-normalised RGB; H and W divide by 32.
        """
        hidden = torch.relu(self.bn1(self.conv1(images_BCHW)))
        hidden = nn.functional.max_pool2d(hidden, 3, stride=2, padding=1)
        maps: dict[Level, Tensor] = {}
        for stage, level in enumerate(LEVELS):
            hidden = self.get_submodule(f"layer{stage + 1}")(hidden)
            maps[level] = hidden
        return maps


def load_imagenet(backbone: ResNet, path: Path) -> None:
    """Load ImageNet classification weights, exactly but for what classification adds.

    `fc.*` is ignored. Batch-norm step counters (`num_batches_tracked`) may be absent, as in
    checkpoints older than PyTorch 0.4.1: nothing reads them.

    Args:
        backbone: the network to fill.
        path: torchvision-style weights, `.safetensors`, or a `.pth` read with `weights_only=True`.

    Raises:
        CheckpointError: the file is missing or unreadable, or keys are missing, unexpected or of
            another shape; they are counted and the first few named.
    """
    given = {name: value for name, value in _read(path).items() if not name.startswith("fc.")}
    own = backbone.state_dict()
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    missing = sorted(needed - given.keys())
    unexpected = sorted(given.keys() - own.keys())
    reshaped = [
        f"{name} (expected {tuple(own[name].shape)}, got {tuple(given[name].shape)})"
        for name in sorted(own.keys() & given.keys())
        if own[name].shape != given[name].shape
    ]
    if missing or unexpected or reshaped:
        raise CheckpointError(
            f"{path} does not fit the image backbone: {_few(missing, 'missing')}; "
            f"{_few(unexpected, 'unexpected')}; {_few(reshaped, 'of another shape')}. "
            "Give torchvision weights of the same ResNet as student.detector.backbone."
        )
    backbone.load_state_dict({**own, **given})


def _read(path: Path) -> dict[str, Tensor]:
    """Read a flat mapping of tensors from a safetensors or a pickled torch file."""
    from pickle import UnpicklingError

    if path.suffix == ".safetensors":
        return read_weights(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint. Give student.init a file.")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        raise CheckpointError(
            f"{path}: not a weights-only torch file ({str(error).partition(chr(10))[0]}). "
            "Save a plain state_dict with torch.save, or convert it to safetensors."
        ) from error
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise CheckpointError(
            f"{path}: expected a flat mapping from name to tensor (a state_dict), got "
            f"{type(loaded).__name__}. Save the backbone's state_dict alone."
        )
    return dict(loaded)


def _few(names: list[str], what: str) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")

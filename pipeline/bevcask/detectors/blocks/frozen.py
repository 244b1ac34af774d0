"""A ResNet whose norms, and perhaps first stages, stay what they were loaded as."""

from pydantic import Field
from torch import nn

from bevcask.config import Config
from bevcask.detectors.blocks.levels import Level
from bevcask.detectors.blocks.resnet import ResNet, Shape
from bevcask.measures import Count


class BackboneConfig(Config):
    """A ResNet; defaults: the R101-DCN of BEVFormer-Base."""

    blocks: tuple[Count, Count, Count, Count] = (3, 4, 23, 3)
    width: int = Field(64, ge=1, description="channels of the stem")
    bottlenecks: bool = Field(True, description="rather than basic blocks")
    stride_first: bool = Field(True, description="1x1 convolutions stride, as in Caffe's networks")
    deformable: tuple[int, ...] = Field((3, 4), description="stages with deformable convolutions")
    levels: tuple[Level, ...] = Field(
        ("c3", "c4", "c5"), min_length=1, description="what the pyramid joins"
    )
    frozen_stages: int = Field(1, ge=-1, le=4, description="0 freezes the stem, -1 nothing")
    train_norms: bool = Field(False, description="false: batch norms keep what they were loaded as")

    @property
    def shape(self) -> Shape:
        return Shape(
            self.blocks,
            self.width,
            bottlenecks=self.bottlenecks,
            stride_first=self.stride_first,
            deformable=self.deformable,
        )


def freeze(backbone: ResNet, config: BackboneConfig) -> None:
    """Take what the configuration freezes from training."""
    if not config.train_norms:
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
    for part in _frozen(backbone, config):
        part.requires_grad_(False)


def hold_norms(backbone: ResNet, config: BackboneConfig) -> None:
    """Let norms that are not trained use their running statistics; call it from `train`."""
    for part in _frozen(backbone, config) if config.train_norms else [backbone]:
        for module in part.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def _frozen(backbone: ResNet, config: BackboneConfig) -> list[nn.Module]:
    stem = [backbone.conv1, backbone.bn1] if config.frozen_stages >= 0 else []
    numbers = range(1, config.frozen_stages + 1)
    return [*stem, *(backbone.get_submodule(f"layer{n}") for n in numbers)]

"""What an image backbone gives: maps of one image at several resolutions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

Level = Literal["c2", "c3", "c4", "c5"]

LEVELS: tuple[Level, ...] = ("c2", "c3", "c4", "c5")
STRIDES: Mapping[Level, int] = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}


class ImageBackbone(nn.Module, ABC):
    """A network whose four stages give the pyramid levels c2 to c5.

    Attributes:
        published: which published weights fit it, for messages.
        channels: channels of each level.
    """

    published: ClassVar[str]
    channels: dict[Level, int]

    @abstractmethod
    def forward(self, images_BCHW: Tensor) -> dict[Level, Tensor]:
        """Return the maps (B, C, H, W) by level, finest first, strides 4 to 32.

        Args:
            images_BCHW: (B, 3, H, W) float, ImageNet-normalised RGB; H and W divide by 32.
        """

    @abstractmethod
    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the backbone's part of published weights, with its own for what they may lack."""

"""What is said of every detector that sees cameras: network input, pyramid level, square BEV."""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bevcask.config import Config
from bevcask.detectors.base import Batch
from bevcask.detectors.blocks.levels import LEVELS, STRIDES, Level
from bevcask.geometry import Grid
from bevcask.measures import Count
from bevcask.targets.pixels import nearest_depths

_IMAGE_DIVISOR = STRIDES[LEVELS[-1]]


class CameraConfig(Config):
    """Sizes that must divide: images by the coarsest level, the BEV by its coarsest stage."""

    bev_divisor: ClassVar[int]
    image_size_HW: tuple[Count, Count] = Field((256, 704), description="network input, pixels")
    finest_level: Literal["c2", "c3", "c4"] = Field("c4", description="level the pyramid ends on")
    half_extent: float = Field(51.2, gt=0, description="metres")
    cell: float = Field(0.8, gt=0, description="metres")

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if any(side % _IMAGE_DIVISOR for side in self.image_size_HW):
            raise ValueError(
                f"image_size_HW {self.image_size_HW} must divide by {_IMAGE_DIVISOR}, the stride "
                "of the coarsest image level"
            )
        if self.grid.num_x % self.bev_divisor:
            raise ValueError(
                f"half_extent {self.half_extent} and cell {self.cell} give {self.grid.num_x} "
                f"cells, which must divide by {self.bev_divisor}, the stride of the coarsest BEV "
                "stage"
            )
        return self

    @property
    def grid(self) -> Grid:
        """The BEV cells."""
        return Grid.square(self.half_extent, self.cell)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that the pyramid joins, finest first."""
        return LEVELS[LEVELS.index(self.finest_level) :]

    @property
    def stride(self) -> int:
        """Pixels of the network input a cell of the pyramid's map."""
        return STRIDES[self.finest_level]


def lidar_depths(batch: Batch, config: CameraConfig) -> Tensor:
    """Return the depth of the nearest LiDAR point in each cell of the pyramid's map.

    Returns:
        Metres, float32 (B, V, H, W), 0 where no point falls; see `targets.pixels.nearest_depths`.
    """
    assert batch.pixels is not None, "the loader gave no LiDAR points in the images"
    assert batch.image_aug_BV33 is not None, "the loader gave no image augmentation"
    height, width = (side // config.stride for side in config.image_size_HW)
    return nearest_depths(batch.pixels, batch.image_aug_BV33, config.stride, (height, width))


def network_image_aug(batch: Batch, half_pixel: bool) -> Tensor:
    """Return original pixel -> network pixel, float64 (B, V, 3, 3).

    Args:
        batch: with cameras.
        half_pixel: whether a resize maps pixel centres, as the loader does; releases of mmdet3d's
            time scale coordinates, and their weights are used to it.
    """
    assert batch.image_aug_BV33 is not None, "the loader gave no image augmentation"
    image_aug = batch.image_aug_BV33.double().clone()
    if not half_pixel:
        half_2 = image_aug.new_full((2,), 0.5)
        image_aug[..., :2, 2] -= image_aug[..., :2, :2] @ half_2 - half_2
    return image_aug


def network_intrinsics(batch: Batch, half_pixel: bool) -> Tensor:
    """Return camera frame -> network pixels and depth, float64 (B, V, 4, 4); see above."""
    assert batch.intrinsics_BV33 is not None, "the loader gave no intrinsics"
    image_aug = network_image_aug(batch, half_pixel)
    to_image = torch.eye(4, dtype=torch.float64, device=image_aug.device)
    to_image = to_image.expand(*image_aug.shape[:2], 4, 4).clone()
    to_image[..., :3, :3] = image_aug @ batch.intrinsics_BV33.double()
    return to_image

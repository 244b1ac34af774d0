"""What is said of every detector that sees cameras: network input, pyramid level, square BEV."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from bevcask.config import Config
from bevcask.detectors.blocks.levels import LEVELS, STRIDES, Level
from bevcask.geometry import Grid

_IMAGE_DIVISOR = STRIDES[LEVELS[-1]]


class CameraConfig(Config):
    """Sizes that must divide: images by the coarsest level, the BEV by its coarsest stage."""

    bev_divisor: ClassVar[int]
    image_size_HW: tuple[int, int] = Field((256, 704), description="network input, pixels")
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

"""LiDAR branch: dynamic pillars, SECOND, and the neck that brings its stages to one grid."""

from torch import Tensor, nn

from bevcask.config import Config
from bevcask.detectors.blocks.pillars import PillarEncoder
from bevcask.detectors.blocks.second import SECOND, SECONDFPN
from bevcask.errors import ConfigError
from bevcask.geometry import Grid
from bevcask.measures import Count, Length, Rising, Whole


class LidarConfig(Config):
    """Shape of the branch; defaults: CenterPoint-pillar on nuScenes, 0.2 m."""

    pillar: Length = 0.2
    z_range: Rising = (-5.0, 3.0)
    pillar_channels: Count = 64
    channels: tuple[Count, Count, Count] = (64, 128, 256)
    convs: tuple[Whole, Whole, Whole] = (3, 5, 5)
    strides: tuple[Count, Count, Count] = (2, 2, 2)
    neck_channels: tuple[Count, Count, Count] = (128, 128, 128)
    neck_scales: tuple[Length, Length, Length] = (0.5, 1.0, 2.0)

    def grids_over(self, half_extent: float) -> list[Grid]:
        """Return the grid of the pillars, of each stage, and of the neck, in this order.

        Raises:
            ConfigError: strides do not divide the pillar grid, or the neck's scales bring the
                stages to different sizes.
        """
        grids = [Grid.square(half_extent, self.pillar)]
        for stage, stride in enumerate(self.strides):
            if grids[-1].num_x % stride:
                raise ConfigError(
                    f"strides: stage {stage} cannot halve {grids[-1].num_x} cells by {stride}; "
                    "choose half_extent and pillar so that every stride divides the cells."
                )
            grids.append(grids[-1].coarsen(stride))
        sizes = [
            round(grid.num_x * scale)
            for grid, scale in zip(grids[1:], self.neck_scales, strict=True)
        ]
        if len(set(sizes)) > 1:
            raise ConfigError(
                f"neck_scales {self.neck_scales} bring the stages to {sizes} cells; "
                "they must all be equal to be concatenated."
            )
        return [*grids, Grid.square(half_extent, 2 * half_extent / sizes[0])]


class LidarBranch(nn.Module):
    """Points to one BEV map; its modules are named and shaped as CenterPoint's."""

    def __init__(self, config: LidarConfig, half_extent: float) -> None:
        super().__init__()
        pillars = config.grids_over(half_extent)[0]
        self.encoder = PillarEncoder(config.pillar_channels, pillars, config.z_range)
        self.backbone = SECOND(
            config.pillar_channels, config.channels, config.convs, config.strides
        )
        self.neck = SECONDFPN(config.channels, config.neck_channels, config.neck_scales)

    def forward(self, points: list[Tensor]) -> Tensor:
        """Return the map (B, sum of neck_channels, Y, X), non-negative.

        Args:
            points: per sample (P, 5) float32, see `detectors.base.Batch`.
        """
        joined: Tensor = self.neck(self.backbone(self.encoder(points)))
        return joined

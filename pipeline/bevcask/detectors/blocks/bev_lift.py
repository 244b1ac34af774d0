"""Camera branch of the BEVFusion family: image features to a BEV map of the fusion grid."""

from typing import Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from bevcask.config import Config
from bevcask.detectors.blocks.depthnet import DepthNet, camera_numbers
from bevcask.detectors.blocks.lift_splat import Cameras, frustum_cells, splat
from bevcask.detectors.blocks.second import conv_norm_relu
from bevcask.geometry import Grid
from bevcask.measures import Count, Rising


class LiftConfig(Config):
    """Shape of the view transform; defaults: BEVFusion's on nuScenes."""

    depth_range: tuple[float, float] = Field((1.0, 60.0), description="metres; first to last edge")
    depth_bins: int = Field(118, ge=1)
    depth_channels: int = Field(256, ge=1, description="width of the depth branch")
    depth_blocks: int = Field(1, ge=0)
    depth_dilations: tuple[Count, ...] = Field((), description="ASPP; empty leaves it out")
    channels: int = Field(80, ge=1, description="channels of the BEV map")
    factor: int = Field(2, ge=1, description="how much finer the lift's grid is than the fusion's")
    z_range: Rising = Field((-10.0, 10.0), description="metres; one bin")

    @model_validator(mode="after")
    def _depths_rise(self) -> Self:
        if not 0 < self.depth_range[0] < self.depth_range[1]:
            raise ValueError(f"depth_range {self.depth_range} must rise and start above 0")
        return self

    @property
    def bin_size(self) -> float:
        return (self.depth_range[1] - self.depth_range[0]) / self.depth_bins

    @property
    def bin_centres(self) -> tuple[float, ...]:
        return tuple(
            self.depth_range[0] + (index + 0.5) * self.bin_size for index in range(self.depth_bins)
        )


class CameraLift(nn.Module):
    """Depth net, lift-splat onto a finer grid, three convolutions down to the fusion grid.

    Deviations from BEVFusion: depth and context come from the camera-aware net of BEVDepth in place
    of two plain 3x3 and a 1x1 convolution, and no LiDAR depth enters the network. Features are
    lifted to bin centres.

    Args:
        config: its shape.
        in_channels: channels of the image map.
        grid: the fusion grid.
        stride: network pixels an image cell.
    """

    def __init__(self, config: LiftConfig, in_channels: int, grid: Grid, stride: int) -> None:
        super().__init__()
        self.config = config
        self.stride = stride
        factor = config.factor
        self.grid = Grid(
            grid.x_min, grid.y_min, grid.cell / factor, grid.num_x * factor, grid.num_y * factor
        )
        self.depth_net = DepthNet(
            in_channels,
            config.depth_channels,
            config.channels,
            config.depth_bins,
            config.depth_blocks,
            config.depth_dilations,
        )
        self.downsample = nn.Sequential(
            conv_norm_relu(config.channels, config.channels),
            conv_norm_relu(config.channels, config.channels, stride=factor),
            conv_norm_relu(config.channels, config.channels),
        )

    def cells(self, cameras: Cameras, image_BVCHW: Tensor) -> Tensor:
        """Return the cell of every frustum point, (D, B, V, H, W), for `forward`."""
        return frustum_cells(
            cameras,
            (image_BVCHW.shape[-2], image_BVCHW.shape[-1]),
            self.stride,
            self.config.bin_centres,
            self.grid,
            self.config.z_range,
        )

    def forward(
        self, image_BVCHW: Tensor, cameras: Cameras, cells_DBVHW: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the map (B, channels, Y, X), non-negative, and depth logits (B, V, D, H, W)."""
        logits_BVDHW, context_BVCHW = self.depth_net(image_BVCHW, camera_numbers(cameras))
        depth_BVDHW = logits_BVDHW.float().softmax(dim=2)
        lifted = splat(depth_BVDHW, context_BVCHW, cells_DBVHW, self.grid)
        map_BCYX: Tensor = self.downsample(lifted)
        return map_BCYX, logits_BVDHW

"""What the LiDAR detectors share: points to a pillar map, stages, one neck, a CenterHead."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, cast

from pydantic import Field
from torch import Tensor, nn

from bevcask.config import Config as BaseConfig
from bevcask.detectors.base import Batch, Detections, Detector, Inputs, Output
from bevcask.detectors.blocks.heads import CenterHead, CenterHeadConfig
from bevcask.detectors.blocks.second import NORM_MOMENTUM
from bevcask.geometry import Grid
from bevcask.measures import Count, Length
from bevcask.targets.spec import TapInfo


class LidarDetectorConfig(BaseConfig):
    """What is said of every LiDAR detector; defaults: nuScenes."""

    half_extent: Length = 51.2
    num_sweeps: Count = 10
    point_channels: Literal[5, 17] = Field(
        5, description="numbers a point has; 17: virtual points beside the real ones (MVP)"
    )
    norm_momentum: float = Field(NORM_MOMENTUM, gt=0, le=1)
    head: CenterHeadConfig = CenterHeadConfig()


class LidarDetector(Detector):
    """Pillars, BEV stages, neck, CenterHead; a subclass builds the four.

    Taps: `bev.block0`, `bev.block1`, ... (stages), `bev.neck`, `head.heatmap`, `head.codes`,
    `head.boxes`.

    Attributes:
        encoder: points of each sample -> map (B, C, Y, X).
        backbone: that map -> maps of the stages, finest first.
        neck: those maps -> one.
        head: reads it; its `tasks` can be inherited.
    """

    encoder: nn.Module
    backbone: nn.Module
    neck: nn.Module
    head: CenterHead

    @classmethod
    def inputs(cls, config: BaseConfig) -> Inputs:
        own = cast(LidarDetectorConfig, config)
        return Inputs(num_sweeps=own.num_sweeps, virtual_points=own.point_channels > 5)

    @classmethod
    @abstractmethod
    def describe_maps(cls, config: BaseConfig) -> Sequence[tuple[int, Grid]]:
        """Return channels and grid of every stage, then of the neck."""

    @classmethod
    def describe_taps(cls, config: BaseConfig) -> Mapping[str, TapInfo]:
        maps = cls.describe_maps(config)
        names = [*(f"bev.block{level}" for level in range(len(maps) - 1)), "bev.neck"]
        taps = {
            name: TapInfo(name, "dense_bev", (width, *grid.shape_YX), grid=grid, nonnegative=True)
            for name, (width, grid) in zip(names, maps, strict=True)
        }
        return taps | CenterHead.describe_taps(maps[-1][1], depends_on_images=False)

    def forward(self, batch: Batch) -> Output:
        assert batch.points is not None, "the loader gave no LiDAR points"
        blocks: Sequence[Tensor] = self.backbone(self.encoder(batch.points))
        neck = self.neck(blocks)
        preds = self.head(neck)
        taps = {f"bev.block{level}": block for level, block in enumerate(blocks)}
        taps |= {"bev.neck": neck, **self.head.taps(preds)}
        return Output(taps, preds)

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        assert batch.labels is not None, "the loader gave no labels"
        return self.head.loss(output.preds, batch.labels)

    def decode(self, output: Output) -> list[Detections]:
        return self.head.decode(output.preds)

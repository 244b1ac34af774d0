"""Feature pyramids of the camera branch: several backbone levels in, one map out or several.

`encode_images` runs backbone and pyramid on the images of all cameras.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from bevcask.detectors.blocks.levels import ImageBackbone, Level


class FeaturePyramid(nn.Module):
    """Lateral 1x1 convolutions, top-down nearest addition, one 3x3 convolution at the finest level.

    The neck of BEVDet's image branch (BEVDet4D release, `CustomFPN` with `out_ids=[0]`): no norm,
    no activation.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
        """Fuse maps, finest first, into one (B, channels, H, W) map at the finest resolution."""
        output: Tensor = self.output(top_down(self.laterals, maps_BCHW)[0])
        return output


class MultiLevelPyramid(nn.Module):
    """`FeaturePyramid` with an output at every level (Lin et al. 2017; mmdet 2.14 `FPN`).

    Levels that the backbone does not give are strided convolutions on the last *output*, without
    an activation before them.

    Args:
        in_channels: of the maps, finest first.
        channels: of every output.
        num_levels: outputs; as many as there are maps, or more.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, num_levels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.outputs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, 1 if level < len(in_channels) else 2, padding=1)
            for level in range(num_levels)
        )

    def forward(self, maps_BCHW: Sequence[Tensor]) -> list[Tensor]:
        """Return a map a level, finest first."""
        fused = top_down(self.laterals, maps_BCHW)
        outputs: list[Tensor] = []
        for level, layer in enumerate(self.outputs):
            outputs.append(layer(fused[level] if level < len(fused) else outputs[-1]))
        return outputs


def top_down(laterals: nn.ModuleList, maps_BCHW: Sequence[Tensor]) -> list[Tensor]:
    """Return the lateral maps, finest first, each with the coarser ones added."""
    fused = [lateral(map_BCHW) for lateral, map_BCHW in zip(laterals, maps_BCHW, strict=True)]
    for level in range(len(fused) - 1, 0, -1):
        finer = fused[level - 1]
        fused[level - 1] = finer + nn.functional.interpolate(
            fused[level], size=finer.shape[-2:], mode="nearest"
        )
    return fused


def encode_images(
    backbone: ImageBackbone,
    pyramid: FeaturePyramid,
    levels: Sequence[Level],
    images_BVCHW: Tensor,
) -> Tensor:
    """Return the pyramid's map of every camera, (B, V, C, H, W) at the stride of the first level.

    Args:
        backbone: gives the levels.
        pyramid: joins them.
        levels: which levels, finest first.
        images_BVCHW: `Batch.normalised`.
    """
    maps = backbone(images_BVCHW.flatten(0, 1))
    fused: Tensor = pyramid([maps[level] for level in levels])
    return fused.view(*images_BVCHW.shape[:2], *fused.shape[1:])

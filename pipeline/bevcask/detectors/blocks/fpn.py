"""Feature pyramid of the camera branch: several backbone levels in, one map out.

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
        lateral_BCHW = [
            lateral(map_BCHW) for lateral, map_BCHW in zip(self.laterals, maps_BCHW, strict=True)
        ]
        fused = lateral_BCHW[-1]
        for finer in reversed(lateral_BCHW[:-1]):
            fused = finer + nn.functional.interpolate(fused, size=finer.shape[-2:], mode="nearest")
        output: Tensor = self.output(fused)
        return output


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
        images_BVCHW: ImageNet-normalised, see `detectors.base.Batch`.
    """
    maps = backbone(images_BVCHW.flatten(0, 1))
    fused: Tensor = pyramid([maps[level] for level in levels])
    return fused.view(*images_BVCHW.shape[:2], *fused.shape[1:])

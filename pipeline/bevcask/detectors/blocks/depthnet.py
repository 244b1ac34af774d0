"""Camera-aware depth net: what each image cell shows, and how far away.

After BEVDepth (Li et al. 2023): numbers of the camera gate a depth branch and a context branch.
Deviations, both to stay in plain torch and well behaved on few cameras: the 3x3 deformable
convolution at the end of the depth branch is left out (the ASPP before it stays), and the camera
numbers are brought to order one by fixed units, not by a batch norm, whose statistics collapse when
all cameras share their intrinsics.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.lift_splat import Cameras
from bevcask.detectors.blocks.resnet import BasicBlock
from bevcask.geometry import divisor
from bevcask.ranks import per_rank

NUM_CAMERA_NUMBERS = 27
_KILOPIXEL = 1000.0
_MAX_PROBABILITY = 1 - 1e-4


def camera_numbers(cameras: Cameras) -> Tensor:
    """Return what the depth net is told about each camera, (B, V, 27) float32.

    The 27 numbers of the BEVDepth release: fx, fy, cx, cy; the upper two rows of the image
    augmentation; the planar part and the z scale of the BEV augmentation; camera to LIDAR_TOP
    rotation and translation (there: to the ego frame). Pixels in thousands, the rest as it is.
    """
    intrinsics_BV33 = cameras.intrinsics_BV33.float() / _KILOPIXEL
    image_aug_BV23 = cameras.image_aug_BV33[..., :2, :].float()
    bev_aug_BV44 = cameras.bev_aug_B44[:, None].float().expand(-1, intrinsics_BV33.shape[1], -1, -1)
    parts = [
        intrinsics_BV33[..., 0, 0, None],
        intrinsics_BV33[..., 1, 1, None],
        intrinsics_BV33[..., :2, 2],
        image_aug_BV23[..., :2].flatten(2),
        image_aug_BV23[..., 2] / _KILOPIXEL,
        bev_aug_BV44[..., :2, :2].flatten(2),
        bev_aug_BV44[..., 2, 2, None],
        cameras.camera_to_lidar_BV44[..., :3, :].float().flatten(2),
    ]
    return torch.cat(parts, dim=-1)


class DepthNet(nn.Module):
    """Predict a depth distribution and a context vector for every image cell.

    Args:
        in_channels: channels of the image map.
        mid_channels: width of the depth branch.
        context_channels: channels to lift.
        num_bins: depth bins.
        num_blocks: residual blocks of the depth branch.
        dilations: of the ASPP; empty leaves it out.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        context_channels: int,
        num_bins: int,
        num_blocks: int,
        dilations: Sequence[int],
    ) -> None:
        super().__init__()
        self.reduce = _conv_norm_relu(in_channels, mid_channels)
        self.context_gate = CameraGate(mid_channels)
        self.context = nn.Conv2d(mid_channels, context_channels, 1)
        self.depth_gate = CameraGate(mid_channels)
        layers: list[nn.Module] = [
            BasicBlock(mid_channels, mid_channels) for _ in range(num_blocks)
        ]
        if dilations:
            layers.append(ASPP(mid_channels, dilations))
        self.depth = nn.Sequential(*layers, nn.Conv2d(mid_channels, num_bins, 1))

    def forward(self, map_BVCHW: Tensor, numbers_BVN: Tensor) -> tuple[Tensor, Tensor]:
        """Return depth logits (B, V, D, H, W) and context (B, V, C, H, W).

        Args:
            map_BVCHW: image features.
            numbers_BVN: from `camera_numbers`.
        """
        views = map_BVCHW.shape[:2]
        shared = self.reduce(map_BVCHW.flatten(0, 1))
        numbers = numbers_BVN.flatten(0, 1)
        context = self.context(self.context_gate(shared, numbers))
        logits = self.depth(self.depth_gate(shared, numbers))
        return logits.view(*views, *logits.shape[1:]), context.view(*views, *context.shape[1:])


class PlainDepthNet(nn.Module):
    """Predict both by one 1x1 convolution, told nothing of the cameras (BEVDet)."""

    def __init__(self, in_channels: int, context_channels: int, num_bins: int) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.both = nn.Conv2d(in_channels, num_bins + context_channels, 1)

    def forward(self, map_BVCHW: Tensor, numbers_BVN: Tensor) -> tuple[Tensor, Tensor]:
        """Return depth logits (B, V, D, H, W) and context (B, V, C, H, W)."""
        both = self.both(map_BVCHW.flatten(0, 1))
        both_BVCHW = both.view(*map_BVCHW.shape[:2], *both.shape[1:])
        return both_BVCHW[:, :, : self.num_bins], both_BVCHW[:, :, self.num_bins :]


class CameraGate(nn.Module):
    """Scale channels by a sigmoid of a small network on the camera numbers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(NUM_CAMERA_NUMBERS, channels),
            nn.ReLU(),
            nn.Linear(channels, channels),
            nn.Sigmoid(),
        )

    def forward(self, map_BCHW: Tensor, numbers_BN: Tensor) -> Tensor:
        scaled: Tensor = map_BCHW * self.gate(numbers_BN)[:, :, None, None]
        return scaled


class ASPP(nn.Module):
    """Parallel dilated 3x3 convolutions and a global average, joined by a 1x1 (DeepLab v3)."""

    def __init__(self, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            _conv_norm_relu(channels, channels, dilation=dilation) for dilation in dilations
        )
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.join = _conv_norm_relu(channels * (len(dilations) + 1), channels, kernel=1)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        parts = [branch(map_BCHW) for branch in self.branches]
        parts.append(torch.relu(self.image(map_BCHW)).expand_as(parts[0]))
        joined: Tensor = self.join(torch.cat(parts, dim=1))
        return joined


def _conv_norm_relu(
    in_channels: int, out_channels: int, kernel: int = 3, dilation: int = 1
) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def depth_loss(logits_BVDHW: Tensor, depth_BVHW: Tensor, low: float, bin_size: float) -> Tensor:
    """Binary cross-entropy of the softmax against one-hot bins: summed over bins, mean over cells.

    As in the BEVDepth release. The BEVDet port applies it to sigmoids, which are not what is
    lifted, and divides by all elements, so that its scale follows the number of LiDAR points.
    The mean is over the batches of all ranks together. Cells without a depth in
    [low, low + D * bin_size) do not count. Computed in float32 or wider.

    Args:
        logits_BVDHW: depth logits.
        depth_BVHW: metres at the logits' resolution, 0 where unknown.
        low: lower edge of the first bin, metres.
        bin_size: metres.
    """
    with torch.autocast(logits_BVDHW.device.type, enabled=False):
        above_BVHW = depth_BVHW.float() - low
        bins_BVHW = torch.floor(above_BVHW / divisor(bin_size, above_BVHW)).long()
        valid_BVHW = (bins_BVHW >= 0) & (bins_BVHW < logits_BVDHW.shape[2])
        wide_BVDHW = logits_BVDHW.to(torch.promote_types(logits_BVDHW.dtype, torch.float32))
        log_p_ND = wide_BVDHW.movedim(2, -1)[valid_BVHW].log_softmax(dim=-1)
        bins_N1 = bins_BVHW[valid_BVHW][:, None]
        log_not_p_ND = torch.log1p(-log_p_ND.exp().clamp(max=_MAX_PROBABILITY))
        own_N1 = log_p_ND.gather(1, bins_N1) - log_not_p_ND.gather(1, bins_N1)
        return -(own_N1.sum() + log_not_p_ND.sum()) / per_rank(len(bins_N1))

"""Modulated deformable convolution (DCNv2, Zhu et al. 2019), in plain torch by `grid_sample`."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_SIZE = 3
_TAPS = _SIZE * _SIZE


class DeformableConv(nn.Module):
    """A 3x3 convolution without bias whose nine taps read where an ordinary convolution says.

    Of `conv_offset`'s 27 channels 2k and 2k + 1 are (dy, dx) of tap k = 3 row + column in pixels,
    and 18 + k is its weight before the sigmoid (mmcv 1.4 `ModulatedDeformConv2dPack`, one group;
    checked against its compiled kernel). At the start nothing is moved and every tap counts half.

    Beyond inputs and outputs it holds one sampled copy of the input at a time, forward and
    backward: taps are read one by one, and read again for the backward pass.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stride: of the convolution; its padding is 1.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, _SIZE, _SIZE))
        self.conv_offset = nn.Conv2d(in_channels, 3 * _TAPS, _SIZE, stride, padding=1)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.conv_offset.weight)
        assert self.conv_offset.bias is not None
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        with torch.autocast(map_BCHW.device.type, enabled=False):  # places need the digits
            wide_BCHW = map_BCHW.to(torch.promote_types(map_BCHW.dtype, torch.float32))
            said_BKHW = self.conv_offset(wide_BCHW)
            offsets_BKHW2 = said_BKHW[:, : 2 * _TAPS].unflatten(1, (_TAPS, 2)).movedim(2, -1)
            weights_BKHW = said_BKHW[:, 2 * _TAPS :].sigmoid()
            total_BCHW: Tensor = said_BKHW.new_zeros(
                (len(map_BCHW), len(self.weight), *said_BKHW.shape[-2:])
            )
            for tap in range(_TAPS):
                total_BCHW = total_BCHW + checkpoint(
                    self._read,
                    wide_BCHW,
                    offsets_BKHW2[:, tap],
                    weights_BKHW[:, tap],
                    self.weight[:, :, tap // _SIZE, tap % _SIZE],
                    tap,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
        return total_BCHW

    def _read(
        self,
        map_BCHW: Tensor,
        offset_BHW2: Tensor,
        weight_BHW: Tensor,
        kernel_OC: Tensor,
        tap: int,
    ) -> Tensor:
        """Return what one tap adds; what lies outside the map is 0."""
        height, width = map_BCHW.shape[-2:]
        rows_H, columns_W = (
            torch.arange(size, device=map_BCHW.device) * self.stride - 1
            for size in offset_BHW2.shape[1:3]
        )
        y_BHW = rows_H[:, None] + tap // _SIZE + offset_BHW2[..., 0]
        x_BHW = columns_W + tap % _SIZE + offset_BHW2[..., 1]
        place_BHW2 = torch.stack([(2 * x_BHW + 1) / width - 1, (2 * y_BHW + 1) / height - 1], -1)
        read_BCHW = nn.functional.grid_sample(
            map_BCHW, place_BHW2, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        return nn.functional.conv2d(read_BCHW * weight_BHW[:, None], kernel_OC[:, :, None, None])

"""Swin Transformer (Liu et al. 2021): an image backbone of attention in windows, in plain torch.

Parameter names and shapes are those of the official release, so that `student.init` takes its
files: ImageNet classifiers, and detectors in the official names (`backbone.layers.*`; files that
mmdet renamed have `stages.*` and do not load). Not pretrained by itself.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.levels import LEVELS, ImageBackbone, Level

Variant = Literal["swin_t"]

_MLP_RATIO = 4
_INIT_STD = 0.02
_DETECTOR = "backbone."
_DERIVED = ("attn_mask", "relative_position_index")


class Shape(NamedTuple):
    """Size of a Swin Transformer.

    Attributes:
        channels: of the first stage; each further stage has twice those of the one before.
        depths: blocks of each stage, every second of which shifts its windows.
        heads: of each stage.
        window: cells a side of a window.
        drop_path: probability, in training, that a branch of the last block is left out; it rises
            linearly from 0 at the first block (0.2: BEVFusion on nuScenes, and the paper's Swin-T).
    """

    channels: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    window: int = 7
    drop_path: float = 0.2


SHAPES: Mapping[Variant, Shape] = {"swin_t": Shape(96, (2, 2, 6, 2), (3, 6, 12, 24))}


class WindowAttention(nn.Module):
    """Self-attention among the cells of one window, with a learned bias for each relative position.

    Windows of odd blocks lie `shift` cells lower and further right. They are cut from a rolled map;
    cells that only the roll made neighbours do not see each other. A map that windows do not fill
    is padded with zeros below and on the right, which take part as in the official release.
    """

    offsets_NN: Tensor

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.register_buffer("offsets_NN", _offsets(window), persistent=False)

    def forward(self, cells_BHWC: Tensor) -> Tensor:
        """Return what every cell gathers, (B, H, W, C)."""
        height, width = cells_BHWC.shape[1:3]
        window, shift = self.window, self.shift
        padded = nn.functional.pad(cells_BHWC, (0, 0, 0, -width % window, 0, -height % window))
        size_HW = (padded.shape[1], padded.shape[2])
        if shift:
            padded = padded.roll((-shift, -shift), dims=(1, 2))
        gathered = self._attend(_cut(padded, window), size_HW)
        joined = _join(gathered, window, size_HW)
        if shift:
            joined = joined.roll((shift, shift), dims=(1, 2))
        return joined[:, :height, :width]

    def _attend(self, windows_BKNC: Tensor, size_HW: tuple[int, int]) -> Tensor:
        """Attend within K windows of N cells each."""
        split = self.qkv(windows_BKNC).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(3, 0, 1, 4, 2, 5)
        bias = nn.functional.embedding(self.offsets_NN, self.relative_position_bias_table)
        bias = bias.permute(2, 0, 1)[None]
        if self.shift:
            bias = bias.masked_fill(self._apart(size_HW)[:, None], -torch.inf)
        gathered = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias.to(query.dtype)
        )
        projected: Tensor = self.proj(gathered.transpose(-3, -2).flatten(-2))
        return projected

    def _apart(self, size_HW: tuple[int, int]) -> Tensor:
        """Tell which cells of a window came from opposite edges of the map, (K, N, N)."""
        rows_H, columns_W = (
            torch.arange(side, device=self.offsets_NN.device) >= side - self.shift
            for side in size_HW
        )
        corner_HW = 2 * rows_H[:, None] + columns_W
        corner_KN = _cut(corner_HW[None, ..., None], self.window)[0, ..., 0]
        return corner_KN[:, :, None] != corner_KN[:, None]


def _offsets(window: int) -> Tensor:
    """Return the row of the bias table for every pair of a window's cells, (N, N): query, key."""
    steps = torch.arange(window)
    cells_N2 = torch.cartesian_prod(steps, steps)
    apart_NN2 = cells_N2[:, None] - cells_N2 + window - 1
    return apart_NN2[..., 0] * (2 * window - 1) + apart_NN2[..., 1]


def _cut(map_BHWC: Tensor, window: int) -> Tensor:
    """Cut a map into K windows of N cells, (B, K, N, C)."""
    num, height, width, channels = map_BHWC.shape
    tiles = map_BHWC.reshape(num, height // window, window, width // window, window, channels)
    return tiles.transpose(2, 3).reshape(num, -1, window * window, channels)


def _join(windows_BKNC: Tensor, window: int, size_HW: tuple[int, int]) -> Tensor:
    """Put windows together again, (B, H, W, C)."""
    height, width = size_HW
    num, channels = len(windows_BKNC), windows_BKNC.shape[-1]
    tiles = windows_BKNC.view(num, height // window, width // window, window, window, channels)
    return tiles.transpose(2, 3).reshape(num, height, width, channels)


class DropPath(nn.Module):
    """Leaves a residual branch out for some images in training (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch_BHWC: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return branch_BHWC
        kept_B111 = branch_BHWC.new_empty((len(branch_BHWC), 1, 1, 1)).bernoulli_(1 - self.rate)
        return branch_BHWC * (kept_B111 / (1 - self.rate))


class SwinBlock(nn.Module):
    """Attention in windows, then two linear layers; a norm before and a shortcut past each."""

    def __init__(
        self, channels: int, heads: int, window: int, shift: int, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(channels, _MLP_RATIO * channels),
                act=nn.GELU(),
                fc2=nn.Linear(_MLP_RATIO * channels, channels),
            )
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, cells_BHWC: Tensor) -> Tensor:
        attended = cells_BHWC + self.drop_path(self.attn(self.norm1(cells_BHWC)))
        mixed: Tensor = attended + self.drop_path(self.mlp(self.norm2(attended)))
        return mixed


class PatchEmbed(nn.Module):
    """4 x 4 pixels to a cell, (B, 3, H, W) to (B, H/4, W/4, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 4, stride=4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        cells: Tensor = self.norm(self.proj(images_BCHW).permute(0, 2, 3, 1))
        return cells


class PatchMerging(nn.Module):
    """2 x 2 cells to one of twice the channels; H and W must be even."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, cells_BHWC: Tensor) -> Tensor:
        four = [cells_BHWC[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(four, dim=-1)))
        return merged


class SwinStage(nn.Module):
    """Blocks at one resolution, and the merging that leads to the next."""

    def __init__(self, blocks: Sequence[SwinBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample


class Swin(ImageBackbone):
    """Four stages of Swin blocks, and a LayerNorm on the map of every level given.

    Of published files, what is no backbone is not read (`head.*`, `norm.*`, a detector's other
    parts), nor norms of levels that are not given. Classifiers have no norms of levels; these stay
    as they are.

    Args:
        shape: its size.
        levels: which levels `forward` gives.
    """

    published = "official Swin weights (`layers.*`)"

    def __init__(self, shape: Shape, levels: Sequence[Level]) -> None:
        super().__init__()
        self.channels = {level: shape.channels * 2**stage for stage, level in enumerate(LEVELS)}
        self.levels = tuple(levels)
        self.patch_embed = PatchEmbed(shape.channels)
        self.layers = nn.ModuleList()
        last = sum(shape.depths) - 1
        done = 0
        for stage, (level, channels) in enumerate(self.channels.items()):
            blocks = [
                SwinBlock(
                    channels,
                    shape.heads[stage],
                    shape.window,
                    shift=shape.window // 2 * (block % 2),
                    drop_path=shape.drop_path * (done + block) / last,
                )
                for block in range(shape.depths[stage])
            ]
            done += shape.depths[stage]
            merging = PatchMerging(channels) if level != LEVELS[-1] else None
            self.layers.append(SwinStage(blocks, merging))
            if level in levels:
                self.add_module(f"norm{stage}", nn.LayerNorm(channels))
        self.apply(_initialise)

    def forward(self, images_BCHW: Tensor) -> dict[Level, Tensor]:
        cells = self.patch_embed(images_BCHW)
        maps: dict[Level, Tensor] = {}
        for stage, (level, layer) in enumerate(zip(LEVELS, self.layers, strict=True)):
            assert isinstance(layer, SwinStage)
            cells = layer.blocks(cells)
            if level in self.levels:
                normed = self.get_submodule(f"norm{stage}")(cells)
                maps[level] = normed.permute(0, 3, 1, 2).contiguous()
            if layer.downsample is not None:
                cells = layer.downsample(cells)
        return maps

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = self.state_dict()
        norms = {name: value for name, value in own.items() if name.startswith("norm")}
        inside = {
            name.removeprefix(_DETECTOR): value
            for name, value in tensors.items()
            if name.startswith(_DETECTOR)
        }
        given = {
            name: value
            for name, value in (inside or tensors).items()
            if (name in own or not name.startswith(("head.", "norm")))
            and not name.endswith(_DERIVED)
        }
        return norms | given


def _initialise(module: nn.Module) -> None:
    """Draw weights as the paper's code does: truncated normal, biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=_INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=_INIT_STD)

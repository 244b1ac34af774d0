"""Swin's windows hold who they should, its names are the release's, it trains in half precision."""

import itertools

import pytest
import torch
from torch import Tensor

from bevcask.detectors.blocks.levels import LEVELS, Level
from bevcask.detectors.blocks.swin import (
    SHAPES,
    DropPath,
    PatchMerging,
    Shape,
    Swin,
    SwinBlock,
    WindowAttention,
)

SMALL = Shape(4, (2, 2, 2, 2), (1, 2, 2, 4), window=3)
CLASSIFIER = 28_288_354  # the official Swin-T with its head of 1000 classes


def random_attention(channels: int, heads: int, window: int, shift: int) -> WindowAttention:
    torch.manual_seed(1)
    attention = WindowAttention(channels, heads, window, shift)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention.double()


def dense_attention(attention: WindowAttention, cells_HWC: Tensor) -> Tensor:
    """Every cell of the padded map against every other, masked by who shares its window.

    Windows of a shifted block begin at `shift`, one earlier window cut off at the border.
    """
    window, heads = attention.window, attention.heads
    height, width, channels = cells_HWC.shape
    high, wide = (-(-side // window) * window for side in (height, width))
    cells = torch.zeros(high, wide, channels, dtype=torch.float64)
    cells[:height, :width] = cells_HWC
    projected = cells.flatten(0, 1) @ attention.qkv.weight.T + attention.qkv.bias
    query, key, value = projected.split(channels, dim=1)
    places = list(itertools.product(range(high), range(wide)))

    def window_of(place: tuple[int, int]) -> tuple[int, int]:
        row, column = ((side - attention.shift) // window for side in place)
        return row, column

    gathered = torch.zeros_like(cells.flatten(0, 1))
    size = channels // heads
    for head, (one, place) in itertools.product(range(heads), enumerate(places)):
        own = slice(head * size, (head + 1) * size)
        near = [n for n, other in enumerate(places) if window_of(other) == window_of(place)]
        scores = []
        for other in near:
            down, right = (a - b + window - 1 for a, b in zip(place, places[other], strict=True))
            bias = attention.relative_position_bias_table[down * (2 * window - 1) + right, head]
            scores.append(query[one, own] @ key[other, own] / size**0.5 + bias)
        gathered[one, own] = torch.stack(scores).softmax(0) @ value[near][:, own]
    out = gathered @ attention.proj.weight.T + attention.proj.bias
    return out.view(high, wide, channels)[:height, :width]


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("size_HW", [(8, 8), (4, 12), (7, 9), (3, 5), (1, 2)])
def test_attention_equals_dense_attention_with_an_explicit_mask(
    size_HW: tuple[int, int], shift: int
) -> None:
    attention = random_attention(6, 2, window=4, shift=shift)
    cells = torch.randn((2, *size_HW, 6), generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        got = attention(cells)
        for sample in range(2):
            expected = dense_attention(attention, cells[sample])
            torch.testing.assert_close(got[sample], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shift", [0, 3])
def test_a_cell_sees_its_window_and_nothing_across_the_wrap(shift: int) -> None:
    attention = random_attention(4, 2, window=7, shift=shift)
    cells = torch.randn(1, 14, 21, 4, dtype=torch.float64, requires_grad=True)
    output = attention(cells)
    for row, column in ((0, 0), (2, 20), (13, 1), (13, 20), (7, 10)):
        (gradient,) = torch.autograd.grad(output[0, row, column].sum(), cells, retain_graph=True)
        seen = gradient[0].abs().sum(-1) > 0
        rows = torch.arange(14).sub(shift).div(7, rounding_mode="floor")
        columns = torch.arange(21).sub(shift).div(7, rounding_mode="floor")
        expected = (rows == rows[row])[:, None] & (columns == columns[column])
        assert torch.equal(seen, expected), (row, column)


def test_every_second_block_shifts_by_half_a_window() -> None:
    network = Swin(SHAPES["swin_t"], LEVELS)
    for layer in network.layers:
        shifts = [block.attn.shift for block in layer.blocks]
        assert shifts == [0, 3] * (len(shifts) // 2)
        assert {block.attn.window for block in layer.blocks} == {7}


@pytest.mark.parametrize(
    ("levels", "extra"), [(LEVELS[3:], 0), (LEVELS[1:], 2 * (192 + 384)), (LEVELS, 2 * 672)]
)
def test_swin_t_has_the_published_number_of_parameters(
    levels: tuple[Level, ...], extra: int
) -> None:
    """The head gone (768 x 1000 and 1000), a norm (weight, bias) more a further level given."""
    with torch.device("meta"):
        network = Swin(SHAPES["swin_t"], levels)
    assert sum(p.numel() for p in network.parameters()) == CLASSIFIER - 769_000 + extra


def official_names(depths: tuple[int, ...]) -> set[str]:
    """The names of the official detector's backbone, spelt from its published layout."""
    both = ("weight", "bias")
    names = {f"patch_embed.{part}.{end}" for part in ("proj", "norm") for end in both}
    for stage, depth in enumerate(depths):
        names |= {f"norm{stage}.{end}" for end in both}
        for block in range(depth):
            prefix = f"layers.{stage}.blocks.{block}"
            names.add(f"{prefix}.attn.relative_position_bias_table")
            for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
                names |= {f"{prefix}.{part}.{end}" for end in both}
        if stage < len(depths) - 1:
            names |= {f"layers.{stage}.downsample.norm.{end}" for end in both}
            names.add(f"layers.{stage}.downsample.reduction.weight")
    return names


def test_names_are_the_official_ones() -> None:
    with torch.device("meta"):
        state = Swin(SHAPES["swin_t"], LEVELS).state_dict()
    assert set(state) == official_names((2, 2, 6, 2))
    assert state["layers.1.blocks.0.attn.relative_position_bias_table"].shape == (169, 6)
    assert state["layers.2.downsample.reduction.weight"].shape == (768, 1536)
    assert state["patch_embed.proj.weight"].shape == (96, 3, 4, 4)


def test_merging_takes_four_cells_in_the_order_of_the_release() -> None:
    """Top left, bottom left, top right, bottom right."""
    merging = PatchMerging(1)
    cells = torch.tensor([[0.0, 2.0, 4.0, 6.0], [1.0, 3.0, 5.0, 7.0]])[None, ..., None]
    merging.add_module("norm", torch.nn.Identity())
    merging.add_module("reduction", torch.nn.Identity())
    assert merging(cells).tolist() == [[[[0, 1, 2, 3], [4, 5, 6, 7]]]]


def test_gradients_are_right() -> None:
    torch.manual_seed(3)
    blocks = [SwinBlock(4, 2, window=2, shift=shift, drop_path=0.0).double() for shift in (0, 1)]
    network = torch.nn.Sequential(*blocks)
    names = list(dict(network.named_parameters()))
    cells = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)

    def run(cells: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        out: Tensor = torch.func.functional_call(network, given, (cells,))
        return out

    assert torch.autograd.gradcheck(run, (cells, *network.parameters()), fast_mode=True)


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(4)
    network = Swin(SMALL._replace(drop_path=0.0), LEVELS[1:])
    maps = network(torch.randn(1, 3, 96, 160))
    torch.stack([(m * torch.randn_like(m)).sum() for m in maps.values()]).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_branches_are_left_out_in_training_only_and_make_up_for_it() -> None:
    drop = DropPath(0.25)
    branch = torch.ones(4000, 1, 1, 2)
    torch.manual_seed(5)
    dropped = drop(branch)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(dropped[..., 0], dropped[..., 1])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(branch), branch)


def test_the_rate_of_dropping_rises_to_a_fifth() -> None:
    network = Swin(SHAPES["swin_t"], LEVELS)
    rates = [block.drop_path.rate for layer in network.layers for block in layer.blocks]
    assert rates == pytest.approx([0.2 * block / 11 for block in range(12)])


def test_the_same_seed_trains_the_same() -> None:
    images = torch.randn(4, 3, 32, 64, generator=torch.Generator().manual_seed(6))
    gradients = []
    for _ in range(2):
        torch.manual_seed(7)
        network = Swin(SMALL, LEVELS)
        torch.stack([m.square().mean() for m in network(images).values()]).sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_bfloat16_autocast_stays_near_float32_and_trains() -> None:
    torch.manual_seed(8)
    network = Swin(SMALL, LEVELS).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        exact = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        maps = network(images)
        total = torch.stack([m.float().square().mean() for m in maps.values()]).sum()
    total.backward()
    for level, values in maps.items():
        torch.testing.assert_close(values.detach().float(), exact[level], atol=0.1, rtol=0.1)
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)


def test_images_do_not_see_each_other() -> None:
    network = Swin(SMALL, LEVELS).eval()
    images = torch.randn(2, 3, 32, 64)
    with torch.inference_mode():
        both, alone = network(images), network(images[:1])
    for level in LEVELS:
        torch.testing.assert_close(both[level][:1], alone[level])

"""Adapters: sizes, places in metres, what they are made of."""

import numpy as np
import pytest
import torch
from torch import nn

from bevcask.geometry import Grid
from bevcask.methods.adapters import Adapter, adapted_grid
from bevcask.targets.spec import TapInfo

FINE = Grid.square(8.0, 0.5)
COARSE = Grid.square(8.0, 2.0)


def tap(channels: int, grid: Grid) -> TapInfo:
    return TapInfo("bev.x", "dense_bev", (channels, *grid.shape_YX), grid)


def test_stack_is_three_convolutions() -> None:
    adapter = Adapter("stack", tap(6, COARSE), tap(4, FINE))
    assert [type(layer).__name__ for layer in adapter.layers] == [
        "Conv2d",
        "BatchNorm2d",
        "ReLU",
    ] * 3
    convolutions = [layer for layer in adapter.layers if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [6, 6, 4]
    assert all(layer.bias is None for layer in convolutions)  # BN has its own
    adapted = adapter(torch.randn(2, 6, *COARSE.shape_YX))
    assert adapted.shape == (2, 4, *FINE.shape_YX)
    assert adapted.min() >= 0


def test_linear_is_one_convolution_with_bias() -> None:
    adapter = Adapter("linear", tap(6, FINE), tap(4, FINE))
    [layer] = adapter.layers
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    assert layer.kernel_size == (1, 1)
    assert adapter(torch.randn(2, 6, *FINE.shape_YX)).min() < 0


def test_identity_leaves_the_map_alone() -> None:
    adapter = Adapter("identity", tap(3, FINE), tap(3, FINE))
    map_BCYX = torch.randn(1, 3, *FINE.shape_YX)
    assert torch.equal(adapter(map_BCYX), map_BCYX)


def test_upsampling_keeps_values_in_place() -> None:
    """A field linear in metres stays that field between the coarse cell centres."""
    adapter = Adapter("identity", tap(1, COARSE), tap(1, FINE))

    def field(grid: Grid) -> torch.Tensor:
        x, y = np.moveaxis(grid.centres(), -1, 0)
        return torch.tensor(3 * x - y, dtype=torch.float32)[None, None]

    inner = (np.abs(FINE.centres()) <= 8.0 - 1.0).all(-1)
    adapted = adapter(field(COARSE))
    torch.testing.assert_close(adapted[0, 0][inner], field(FINE)[0, 0][inner])


def test_adapted_grid() -> None:
    assert adapted_grid(COARSE, FINE) == FINE
    assert adapted_grid(FINE, COARSE) == FINE  # finer already: `align` reads it in metres
    assert adapted_grid(FINE, FINE) == FINE
    wide = Grid.square(12.0, 2.0)
    assert adapted_grid(wide, FINE) == Grid.square(12.0, 0.5)
    with pytest.raises(ValueError, match=r"16 x 16 m does not divide into cells of 0.3 m"):
        adapted_grid(COARSE, Grid.square(9.0, 0.3))

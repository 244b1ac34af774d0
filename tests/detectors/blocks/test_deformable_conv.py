"""Deformable convolution: the ordinary one where nothing moves, a loop in float64 where it does."""

import math

import numpy as np
import pytest
import torch

from bevcask.detectors.blocks.deformable_conv import DeformableConv
from detectors.blocks.memory import LargestTensor


def moving(stride: int = 1, dtype: torch.dtype = torch.float64) -> DeformableConv:
    layer = DeformableConv(3, 4, stride).to(dtype)
    with torch.no_grad():
        for own in layer.parameters():
            own.normal_(std=0.7, generator=torch.Generator().manual_seed(own.numel()))
    return layer


def loop(layer: DeformableConv, image: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Sum over taps of weight, mask and bilinear value, from the definition (mmcv DCNv2)."""
    weight = layer.weight.detach().numpy()
    channels, height, width = image.shape
    found = np.zeros((len(weight), *said.shape[1:]))
    for row, column in np.ndindex(*said.shape[1:]):
        for tap in range(9):
            y = row * layer.stride - 1 + tap // 3 + said[2 * tap, row, column]
            x = column * layer.stride - 1 + tap % 3 + said[2 * tap + 1, row, column]
            value = np.zeros(channels)
            for i in (math.floor(y), math.floor(y) + 1):
                for j in (math.floor(x), math.floor(x) + 1):
                    if 0 <= i < height and 0 <= j < width:
                        value += (1 - abs(y - i)) * (1 - abs(x - j)) * image[:, i, j]
            mask = 1 / (1 + math.exp(-said[18 + tap, row, column]))
            found[:, row, column] += mask * weight[:, :, tap // 3, tap % 3] @ value
    return found


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(5, 7), (1, 2)])
def test_against_a_loop(stride: int, size: tuple[int, int]) -> None:
    layer = moving(stride)
    images = torch.randn((2, 3, *size), dtype=torch.float64)
    found, said = layer(images), layer.conv_offset(images).detach().numpy()
    for own, image, offsets in zip(found.detach().numpy(), images.numpy(), said, strict=True):
        np.testing.assert_allclose(own, loop(layer, image, offsets), atol=1e-12)


def test_at_the_start_it_is_half_an_ordinary_convolution() -> None:
    layer = DeformableConv(3, 4, stride=2)
    images = torch.randn(2, 3, 8, 10)
    ordinary = torch.nn.functional.conv2d(images, layer.weight, stride=2, padding=1)
    torch.testing.assert_close(layer(images), ordinary / 2, atol=1e-5, rtol=1e-5)


def test_gradients() -> None:
    layer = moving()
    images = torch.randn((1, 3, 3, 4), dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(given: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, named, (given,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (images, *layer.parameters()), fast_mode=True)


def test_never_holds_nine_copies() -> None:
    layer = moving(dtype=torch.float32)
    images = torch.randn(2, 3, 40, 50, requires_grad=True)
    with LargestTensor() as largest:
        layer(images).sum().backward()
    assert largest.numbers <= 27 * 2 * 40 * 50, "offsets and weights are the largest"


def test_half_precision_around_it() -> None:
    layer = moving(dtype=torch.float32)
    images = torch.randn(1, 3, 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(images)
    torch.testing.assert_close(found, layer(images))

"""Deformable attention: against a loop in float64, gradients, symmetries, precision, memory."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bevcask.detectors.blocks import deformable
from bevcask.detectors.blocks.deformable import (
    DeformableAttention,
    MapSelfAttention,
    sum_of_samples,
)
from bevcask.teachers.reckoning import reckoning
from detectors.blocks.memory import LargestTensor

CENTRES = 1e-5  # reference points are float32


def bilinear(map_CYX: np.ndarray, x: float, y: float) -> np.ndarray:
    """Value at a location in [0, 1], from its definition: zero outside the map's cells."""
    _, num_y, num_x = map_CYX.shape
    column, row = x * num_x - 0.5, y * num_y - 0.5
    left, top = math.floor(column), math.floor(row)
    value = np.zeros(len(map_CYX))
    for j, i in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= j < num_y and 0 <= i < num_x:
            value += (1 - abs(row - j)) * (1 - abs(column - i)) * map_CYX[:, j, i]
    return value


def loop(maps: list[Tensor], locations: Tensor, weights: Tensor) -> np.ndarray:
    num_samples, num_queries, num_heads, num_levels, num_points = weights.shape
    num_channels = maps[0].shape[1]
    width = num_channels // num_heads
    total = np.zeros((num_samples, num_queries, num_channels))
    for b, q, a, level, p in np.ndindex(
        num_samples, num_queries, num_heads, num_levels, num_points
    ):
        own = maps[level][b, a * width : (a + 1) * width].double().numpy()
        x, y = (float(v) for v in locations[b, q, a, level, p])
        total[b, q, a * width : (a + 1) * width] += float(weights[b, q, a, level, p]) * bilinear(
            own, x, y
        )
    return total


def problem(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor, Tensor]:
    """Two samples, five queries, three heads, two levels, four points; some outside the map."""
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn((2, 6, *size), generator=generator, dtype=dtype) for size in ((4, 7), (3, 2))
    ]
    locations = 1.4 * torch.rand((2, 5, 3, 2, 4, 2), generator=generator, dtype=dtype) - 0.2
    weights = torch.rand((2, 5, 3, 2, 4), generator=generator, dtype=dtype)
    return maps, locations, weights


@pytest.mark.parametrize("numbers", [1, 120, 1 << 22])
def test_sums_equal_a_loop_in_float64(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable, "CHUNK_NUMBERS", numbers)
    summed = sum_of_samples(*problem())
    assert summed.dtype == torch.float32
    np.testing.assert_allclose(summed.numpy(), loop(*problem()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("numbers", [120, 1 << 22])
def test_gradients_are_exact(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable, "CHUNK_NUMBERS", numbers)
    (fine, coarse), locations, weights = problem(torch.float64)
    inputs = [own.requires_grad_() for own in (fine, coarse, locations, weights)]
    assert torch.autograd.gradcheck(lambda f, c, x, w: sum_of_samples([f, c], x, w), inputs)


def stir(module: torch.nn.Module, size: float = 0.3) -> None:
    """Move every weight: several start at zero."""
    with torch.no_grad():
        for own in module.parameters():
            own.add_(size * torch.randn_like(own))


def test_attention_equals_its_definition() -> None:
    attention = DeformableAttention(8, heads=2, points=3, levels=2).double()
    stir(attention)
    query = torch.randn(2, 5, 8, dtype=torch.float64)
    reference = torch.rand(2, 5, 2, dtype=torch.float64)
    maps = [torch.randn(2, 8, *size, dtype=torch.float64) for size in ((4, 6), (2, 3))]
    with torch.no_grad():
        got = attention(query, reference, maps)
        offsets = attention.offsets(query).view(2, 5, 2, 2, 3, 2)
        locations = torch.empty_like(offsets)
        for level, own in enumerate(maps):
            num_y, num_x = own.shape[-2:]
            cells = torch.tensor([num_x, num_y])
            locations[:, :, :, level] = (
                reference[:, :, None, None] + offsets[:, :, :, level] / cells
            )
        scores = attention.weights(query).view(2, 5, 2, 6).exp()
        weights = (scores / scores.sum(dim=-1, keepdim=True)).view(2, 5, 2, 2, 3)
        values = [attention.value(own) for own in maps]
        expected = attention.output(torch.from_numpy(loop(values, locations, weights)))
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-8)


def test_attention_starts_on_rings_with_equal_weights() -> None:
    attention = DeformableAttention(8, 4, 3)
    offsets = attention.offsets(torch.randn(8)).view(4, 3, 2)
    for point in range(3):
        expected = (point + 1) * torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
        torch.testing.assert_close(offsets[:, point], expected, atol=1e-5, rtol=0)
    assert torch.equal(attention.weights(torch.randn(8)), torch.zeros(12))


def transparent(channels: int, size_YX: tuple[int, int], points: int) -> MapSelfAttention:
    """An attention that reads its own cell and hands it on."""
    module = MapSelfAttention(channels, 2, points, size_YX).double()
    with torch.no_grad():
        module.attention.offsets.bias.zero_()
        module.attention.value.weight[..., 0, 0] = torch.eye(channels)
        module.attention.output.weight.copy_(torch.eye(channels))
    return module


def test_without_offsets_every_cell_reads_itself() -> None:
    map_BCYX = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        got = transparent(4, (5, 7), 3)(map_BCYX)
    torch.testing.assert_close(got, 2 * map_BCYX, atol=CENTRES, rtol=0)


def test_one_cell_to_the_right_is_plus_x_and_one_up_is_plus_y() -> None:
    map_BCYX = torch.randn(1, 4, 5, 7, dtype=torch.float64)
    module = transparent(4, (5, 7), 1)
    for axis in (0, 1):
        bias = torch.zeros(2, 2, dtype=torch.float64)
        bias[:, axis] = 1.0
        module.attention.offsets.bias.data = bias.flatten()
        with torch.no_grad():
            read = module(map_BCYX) - map_BCYX
        ahead = map_BCYX.narrow(3 - axis, 1, map_BCYX.shape[3 - axis] - 1)
        behind = read.narrow(3 - axis, 0, ahead.shape[3 - axis])
        torch.testing.assert_close(behind, ahead, atol=CENTRES, rtol=0)
        assert float(read.select(3 - axis, -1).abs().max()) < CENTRES  # nothing beyond the border


def test_a_shifted_map_is_answered_shifted() -> None:
    module = MapSelfAttention(4, 2, 3, (12, 16)).double()
    stir(module, 0.1)
    module.rows_CY1.data.zero_()
    module.columns_C1X.data.zero_()
    module.attention.value.bias.data.zero_()  # beyond the border there is no bias
    inner = torch.zeros(1, 4, 12, 16, dtype=torch.float64)
    inner[:, :, 4:7, 6:9] = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        plain, shifted = module(inner), module(inner.roll((2, -1), dims=(2, 3)))
    expected = plain.roll((2, -1), dims=(2, 3))
    crop = (..., slice(4, -3), slice(3, -4))
    assert float(expected[crop].std()) > 0.01
    torch.testing.assert_close(shifted[crop], expected[crop], atol=CENTRES, rtol=0)


def test_positions_steer_the_queries_and_are_not_read() -> None:
    module = transparent(4, (5, 7), 1)
    map_BCYX = torch.randn(1, 4, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        before = module(map_BCYX)
        module.rows_CY1 += 5
        module.columns_C1X += 5
        assert torch.equal(module(map_BCYX), before)  # offsets do not listen to queries yet
        stir(module.attention.offsets, 0.1)
        assert not torch.allclose(module(map_BCYX), before)


def test_gradients_reach_everything_once_the_offsets_listen() -> None:
    module = MapSelfAttention(8, 2, 3, (5, 7))
    stir(module)
    map_BCYX = torch.randn(2, 8, 5, 7, requires_grad=True)
    (module(map_BCYX) ** 2).sum().backward()
    assert map_BCYX.grad is not None
    for name, own in module.named_parameters():
        assert own.grad is not None, name
        assert float(own.grad.abs().sum()) > 0, name


def test_autocast_moves_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    module = MapSelfAttention(8, 2, 3, (30, 30))
    torch.nn.init.normal_(module.attention.offsets.weight)
    seen: list[Tensor] = []

    def spy(values: list[Tensor], locations: Tensor, weights: Tensor) -> Tensor:
        seen.append(torch.cat([locations.flatten(), weights.flatten()]))
        return sum_of_samples(values, locations, weights)

    monkeypatch.setattr(deformable, "sum_of_samples", spy)
    map_BCYX = torch.randn(1, 8, 30, 30)
    with torch.no_grad():
        module(map_BCYX)
        with torch.autocast("cpu", torch.bfloat16):
            module(map_BCYX)
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_samples_in_float32(dtype: torch.dtype) -> None:
    module = MapSelfAttention(8, 2, 3, (90, 90))
    map_BCYX = torch.randn(1, 8, 90, 90)
    with torch.no_grad():
        exact = module(map_BCYX)
        with torch.autocast("cpu", dtype):
            half = module(map_BCYX)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.1, rtol=0.02)
    summed = sum_of_samples(
        [map_BCYX.to(dtype)], torch.rand(1, 4, 2, 1, 3, 2), torch.rand(1, 4, 2, 1, 3)
    )
    assert summed.dtype == torch.float32


def test_what_is_read_is_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable, "CHUNK_NUMBERS", 1 << 12)
    channels, side, points = 32, 40, 20
    module = MapSelfAttention(channels, 2, points, (side, side))
    map_BCYX = torch.randn(1, channels, side, side, requires_grad=True)
    with LargestTensor() as largest:
        module(map_BCYX).square().sum().backward()
    queries = side * side
    locations = 2 * points * 2 * queries
    bound = max(channels * queries, locations)
    assert largest.numbers <= bound
    assert bound * 8 <= channels * queries * points


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    module = MapSelfAttention(80, 8, 20, (180, 180))
    map_BCYX = torch.randn(1, 80, 180, 180)
    gradients, outputs = [], []
    for device in ("cpu", "cuda"):
        own = module.to(device)
        own.zero_grad()
        with reckoning("float32", deterministic=False, device=device):  # TF32 errs by 4e-4
            outputs.append(own(map_BCYX.to(device)))
            outputs[-1].square().mean().backward()
        gradients.append(own.attention.value.weight.grad.cpu().clone())  # module.to moves it
    torch.testing.assert_close(outputs[1].cpu(), outputs[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-3)

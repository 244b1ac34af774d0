"""Codecs: stated error bounds, regions, and refusals that name the sample."""

import pytest
import torch

from bevcask.cache.quantize import SMALLEST_PEAK, dequantize, encode
from bevcask.errors import TargetMismatchError
from bevcask.targets.spec import LEVELS, Region, TapInfo, TargetSpec
from cache.example import GRID, SPECS

_ROUNDING = 2**-22


def dense(codec: str, region: Region | None = None, channels: int = 5) -> TargetSpec:
    unsigned = codec.startswith("u")
    tap = TapInfo("bev.neck", "dense_bev", (channels, 6, 8), GRID, nonnegative=unsigned)
    return TargetSpec(tap, codec, region or Region())  # type: ignore[arg-type]


def noise(*shape: int) -> torch.Tensor:
    """Normal values whose channels differ by ten orders of magnitude."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return values * torch.logspace(-5, 5, shape[1]).reshape(1, -1, *[1] * (len(shape) - 2))


@pytest.mark.parametrize("codec", LEVELS)
def test_integer_codecs_err_by_half_a_scale(codec: str) -> None:
    values = noise(4, 5, 6, 8)
    values = values.abs() if codec.startswith("u") else values
    stored = encode(values, dense(codec))
    assert stored.values.dtype == (torch.uint8 if codec.startswith("u") else torch.int8)
    error = (dequantize(stored.values, stored.scale).double() - values.double()).abs()
    peak = values.abs().amax(dim=(2, 3), keepdim=True)
    assert (error <= stored.scale[..., None, None] / 2 + peak * _ROUNDING).all()
    assert (error.amax(dim=(2, 3)) > stored.scale / 4).all()
    levels = {"uint8": 255, "uint6": 63, "uint4": 15, "int8": 127, "int6": 31, "int4": 7}[codec]
    torch.testing.assert_close(stored.scale, peak[..., 0, 0] / levels, rtol=1e-6, atol=0)
    assert stored.values.to(torch.int32).abs().amax(dim=(2, 3)).eq(levels).all()


def test_float_codecs() -> None:
    values = noise(2, 5, 6, 8).clamp(-6e4, 6e4)
    half = encode(values, dense("float16"))
    bound = torch.maximum(values.abs() * 2**-11, torch.tensor(2.0**-25))
    assert ((dequantize(half.values, half.scale) - values).abs() <= bound).all()
    exact = encode(values, dense("float32"))
    assert torch.equal(dequantize(exact.values, exact.scale), values)
    assert exact.scale is None


def test_scale_belongs_to_row_and_channel() -> None:
    values = torch.ones(2, 5, 6, 8)
    values[1, 3] = 1e6
    stored = encode(values, dense("uint8"))
    assert stored.scale.shape == (2, 5)
    assert (stored.scale != stored.scale[0, 0]).nonzero().tolist() == [[1, 3]]


def test_scale_belongs_to_camera_too() -> None:
    spec = TargetSpec(TapInfo("image.fpn0", "image_feature", (2, 3, 4, 5)), "int8")
    values = torch.randn(3, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    stored = encode(values, spec)
    assert stored.scale.shape == (3, 2, 3)
    error = (dequantize(stored.values, stored.scale) - values).abs()
    assert (error <= stored.scale[..., None, None] * 0.5001).all()


def test_scale_of_queries_runs_over_the_last_axis() -> None:
    spec = TargetSpec(TapInfo("query.last", "query_set", (4, 3)), "int8")
    values = torch.tensor([1.0, 10.0, 100.0]).repeat(2, 4, 1)
    stored = encode(values, spec)
    assert stored.scale.shape == (2, 3)
    torch.testing.assert_close(dequantize(stored.values, stored.scale), values)
    torch.testing.assert_close(dequantize(stored.values[0], stored.scale[0]), values[0])
    assert stored.count.tolist() == [4, 4]


def test_silent_and_tiny_channels_are_zero_not_nan() -> None:
    values = torch.zeros(1, 5, 6, 8)
    values[0, 1] = SMALLEST_PEAK / 2
    values[0, 2] = 1e-45
    values[0, 3] = SMALLEST_PEAK
    stored = encode(values, dense("uint8"))
    assert stored.scale[0].gt(0).tolist() == [False, False, False, True, False]
    assert torch.equal(dequantize(stored.values, stored.scale)[0, :3], torch.zeros(3, 6, 8))


def test_region_all_computes_no_mask() -> None:
    assert encode(noise(1, 5, 6, 8), dense("int8")).region is None


def test_confident_region_is_decided_on_float32_values() -> None:
    values = torch.zeros(1, 5, 6, 8)
    values[0, 2, 1, 7] = 0.5 + 2**-20  # float16 and uint8 would call this 0.5
    values[0, 4, 3, 3] = 0.5
    values[0, 0, 5, 0] = 1000.0
    values[0, 0, 3, 3] = 0.25
    stored = encode(values, dense("uint8", Region("confident", 0.5)))
    assert stored.region.nonzero().tolist() == [[0, 1, 7], [0, 5, 0]]
    assert stored.values.nonzero().tolist() == [[0, 0, 5, 0], [0, 2, 1, 7]]


def test_scale_is_taken_over_stored_cells_only() -> None:
    values = torch.zeros(1, 5, 6, 8)
    values[0, 0, 2, 2], values[0, 1, 2, 2] = 9.0, 1.0
    values[0, 1, 4, 4] = 3.0  # not confident
    stored = encode(values, dense("int8", Region("confident", 4.0)))
    torch.testing.assert_close(stored.scale[0, 1], torch.tensor(1.0 / 127))


def test_half_precision_input_is_accepted() -> None:
    values = noise(1, 5, 6, 8).clamp(-100, 100).bfloat16()
    stored = encode(values, dense("float32"))
    assert torch.equal(stored.values, values.float())


@pytest.mark.parametrize(
    ("codec", "bad", "words"),
    [
        ("uint8", float("nan"), "NaN or infinite"),
        ("int8", float("inf"), "NaN or infinite"),
        ("float32", float("-inf"), "NaN or infinite"),
        ("uint8", -1.0, "negative"),
        ("float16", 7e4, "beyond +-65504"),
    ],
)
def test_refusals_name_tap_token_and_count(codec: str, bad: float, words: str) -> None:
    values = torch.ones(3, 5, 6, 8)
    values[1, 2, 3, 4:6] = bad
    values[2, 0, 0, 0] = bad
    with pytest.raises(TargetMismatchError) as caught:
        encode(values, dense(codec), tokens=["t0", "t1", "t2"])
    message = str(caught.value)
    assert "'bev.neck'" in message
    assert f"t1 has 2 of 240 values {words}" in message
    assert "2 of 3 samples" in message


def test_nan_is_found_outside_the_region_too() -> None:
    values = torch.zeros(1, 5, 6, 8)
    values[0, 0, 0, 0] = float("nan")
    with pytest.raises(TargetMismatchError, match="number 0 of the batch"):
        encode(values, dense("uint8", Region("confident", 0.5)))


def test_shape_must_be_the_specs() -> None:
    with pytest.raises(TargetMismatchError, match=r"expected \(B, 3, 6, 8\), got \(1, 3, 8, 6\)"):
        encode(torch.zeros(1, 3, 8, 6), SPECS[0])


@pytest.mark.gpu
def test_cuda_gives_the_bytes_of_the_cpu() -> None:
    values = noise(4, 5, 6, 8)
    for codec in ("int8", "float16", "float32"):
        clamped = values.clamp(-6e4, 6e4)
        host = encode(clamped, dense(codec)).numpy()
        device = encode(clamped.cuda(), dense(codec)).numpy()
        assert (host.values == device.values).all()
        assert host.scale is None or (host.scale == device.scale).all()

"""Codecs: stated error bounds, regions, and refusals that name the sample."""

from pathlib import Path

import pytest
import torch

from bevcask.cache.quantize import SMALLEST_PEAK, dequantize, encode, encode_targets
from bevcask.errors import TargetMismatchError
from bevcask.targets.spec import LEVELS, Region, TapInfo, TargetSpec
from cache.example import GRID, SPECS, begin

_ROUNDING = 2**-22
BOX_TAP = TapInfo("head.boxes", "box_set", (5, 11), classes=("car", "bus"))


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
    levels = {
        "uint8": 255,
        "uint6": 63,
        "uint5": 31,
        "uint4": 15,
        "int8": 127,
        "int6": 31,
        "int5": 15,
        "int4": 7,
    }[codec]
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
    assert not stored.values[0, :3].any()
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
    values = torch.full((3, 5, 6, 8), 0.5)
    values[0] = 0.0
    values[1, 2, 3, 4:6] = bad
    values[2, 0, 0, 0] = bad
    with pytest.raises(TargetMismatchError) as caught:
        encode(values, dense(codec), tokens=["t0", "t1", "t2"])
    message = str(caught.value)
    assert "'bev.neck'" in message
    assert f"t1 has 2 of 240 values {words}" in message
    assert "2 of 3 samples" in message


BOXES = torch.zeros(5, 11)
BOXES[:2, 3:6], BOXES[:2, 9] = 1.0, 0.5


def boxes_with(column: int, value: float) -> torch.Tensor:
    changed = BOXES.clone()
    changed[1, column] = value
    return changed


HEATMAP = TapInfo("head.heatmap", "heatmap", (1, 2, 2), GRID, nonnegative=True)
BEYOND_THE_KIND = {
    "logits": (HEATMAP, torch.full((1, 2, 2), 18.6), "highest is 18.6"),
    "a bit too much": (HEATMAP, torch.full((1, 2, 2), 1.01), "highest is 1.01"),
    "below zero": (HEATMAP, torch.full((1, 2, 2), -0.5), "lowest value is -0.5"),
    "a signed map that says it is none": (
        TapInfo("bev.neck", "dense_bev", (1, 2, 2), GRID, nonnegative=True),
        torch.full((1, 2, 2), -3.0),
        "lowest value is -3",
    ),
    "a box of negative size": (BOX_TAP, boxes_with(4, -1.0), "sizes must not be negative"),
    "a score above one": (BOX_TAP, boxes_with(9, 1.5), r"scores must lie in \[0, 1\]"),
    "half a class": (BOX_TAP, boxes_with(10, 0.5), "whole numbers"),
    "a class nobody has": (BOX_TAP, boxes_with(10, 2.0), "class 2 of a detector with 2"),
}


@pytest.mark.parametrize("name", BEYOND_THE_KIND)
def test_what_the_kind_does_not_allow_is_never_stored(name: str) -> None:
    tap, bad, words = BEYOND_THE_KIND[name]
    good = BOXES if tap is BOX_TAP else torch.zeros(tap.shape)
    spec = TargetSpec(tap, "float32")
    encode(torch.stack([good, good]), spec)
    with pytest.raises(TargetMismatchError, match=rf"'{tap.name}': sample t1: .*{words}"):
        encode(torch.stack([good, bad]), spec, tokens=["t0", "t1"])


def test_a_probability_may_pass_one_by_rounding() -> None:
    values = torch.full((1, 1, 2, 2), 1.0 + 2.0**-11)
    assert encode(values, TargetSpec(HEATMAP, "float16")).values.max() >= 1


def test_a_sample_may_have_no_entries() -> None:
    stored = encode(BOXES[None], TargetSpec(BOX_TAP, "float32"), count=torch.tensor([0]))
    assert stored.count.tolist() == [0]


@pytest.mark.parametrize("count", [-1, 6])
def test_a_count_beyond_the_rows_is_never_stored(count: int) -> None:
    spec = TargetSpec(BOX_TAP, "float32")
    with pytest.raises(TargetMismatchError, match=rf"t1 counts {count} entries, it has 0 to 5"):
        encode(
            torch.stack([BOXES, BOXES]), spec, count=torch.tensor([5, count]), tokens=["t0", "t1"]
        )


@pytest.mark.parametrize("fingerprint", [{}, {"teacher": {}}, {"teacher": {"weights": None}}])
def test_a_fingerprint_without_weights_is_refused_before_anything_is_written(
    tmp_path: Path, fingerprint: dict[str, object]
) -> None:
    with pytest.raises(TargetMismatchError, match=r"no teacher\.weights"):
        begin(tmp_path, fingerprint=fingerprint)
    assert not list(tmp_path.iterdir())


def test_nan_is_found_outside_the_region_too() -> None:
    values = torch.zeros(1, 5, 6, 8)
    values[0, 0, 0, 0] = float("nan")
    with pytest.raises(TargetMismatchError, match="number 0 of the batch"):
        encode(values, dense("uint8", Region("confident", 0.5)))


def test_shape_must_be_the_specs() -> None:
    with pytest.raises(TargetMismatchError, match=r"expected \(B, 3, 6, 8\), got \(1, 3, 8, 6\)"):
        encode(torch.zeros(1, 3, 8, 6), SPECS[0])


def test_images_are_resized_before_they_are_encoded() -> None:
    """Corner to corner: of four columns brought to two, the first and the last are left."""
    tap = TapInfo("image.level0", "image_feature", (2, 1, 1, 2), depends_on_images=True)
    spec = TargetSpec(tap, "float32", said_HW=(1, 4))
    said = torch.arange(16.0).view(2, 2, 1, 1, 4)
    (stored,) = encode_targets({"image.level0": said}, [spec], None, ()).values()
    assert torch.equal(stored.values, said[..., [0, 3]])
    with pytest.raises(
        TargetMismatchError, match=r"says \(1, 5\) rows and columns, expected \(1, 4"
    ):
        encode_targets({"image.level0": torch.zeros(1, 2, 1, 1, 5)}, [spec], None, ())


@pytest.mark.gpu
def test_cuda_gives_the_bytes_of_the_cpu() -> None:
    values = noise(4, 5, 6, 8)
    for codec in ("int8", "float16", "float32"):
        clamped = values.clamp(-6e4, 6e4)
        host = encode(clamped, dense(codec)).numpy()
        device = encode(clamped.cuda(), dense(codec)).numpy()
        assert (host.values == device.values).all()
        assert host.scale is None or (host.scale == device.scale).all()

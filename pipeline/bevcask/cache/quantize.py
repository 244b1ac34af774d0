"""Lossy steps, done before writing and on whatever device the teacher runs.

A reader needs no private codec: value = values * scale. Error bounds against the float32 input, for
cells that are stored:

- `uint8`, `uint6`, `uint5`, `uint4` (non-negative): scale = max / 255, 63, 31, 15; error at most
  half of it.
- `int8`, `int6`, `int5`, `int4` (symmetric): scale = max |v| / 127, 31, 15, 7; error at most half.
- `float16`: error <= max(|v| * 2**-11, 2**-25).
- `float32`: exact.

The scale is one float32 per row, [camera,] channel. A channel whose largest magnitude is below
`SMALLEST_PEAK` (a scale that float32 holds with full precision) is stored as zero. "error <=
scale / 2" holds up to float32 rounding, a relative 2**-22 of the peak.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from bevcask.cache.encoded import Encoded
from bevcask.cache.layout import entry_axis, is_scaled, is_set, scale_axes
from bevcask.errors import TargetMismatchError
from bevcask.geometry import divisor
from bevcask.targets.kinds import kind_of
from bevcask.targets.region import region_mask
from bevcask.targets.resize import resized
from bevcask.targets.spec import LEVELS, TargetSpec, stored_dtype

SMALLEST_PEAK = 255 * torch.finfo(torch.float32).tiny


def encode(
    values: Tensor,
    spec: TargetSpec,
    *,
    count: Tensor | None = None,
    boxes: Sequence[Tensor] | None = None,
    tokens: Sequence[str] = (),
) -> Encoded[Tensor]:
    """Turn a teacher's tensor into what is stored.

    Args:
        values: (B, *spec.tap.shape), any float dtype, any device.
        spec: how the target is stored.
        count: int64 (B,), valid entries of a padded set; None means all.
        boxes: per sample (N, 9) canonical ground truth, for regions that follow it.
        tokens: sample tokens of the batch, for messages.

    Returns:
        Encoded tensors on the device of `values`.

    Raises:
        TargetMismatchError: wrong shape; NaN or infinite values; negative values for uint8; values
            beyond float16, or beyond what the tap's kind allows; a count beyond the rows. Tap,
            first sample and value are named.
        DataError: the region follows boxes and there are none.
    """
    if tuple(values.shape[1:]) != spec.tap.shape:
        raise TargetMismatchError(
            f"target {spec.key!r}: expected (B, {', '.join(map(str, spec.tap.shape))}), "
            f"got {tuple(values.shape)}. The teacher's tap does not match its own description."
        )
    if spec.codec == "int64":
        return _names(values.detach(), spec, count, tokens)
    exact = values.detach().float()
    low, high = _extremes(exact, spec)
    if not _sound(exact, low, high, spec):
        _find_fault(exact, low, high, spec, tokens)
    if count is not None:
        _check_count(count, spec, tokens)
    region = region_mask(spec.region, exact, spec.tap.grid, boxes)
    if region is not None:
        exact = exact * region.reshape(len(exact), *(1,) * (exact.ndim - 3), *region.shape[1:])
        low, high = _extremes(exact, spec)
    if is_set(spec) and count is None:
        count = _all_entries(exact, spec)
    if is_scaled(spec):
        stored, scale = _quantize(exact, torch.maximum(high, -low), spec)
        return Encoded(stored, scale, region, count)
    stored = exact.to(_dtype(spec))
    if spec.codec == "float16" and not bool(torch.isfinite(stored).all()):
        _refuse(
            torch.isfinite(stored), spec, tokens, "beyond +-65504", "Store it with codec float32."
        )
    return Encoded(stored, None, region, count)


def _names(
    values: Tensor, spec: TargetSpec, count: Tensor | None, tokens: Sequence[str]
) -> Encoded[Tensor]:
    """Return whole numbers that are no quantities as they are."""
    if found := kind_of(spec.tap).problems(spec.tap, values):
        raise TargetMismatchError(f"target {spec.key!r}: {'; '.join(found)}. Nothing is stored.")
    if count is None:
        count = _all_entries(values, spec)
    _check_count(count, spec, tokens)
    return Encoded(values, None, None, count)


def _all_entries(values: Tensor, spec: TargetSpec) -> Tensor:
    size = spec.tap.shape[entry_axis(spec.tap)]
    return torch.full((len(values),), size, device=values.device)


def _extremes(exact: Tensor, spec: TargetSpec) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest value a scale covers, reduced axes kept as 1; NaN stays.

    Two vectorised reductions tell all that the checks and the scale need: a mask of the values
    costs several times more.
    """
    kept = {0, *(axis + 1 for axis in scale_axes(spec))}
    reduced = tuple(axis for axis in range(exact.ndim) if axis not in kept)
    return exact.amin(dim=reduced, keepdim=True), exact.amax(dim=reduced, keepdim=True)


def _sound(exact: Tensor, low: Tensor, high: Tensor, spec: TargetSpec) -> bool:
    """Tell whether values are finite, fit the codec and are what their kind promises.

    Maps are judged by their extremes, for which the host waits once; sets, which are small, on the
    host, and maps of whole numbers cell by cell.
    """
    kind = kind_of(spec.tap)
    each = is_set(spec) or kind.whole_numbers
    least, most = kind.bounds(spec.tap)
    if spec.codec.startswith("u"):
        least = max(least, 0.0)
    if each:
        least, most = (0.0 if spec.codec.startswith("u") else -torch.inf), torch.inf
    good = torch.isfinite(low) & torch.isfinite(high) & (low >= least) & (high <= most)
    if not bool(good.all()):
        return False
    return not each or not kind.problems(spec.tap, exact.cpu() if is_set(spec) else exact)


def _find_fault(
    exact: Tensor, low: Tensor, high: Tensor, spec: TargetSpec, tokens: Sequence[str]
) -> None:
    """Say what is wrong with values that are not sound."""
    if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
        _refuse(
            torch.isfinite(exact), spec, tokens, "NaN or infinite", "Look at the teacher's input."
        )
    if spec.codec.startswith("u") and not bool((low >= 0).all()):
        _refuse(exact >= 0, spec, tokens, "negative", "Store this target with codec int8.")
    kind = kind_of(spec.tap)
    for number, sample in enumerate(exact):
        if found := kind.problems(spec.tap, sample[None]):
            raise TargetMismatchError(
                f"target {spec.key!r}: sample {_named(number, tokens)}: {'; '.join(found)}. "
                "The teacher does not say what its tap declares: nothing of it is stored."
            )


def _check_count(count: Tensor, spec: TargetSpec, tokens: Sequence[str]) -> None:
    size = spec.tap.shape[entry_axis(spec.tap)]
    good_B = (count >= 0) & (count <= size)
    if not bool(good_B.all()):
        first = int((~good_B).nonzero()[0])
        raise TargetMismatchError(
            f"target {spec.key!r}: sample {_named(first, tokens)} counts {int(count[first])} "
            f"entries, it has 0 to {size}."
        )


def _named(number: int, tokens: Sequence[str]) -> str:
    return tokens[number] if tokens else f"number {number} of the batch"


def _quantize(exact: Tensor, peak: Tensor, spec: TargetSpec) -> tuple[Tensor, Tensor]:
    """Return integers and their scale (B, [V,] C); `peak` is the largest magnitude, broadcast."""
    levels = LEVELS[spec.codec]
    scale = torch.where(peak >= SMALLEST_PEAK, peak / divisor(levels, peak), 0.0)
    steps = torch.where(scale > 0, scale, torch.inf)
    stored = (exact / steps).round_().clamp_(-levels, levels).to(_dtype(spec))
    axes = [0, *(axis + 1 for axis in scale_axes(spec))]
    return stored, scale.reshape([exact.shape[axis] for axis in axes])


def _dtype(spec: TargetSpec) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, stored_dtype(spec.codec))
    return dtype


def _refuse(
    good: Tensor, spec: TargetSpec, tokens: Sequence[str], what: str, advice: str
) -> NoReturn:
    """Raise: say where `good` (B, ...) does not hold."""
    bad_B = (~good).flatten(1).sum(dim=1)
    first = int(bad_B.nonzero()[0])
    raise TargetMismatchError(
        f"target {spec.key!r}: sample {_named(first, tokens)} has {int(bad_B[first])} of "
        f"{good[first].numel()} values {what} (so have {int((bad_B > 0).sum())} of {len(bad_B)} "
        f"samples). {advice}"
    )


def dequantize(values: Tensor, scale: Tensor | None) -> Tensor:
    """Return float32 values on the device of `values`; int64, which are names, as they are.

    Args:
        values: (B, [V,] C, [Z,] H, W), (B, [L,] N, C) or one sample of these, codec dtype.
        scale: float32, one a (sample, [camera or layer,] channel); None for float codecs.
    """
    if scale is None:
        return values if values.dtype == torch.int64 else values.float()
    if values.ndim - scale.ndim == 1:  # (B, Q, C) with (B, C): the channel axis is last
        return values.float() * scale.unsqueeze(-2)
    return values.float() * scale[(..., *(None,) * (values.ndim - scale.ndim))]


def encode_targets(
    said: Mapping[str, Tensor],
    specs: Iterable[TargetSpec],
    boxes: Sequence[Tensor] | None,
    tokens: Sequence[str],
) -> dict[str, Encoded[Tensor]]:
    """Apply region and codec of every spec to what a teacher said of a batch, on its device.

    Args:
        said: tap -> tensor, and `TAP.count` -> int64 (B,) of padded sets; not changed.
        specs: of the targets to encode.
        boxes: ground truth (N, 9) a sample in the frame the teacher saw; None without.
        tokens: of the samples, for messages.

    Returns:
        Target name -> encoded batch.

    Raises:
        TargetMismatchError: see `encode`.
        DataError: see `encode`.
    """
    return {
        spec.key: encode(
            as_stored(said[spec.tap.name], spec),
            spec,
            count=said.get(f"{spec.tap.name}.count"),
            boxes=boxes,
            tokens=tokens,
        )
        for spec in specs
    }


def as_stored(values: Tensor, spec: TargetSpec) -> Tensor:
    """Return what a teacher said at the size that is stored.

    Raises:
        TargetMismatchError: it is not of the size that is recorded.
    """
    if spec.said_HW is None:
        return values
    if tuple(values.shape[-2:]) != spec.said_HW:
        raise TargetMismatchError(
            f"target {spec.key!r}: the teacher says {tuple(values.shape[-2:])} rows and columns, "
            f"expected {spec.said_HW}, which are resized to {spec.tap.shape[-2:]}."
        )
    size_HW = (spec.tap.shape[-2], spec.tap.shape[-1])
    small_NCHW = resized(values.float().flatten(0, 1), size_HW)
    return small_NCHW.view(*values.shape[:2], *small_NCHW.shape[1:])

"""Lossy steps, done before writing and on whatever device the teacher runs.

A reader needs no private codec: value = values * scale. Error bounds against the float32 input, for
cells that are stored:

- `uint8`  (non-negative): scale = max / 255, error <= scale / 2.
- `int8`   (symmetric):    scale = max |v| / 127, error <= scale / 2.
- `float16`: error <= max(|v| * 2**-11, 2**-25).
- `float32`: exact.

The scale is one float32 per row, [camera,] channel. A channel whose largest magnitude is below
`SMALLEST_PEAK` (a scale that float32 holds with full precision) is stored as zero. "error <=
scale / 2" holds up to float32 rounding, a relative 2**-22 of the peak.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bevcask.cache.layout import Encoded, is_scaled, is_set, scale_axes
from bevcask.errors import TargetMismatchError
from bevcask.targets.spec import TargetSpec

_LEVELS = {"uint8": 255, "int8": 127}
_DTYPES = {
    "uint8": torch.uint8,
    "int8": torch.int8,
    "float16": torch.float16,
    "float32": torch.float32,
}
SMALLEST_PEAK = 255 * torch.finfo(torch.float32).tiny


def encode(
    values: Tensor,
    spec: TargetSpec,
    *,
    count: Tensor | None = None,
    tokens: Sequence[str] = (),
) -> Encoded[Tensor]:
    """Turn a teacher's tensor into what is stored.

    Args:
        values: (B, *spec.tap.shape), any float dtype, any device.
        spec: how the target is stored.
        count: int64 (B,), valid entries of a padded set; None means all.
        tokens: sample tokens of the batch, for messages.

    Returns:
        Encoded tensors on the device of `values`.

    Raises:
        TargetMismatchError: wrong shape; NaN or infinite values; negative values for uint8; values
            beyond float16. Tap, first sample and count are named.
    """
    if tuple(values.shape[1:]) != spec.tap.shape:
        raise TargetMismatchError(
            f"target {spec.name!r}: expected (B, {', '.join(map(str, spec.tap.shape))}), "
            f"got {tuple(values.shape)}. The teacher's tap does not match its own description."
        )
    exact = values.detach().float()
    _require(torch.isfinite(exact), spec, tokens, "NaN or infinite", "Look at the teacher's input.")
    if spec.codec == "uint8":
        _require(exact >= 0, spec, tokens, "negative", "Store this target with codec int8.")
    region = None
    if spec.region.name == "confident":
        region = exact.amax(dim=1) > spec.region.threshold
        exact = torch.where(region[:, None], exact, 0.0)
    if is_set(spec) and count is None:
        count = torch.full((len(exact),), spec.tap.shape[0], device=exact.device)
    if is_scaled(spec):
        stored, scale = _quantize(exact, spec)
        return Encoded(stored, scale, region, count)
    stored = exact.to(_DTYPES[spec.codec])
    if spec.codec == "float16":
        _require(
            torch.isfinite(stored), spec, tokens, "beyond +-65504", "Store it with codec float32."
        )
    return Encoded(stored, None, region, count)


def _quantize(exact: Tensor, spec: TargetSpec) -> tuple[Tensor, Tensor]:
    """Return integers and their scale (B, [V,] C)."""
    kept = {axis + 1 for axis in scale_axes(spec)}
    reduced = tuple(axis for axis in range(1, exact.ndim) if axis not in kept)
    levels = _LEVELS[spec.codec]
    peak = exact.abs().amax(dim=reduced, keepdim=True)
    scale = torch.where(peak >= SMALLEST_PEAK, peak / levels, 0.0)
    divisor = torch.where(scale > 0, scale, torch.inf)
    stored = (exact / divisor).round().clamp(-levels, levels).to(_DTYPES[spec.codec])
    return stored, scale.reshape([exact.shape[0], *(exact.shape[axis] for axis in sorted(kept))])


def _require(good: Tensor, spec: TargetSpec, tokens: Sequence[str], what: str, advice: str) -> None:
    """Raise unless `good` (B, ...) holds everywhere."""
    if bool(good.all()):
        return
    bad_B = (~good).flatten(1).sum(dim=1)
    first = int(bad_B.nonzero()[0])
    token = tokens[first] if tokens else f"number {first} of the batch"
    raise TargetMismatchError(
        f"target {spec.name!r}: sample {token} has {int(bad_B[first])} of {good[first].numel()} "
        f"values {what} (so have {int((bad_B > 0).sum())} of {len(bad_B)} samples). {advice}"
    )


def dequantize(values: Tensor, scale: Tensor | None) -> Tensor:
    """Return float32 values on the device of `values`.

    Args:
        values: (B, [V,] C, H, W), (B, N, C) or one sample of these, codec dtype.
        scale: float32, one a (sample, [camera,] channel); None for float codecs.
    """
    if scale is None:
        return values.float()
    if values.ndim - scale.ndim == 1:  # (B, Q, C) with (B, C): the channel axis is last
        return values.float() * scale.unsqueeze(-2)
    return values.float() * scale[(..., *(None,) * (values.ndim - scale.ndim))]

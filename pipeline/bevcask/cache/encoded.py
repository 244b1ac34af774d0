"""A target as stored, of a batch or of one sample: values and what is needed to read them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

ArrayT = TypeVar("ArrayT")  # numpy.ndarray or torch.Tensor


@dataclass(frozen=True)
class Encoded(Generic[ArrayT]):
    """A target as stored: of a batch (leading B) or, from `Cache.read`, of one sample.

    Attributes:
        values: (B, ...) in the spec's codec dtype.
        scale: float32 (B, C), (B, V, C) or (B, L, C); value = values * scale. None for float
            codecs.
        region: bool (B, Y, X), cells that were stored. None where everything is.
        count: int64 (B,), valid entries of padded sets. None for dense kinds.
    """

    values: ArrayT
    scale: ArrayT | None = None
    region: ArrayT | None = None
    count: ArrayT | None = None

    def sample(self, number: int | list[int]) -> "Encoded[ArrayT]":
        """Return one sample of a batch, or a batch of some."""
        parts: list[Any] = [getattr(self, field.name) for field in fields(self)]
        return Encoded(*(None if part is None else part[number] for part in parts))

    def numpy(self) -> "Encoded[npt.NDArray[Any]]":
        """Return the same on the host as numpy arrays."""
        return Encoded(*(_to_numpy(getattr(self, field.name)) for field in fields(self)))

    def floats(self) -> npt.NDArray[Any]:
        """Return the values on the host as float32, scaled where they have one; names as int64."""
        if np.asarray(self.values).dtype == np.int64:
            return np.asarray(self.values)
        values: npt.NDArray[np.float32] = np.asarray(self.values).astype(np.float32)
        if self.scale is None:
            return values
        scale = np.asarray(self.scale)
        missing = values.ndim - scale.ndim
        over = -2 if missing == 1 else tuple(range(-missing, 0))  # of a set, channels are last
        return np.multiply(values, np.expand_dims(scale, over), dtype=np.float32)


def _to_numpy(array: Any) -> Any:
    return array.cpu().numpy() if hasattr(array, "cpu") else array


def concatenate(parts: Sequence[Encoded[Any]]) -> Encoded[npt.NDArray[Any]]:
    """Join encoded batches of one target along the batch axis, on the host."""
    hosts = [part.numpy() for part in parts]

    def join(name: str) -> Any:
        arrays = [getattr(host, name) for host in hosts]
        return None if arrays[0] is None else np.concatenate(arrays)

    return Encoded(*(join(field.name) for field in fields(Encoded)))


def valid_entries(values: ArrayT, count: Any, axis: int) -> ArrayT:
    """Return a sample of a padded set without what lies behind its count."""
    whole: Any = values
    cut: ArrayT = whole[(slice(None),) * axis + (slice(int(count)),)]
    return cut

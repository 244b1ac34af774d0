"""From the device to the host, beside the next forward."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from bevcask.cache.encoded import Encoded


class HostCopies:
    """Copies encoded targets into pinned memory, on a stream of its own where the device is CUDA.

    Elsewhere nothing is copied.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, encoded: Encoded[Tensor]) -> Encoded[Tensor]:
        """Begin to copy what the device has yet to compute; the result is whole behind a `mark`."""
        if self._stream is None:
            return encoded
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            parts: list[Any] = [self._copy(getattr(encoded, f.name)) for f in fields(Encoded)]
        return Encoded(*parts)

    def _copy(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not tensor.is_cuda:
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)  # its memory is not given away before it is copied
        return host

    def mark(self) -> "Mark":
        """Return a mark behind every copy that was begun."""
        return Mark(None if self._stream is None else self._stream.record_event())


class Mark:
    """A point in the copies of a device.

    Attributes:
        reached: whether nobody need wait; so it is where nothing is copied.
    """

    def __init__(self, event: Any) -> None:
        self._event = event

    @property
    def reached(self) -> bool:
        return self._event is None or self._event.query()

    def wait(self) -> None:
        """Wait until every copy before it is whole."""
        if self._event is not None:
            self._event.synchronize()

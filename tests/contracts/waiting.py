"""How often the host would wait for a device, counted on the CPU."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"}
_READS |= {"linalg_inv", "inverse"}  # they ask whether the matrix was singular
_SIZED_BY_VALUES = {"nonzero", "masked_select", "unique", "bincount", "argwhere"}
_COPIES = {"tensor", "new_tensor", "as_tensor", "asarray"}


class Waits(TorchFunctionMode):
    """Notes what makes a host wait until a device has done all it was asked.

    Attributes:
        reads: values that are read, and results whose size depends on values.
        copies: Python numbers that are copied to the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.copies: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = kwargs or {}, func.__name__
        masked = name in ("__getitem__", "__setitem__") and any(
            isinstance(own, Tensor) and own.dtype == torch.bool
            for own in (args[1] if isinstance(args[1], tuple) else (args[1],))
        )
        if name in _READS | _SIZED_BY_VALUES or masked:
            self.reads.append(name)
        elif name == "repeat_interleave" and "output_size" not in kwargs and len(args) < 2:
            pass  # of counts that lie on the host
        elif name == "new_tensor" or (name in _COPIES and kwargs.get("device") is not None):
            self.copies.append(name)
        return func(*args, **kwargs)

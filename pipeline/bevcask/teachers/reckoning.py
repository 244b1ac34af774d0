"""How a teacher reckons, so that what it said can be said again.

On a CPU nothing here changes anything but half precision. On CUDA, matrix products and convolutions
in TF32 keep ten bits, and some kernels add in whatever order threads arrive in.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bevcask.config import NativeTeacherConfig, Precision
from bevcask.errors import ConfigError

_FILLS: Any = torch.utils.deterministic
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_UNREPEATABLE = re.compile(r"(\S+) does not have a deterministic implementation")


def prepare(config: NativeTeacherConfig, device: str) -> None:
    """Set what CUDA reads once, at its first matrix product.

    Raises:
        ConfigError: a precision that a device of this type does not have.
    """
    if config.precision == "tf32" and device != "cuda":
        raise ConfigError(
            f"teacher.precision=tf32: {device} has none, and the cache would say what is not so. "
            "Use float32, or device=cuda."
        )
    if config.deterministic:
        os.environ.setdefault(_WORKSPACE, ":4096:8")


def identity(config: NativeTeacherConfig) -> dict[str, object]:
    """Return what decides the numbers beside weights and pixels; part of a cache's identity."""
    return {"precision": config.precision, "deterministic": config.deterministic}


def half_precision(precision: Precision, device: str) -> torch.autocast:
    """Return autocast to `bf16` or `fp16`, and none otherwise."""
    half = _HALVES.get(precision)
    return torch.autocast(device, half, enabled=half is not None)


@contextmanager
def reckoning(precision: Precision, deterministic: bool, device: str) -> Iterator[None]:
    """Run with TF32 where it is asked for alone, the same bits each time; leave no switch behind.

    Args:
        precision: `tf32` allows it.
        deterministic: kernels that add in one order, and an error where there is none.
        device: type of the device it runs on.

    Raises:
        ConfigError: an operation has no deterministic kernel there; it is named.
    """
    repeats = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = _FILLS.fill_uninitialized_memory
    products, tf32 = torch.backends.cuda.matmul.allow_tf32, precision == "tf32"
    strict = deterministic and device == "cuda"
    try:
        if strict:  # the call itself imports a compiler, which takes seconds
            torch.use_deterministic_algorithms(True)
            # Else each new tensor is filled first, a kernel more for every operation.
            _FILLS.fill_uninitialized_memory = False
        torch.backends.cuda.matmul.allow_tf32 = tf32
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=strict, allow_tf32=tf32
        ):
            yield
    except RuntimeError as error:
        if found := _UNREPEATABLE.search(str(error)):
            raise ConfigError(
                f"{found[1]} has no deterministic kernel on {device}, so this teacher cannot say "
                "the same twice there. Extract on another device (device=cpu), or say "
                "teacher.deterministic=false, which is part of the cache's identity."
            ) from error
        raise
    finally:
        if strict:
            torch.use_deterministic_algorithms(repeats, warn_only=warns)
            _FILLS.fill_uninitialized_memory = fills
        torch.backends.cuda.matmul.allow_tf32 = products

"""Pickle files read as plain data: arrays, numbers, text and containers, nothing that can act.

A pickle is a program for a small machine that may call any function it names. Here it may name the
few that rebuild numpy arrays; a hostile file can still exhaust memory, so consent is asked first.
"""

import pickle
from pathlib import Path
from typing import Any

from bevcask.errors import DataError

_ADMITTED = {
    "numpy": {"ndarray", "dtype"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
}
# The documentation of pickle promises no closed list of what a damaged file raises.
_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core", 1)  # how numpy 2 says it
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if name not in _ADMITTED.get(module, ()):
            raise DataError(
                f"names {module}.{name}, which is neither a numpy array nor a builtin value and "
                "might run code. Nothing of it was called. Write the file again as plain lists, "
                "dictionaries and arrays; if you did not make it, do not trust it."
            )
        return super().find_class(module, name)


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, with which protocol 2 writes bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def read_pickle(path: Path) -> Any:
    """Return the content of a pickle file of plain values and numpy arrays.

    Raises:
        DataError: the file is missing, cut short, no pickle, or names anything else.
    """
    try:
        with path.open("rb") as file:
            return _DataUnpickler(file).load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}.") from error
    except _DAMAGED as error:
        raise DataError(
            f"{path}: not a complete pickle ({type(error).__name__}: {error}); "
            f"{path.stat().st_size} bytes. Copy or download the file again."
        ) from error

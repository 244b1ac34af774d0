"""Pickle files read as plain data: arrays, numbers, text and containers, nothing that can act.

A pickle is a program for a small machine that may call any function it names and set the state of
any object. Here the machine has only the instructions that make plain values (hence the one written
in Python, whose instructions are a table), and what rebuilds numpy arrays are stand-ins that check
every word before numpy sees it. Memory stays within a multiple of the file.
"""

import math
import pickle
import pickletools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from bevcask.errors import DataError

_PLAIN = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.NONE,
    pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2,
    pickle.LONG, pickle.LONG1, pickle.LONG4, pickle.FLOAT, pickle.BINFLOAT, pickle.STRING,
    pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES,
    pickle.BINBYTES8, pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE,
    pickle.BINUNICODE8, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2,
    pickle.TUPLE3, pickle.EMPTY_LIST, pickle.LIST, pickle.EMPTY_DICT, pickle.PUT, pickle.BINPUT,
    pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GLOBAL, pickle.STACK_GLOBAL,
)  # fmt: skip
_DTYPE = re.compile(r"([biuf])([1248])|([SU])([0-9]{1,4})")
_MAX_DIMENSIONS = 8
_SHARED = 8  # values and bytes that repeated references may stand for, a byte of the file
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


class _Dtype:
    """Stands in for a dtype of plain values: numbers, truth, text of a fixed length."""

    def __init__(self, name: object, align: object = False, copy: object = True) -> None:
        if not (isinstance(name, str) and _DTYPE.fullmatch(name)):
            raise DataError(
                f"holds an array of {name!s:.40}, expected numbers, bool or text of a fixed "
                "length. Nothing of it was made. Write the file again without arrays of objects "
                "or records."
            )
        self.plain = np.dtype(name)

    def __setstate__(self, state: object) -> None:
        """Take the byte order; everything else must be what follows from the name."""
        order = state[1] if isinstance(state, tuple) and 8 <= len(state) <= 9 else None
        if isinstance(order, str) and order in ("<", ">", "|", "="):
            ordered = self.plain.newbyteorder(order)  # type: ignore[arg-type]
            assert isinstance(state, tuple)
            if (*state[2:], None)[:7] == (*ordered.__reduce__()[2][2:], None)[:7]:
                self.plain = ordered
                return
        raise DataError(f"changes what an array of {self.plain} is: damaged, or made to do harm.")


class _Array(np.ndarray[Any, Any]):
    """An array that takes its content as pickle hands it over, once it is sure of its size."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        _require_fit(data, dtype, shape)
        super().__setstate__((1, shape, dtype.plain, bool(fortran), bytes(data)))


def _require_fit(data: object, dtype: object, shape: object) -> None:
    if not (
        isinstance(dtype, _Dtype)
        and isinstance(data, bytes | bytearray)
        and isinstance(shape, tuple)
        and len(shape) <= _MAX_DIMENSIONS
        and all(type(size) is int and size >= 0 for size in shape)
        and math.prod(shape) * dtype.plain.itemsize == len(data)
    ):
        raise DataError("holds an array whose shape, type and bytes do not belong together.")


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    if kind is not _NDARRAY:
        raise DataError("makes an array that is not one of numpy's own.")
    return _Array((0,), np.uint8)


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> npt.NDArray[Any]:
    array = _Array((0,), np.uint8)
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    return _from_buffer(data, dtype, (1,), "C")[0]


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, with which protocol 2 writes bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stand in for `bytes`, with which protocol 2 writes those of an empty array."""
    return b""


_NDARRAY = object()
_KEYS = (str, bytes, int, float, type(None), np.generic)
_ADMITTED: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
}


def _require(value: object, *kinds: type) -> None:
    if not isinstance(value, kinds):
        raise DataError(
            f"does to a {type(value).__name__} what plain values do to a "
            f"{' or '.join(kind.__name__.strip('_').lower() for kind in kinds)}."
        )


def _paid(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return an instruction that refers to an earlier value and pays for what it repeats."""

    def get(machine: "_DataUnpickler") -> None:
        load(machine)
        machine._pay()

    return get


class _Table(dict[int, Callable[[Any], None]]):
    """What each instruction does; the others are refused by name."""

    def __missing__(self, code: int) -> Callable[[Any], None]:
        names = [known.name for known in pickletools.opcodes if known.code == chr(code)]
        if not names:
            raise pickle.UnpicklingError(f"no such instruction: {code}")
        raise DataError(
            f"uses {names[0]}, which plain values and arrays do not need. Nothing of it was "
            "done. If you did not make the file, do not trust it."
        )


class _DataUnpickler(pickle._Unpickler):
    """The machine; its memory is bounded by the size of the file, in bytes."""

    stack: list[Any]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file)
        self._left = _SHARED * size
        self._whole: set[int] = set()

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core", 1)  # how numpy 2 says it
        if (module, name) not in _ADMITTED:
            raise DataError(
                f"names {module:.60}.{name:.60}, which is neither a numpy array nor a builtin "
                "value and might run code. Nothing of it was called. Write the file again as plain "
                "lists, dictionaries and arrays; if you did not make it, do not trust it."
            )
        return _ADMITTED[module, name]

    def _read_bytearray(self) -> None:
        (size,) = np.frombuffer(self.read(8), "<u8").tolist()
        self.stack.append(bytearray(self.read(size)))  # no more than the file has

    def _build(self) -> None:
        state = self.stack.pop()
        _require(self.stack[-1], _Dtype, _Array)
        self.stack[-1].__setstate__(state)
        self._pay_for_bytes()

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(function(*arguments))
        self._pay_for_bytes()

    def _pay_for_bytes(self) -> None:
        """Count the content of what was just made: it may be made again and again of one text."""
        made = self.stack[-1]
        self._take(len(made) if isinstance(made, bytes) else int(getattr(made, "nbytes", 0)))

    def _append(self) -> None:
        self._extend_with([self.stack.pop()])

    def _extend(self) -> None:
        self._extend_with(self.pop_mark())

    def _extend_with(self, values: list[Any]) -> None:
        self._require_open(list)
        self.stack[-1].extend(values)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _set_items(self) -> None:
        self._update(self.pop_mark())

    def _make_dict(self) -> None:
        values = self.pop_mark()
        self.stack.append({})
        self._update(values)

    def _update(self, values: Sequence[Any]) -> None:
        self._require_open(dict)
        for key in values[::2]:
            _require(key, *_KEYS)  # hashing a deep tuple would exhaust the stack of the process
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def _require_open(self, kind: type) -> None:
        """Refuse to add to what was referred to before: it would hold itself."""
        _require(self.stack[-1], kind)
        if id(self.stack[-1]) in self._whole:
            raise DataError(f"holds a {kind.__name__} that holds itself.")

    def _pay(self) -> None:
        """Count what a repeated reference stands for: ten of ten of ten ... are not written out."""
        if isinstance(self.stack[-1], list | dict):
            self._whole.add(id(self.stack[-1]))
        waiting = [self.stack[-1]]
        while waiting:
            value = waiting.pop()
            self._take(1)
            if isinstance(value, list | tuple):
                waiting.extend(value)
            elif isinstance(value, dict):
                waiting.extend(value.values())

    def _take(self, number: int) -> None:
        self._left -= number
        if self._left < 0:
            raise DataError("refers to its own values so often that they would fill memory.")

    dispatch = _Table(
        {code[0]: pickle._Unpickler.dispatch[code[0]] for code in _PLAIN}
        | {
            code[0]: _paid(pickle._Unpickler.dispatch[code[0]])
            for code in (pickle.GET, pickle.BINGET, pickle.LONG_BINGET)
        }
        | {
            pickle.BYTEARRAY8[0]: _read_bytearray,
            pickle.REDUCE[0]: _reduce,
            pickle.BUILD[0]: _build,
            pickle.APPEND[0]: _append,
            pickle.APPENDS[0]: _extend,
            pickle.SETITEM[0]: _set_item,
            pickle.SETITEMS[0]: _set_items,
            pickle.DICT[0]: _make_dict,
        }
    )


def read_pickle(path: Path) -> Any:
    """Return the content of a pickle file of plain values and numpy arrays.

    Raises:
        DataError: the file is missing, cut short, no pickle, or does anything else.
    """
    try:
        with path.open("rb") as file:
            return _DataUnpickler(file, path.stat().st_size).load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}.") from error
    except _DAMAGED as error:
        raise DataError(
            f"{path}: not a complete pickle ({type(error).__name__}: {error!s:.200}); "
            f"{path.stat().st_size} bytes. Copy or download the file again."
        ) from error

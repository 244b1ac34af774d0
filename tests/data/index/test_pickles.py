"""Pickles that try to do more than hold data: each is refused, none acts, none takes memory."""

import io
import pickle
import resource
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevcask.data.index.pickles import read_pickle
from bevcask.errors import DataError

P = pickle
_F8 = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8I00\nI01\ntR"
_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"


def text(value: str) -> bytes:
    return P.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def dtype(name: str) -> bytes:
    return b"cnumpy\ndtype\n(" + text(name) + b"I00\nI01\ntR"


def array(of: bytes, shape: bytes, data: bytes) -> bytes:
    """An array by the words of protocol 3: version, shape, dtype, order, content."""
    return _ARRAY + b"(K\x01" + shape + of + P.NEWFALSE + data + b"tb"


def binary(data: bytes) -> bytes:
    return P.BINBYTES + struct.pack("<I", len(data)) + data


def tower() -> bytes:
    """Ten of ten of ten ...: a hundred bytes that stand for 10^9 numbers."""
    levels = b"]q\x00(" + b"K\x01" * 10 + b"e"
    for level in range(1, 9):
        levels += b"]q" + bytes([level]) + b"(" + (b"h" + bytes([level - 1])) * 10 + b"e"
    return levels


SETSTATE = b"(K\x03" + text("|") + b"NNN" + b"K\x08K\x08K?tb"  # flags of a dtype of objects
HOSTILE: dict[str, tuple[bytes, str]] = {
    "flags forged into a dtype": (_F8 + SETSTATE, "changes what an array of float64 is"),
    "size forged into a dtype": (
        _F8 + b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\x7fJ\xff\xff\xff\xffK\x00tb",
        "changes what an array",
    ),
    "fields forged into a dtype": (
        _F8 + b"(K\x03" + text("<") + b"N(" + text("a") + b"t}K\x08K\x01K\x00tb",
        "changes what an array",
    ),
    "array of objects": (
        array(dtype("O8"), b"(K\x02t", b"](NNe"),
        "holds an array of O8, expected numbers",
    ),
    "array of records": (dtype("f8,O8"), "holds an array of f8,O8"),
    "dtype by a list": (b"cnumpy\ndtype\n((" + text("a") + b"ltR", "holds an array of"),
    "text a gigabyte long": (dtype("U999999999"), "holds an array of U999999999"),
    "shape larger than the content": (
        array(_F8, b"(J\xff\xff\xff\x7ft", binary(b"12345678")),
        "do not belong together",
    ),
    "negative shape": (array(_F8, b"(J\xff\xff\xff\xfft", binary(b"")), "do not belong together"),
    "content that is a list of objects": (array(_F8, b"(K\x01t", b"]"), "do not belong together"),
    "subclass of an array": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nmemmap\n(K\x00tC\x01btR",
        r"names numpy\.memmap",
    ),
    "array that was never made": (b"cnumpy\nndarray\n(K\x05tR", "not a complete pickle"),
    "object made without its function": (b"cnumpy\ndtype\n)\x81", "uses NEWOBJ"),
    "state of a function": (
        b"cnumpy.core.multiarray\nscalar\n}" + text("__code__") + b"Nsb",
        "sets the state|what plain values do",
    ),
    "persistent id": (text("x") + b"Q", "uses BINPERSID"),
    "extension": (b"\x82\x01", "uses EXT1"),
    "instance": (b"(ios\nsystem\n", "uses INST"),
    "bytearray of a terabyte": (b"\x96" + struct.pack("<Q", 1 << 40) + b"x", "not a complete"),
    "bytes of a terabyte": (b"\x8e" + struct.pack("<Q", 1 << 40) + b"x", "not a complete|x"),
    "place far away in the memo": (b"]r\xff\xff\xff\x7f", "."),
    "ten of ten of ten": (tower(), "would fill memory"),
    "list that holds itself": (b"]q\x00h\x00a", "holds a list that holds itself"),
    "key as deep as the stack": (b"})" + b"\x85" * 1_000_000 + b"Ns", "tuple what plain values"),
    "bytes made again and again of one text": (
        b"(c_codecs\nencode\nq\x00"
        + text("a" * 100_000)
        + b"q\x01"
        + text("latin1")
        + b"q\x02"
        + b"h\x00h\x01h\x02\x86R" * 20_000,
        "would fill memory",
    ),
    "arrays made again and again of one content": (
        b"("
        + b"cnumpy\ndtype\n("
        + text("f8")
        + b"I00\nI01\ntR"
        + b"(K\x03"
        + text(">")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbq\x00"
        + binary(bytes(80_000))
        + b"q\x01"
        + (_ARRAY + b"(K\x01(M\x10\x27th\x00\x89h\x01tb") * 20_000,
        "would fill memory",
    ),
    "text in another encoding": (
        b"c_codecs\nencode\nq\x00" + text("a" * 1000) + b"q\x01" + text("utf-7") + b"\x86R",
        "not a complete pickle",
    ),
    "a letter that is no instruction": (b"\xff", "not a complete pickle"),
}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A process that cannot grow by more than a gigabyte."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused(name: str, tmp_path: Path) -> None:
    body, message = HOSTILE[name]
    path = tmp_path / "infos.pkl"
    path.write_bytes(b"\x80\x04" + body + b".")
    if message == ".":  # harmless here: read, and no larger than the file
        read_pickle(path)
        return
    with pytest.raises(DataError, match=message) as caught:
        read_pickle(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 1000


VALUES: dict[str, Any] = {
    "numbers": np.arange(12.0).reshape(3, 4),
    "columns first": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "big-endian": np.arange(3, dtype=">i4"),
    "truth": np.array([True, False]),
    "names": np.array(["car", "barrier"]),
    "bytes": np.array([b"a", b"bcd"]),
    "nothing": np.empty((0, 7)),
    "scalar": np.float32(1.5),
    "shared": [[0.0, 1.0]] * 3,
    "plain": {"a": (1, 2.5, None, True, "x", b"y", bytearray(b"z"), -(2**70)), 3: [], "b": {}},
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", VALUES)
def test_plain_values_come_back_as_they_were(name: str, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"x": VALUES[name]}, protocol))
    if protocol < 5 and name == "plain":  # those write a bytearray as a call of a builtin
        with pytest.raises(DataError, match=r"names \w+\.bytearray"):
            read_pickle(path)
        return
    found = read_pickle(path)["x"]
    np.testing.assert_equal(found, VALUES[name])
    if isinstance(found, np.ndarray):
        assert found.dtype == VALUES[name].dtype.newbyteorder("=")
        assert found.flags.f_contiguous == VALUES[name].flags.f_contiguous


def test_a_long_list_comes_in_pieces(tmp_path: Path) -> None:
    value = [{"row": [number]} for number in range(2500)]
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(value))
    assert read_pickle(path) == value
    assert pickle.load(io.BytesIO(path.read_bytes())) == value

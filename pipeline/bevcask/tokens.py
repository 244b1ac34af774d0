"""Which frame is which: sample tokens and scene names of a million frames in 20 MB.

Strings are made when they are asked for.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import overload

import numpy as np
import numpy.typing as npt

TOKEN = re.compile("[0-9a-f]{32}")
_PIECE = 1 << 12


class Tokens(Sequence[str]):
    """Sample tokens: 16 bytes each in memory, 32 hex digits for whoever looks.

    Looking for one is a binary search; what is sorted for it is kept.

    Attributes:
        bytes_N16: uint8 (N, 16).
    """

    def __init__(self, bytes_N16: npt.NDArray[np.uint8]) -> None:
        self.bytes_N16 = np.ascontiguousarray(bytes_N16)

    def __len__(self) -> int:
        return len(self.bytes_N16)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> "Tokens": ...
    def __getitem__(self, place: int | slice) -> "str | Tokens":
        if isinstance(place, slice):
            return Tokens(self.bytes_N16[place])
        return bytes(self.bytes_N16[place]).hex()

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _PIECE):
            digits = self.bytes_N16[first : first + _PIECE].tobytes().hex()
            yield from (digits[start : start + 32] for start in range(0, len(digits), 32))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # equal to lists, which have none either

    def __contains__(self, token: object) -> bool:
        return isinstance(token, str) and int(self.positions([token])[0]) >= 0

    def positions(self, tokens: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return where each of some tokens is, int64 (n,); -1 where it is not."""
        if isinstance(tokens, Tokens):
            known_n, wanted = np.ones(len(tokens), bool), tokens._keys
        else:
            known_n = np.array([TOKEN.fullmatch(token) is not None for token in tokens], bool)
            digits = "".join(token for token, known in zip(tokens, known_n, strict=True) if known)
            wanted = np.frombuffer(bytes.fromhex(digits), "S16")
        place = np.searchsorted(self._keys, wanted, sorter=self._order)
        at = self._order[np.minimum(place, len(self) - 1)]
        found_n = np.full(len(tokens), -1, np.int64)
        found_n[known_n] = np.where(self._keys[at] == wanted, at, -1)
        return found_n

    def num_repeated(self) -> int:
        """Return how many tokens have occurred before."""
        sorted_N = self._keys[self._order]
        return int(np.count_nonzero(sorted_N[1:] == sorted_N[:-1]))

    @property
    def _keys(self) -> npt.NDArray[np.bytes_]:
        """The tokens as 16-byte strings, which numpy sorts and compares."""
        keys: npt.NDArray[np.bytes_] = self.bytes_N16.view("S16")[:, 0]
        return keys

    @cached_property
    def _order(self) -> npt.NDArray[np.int64]:
        return np.argsort(self._keys)


class Scenes(Sequence[str]):
    """The scene of every frame: a number in memory, a name for whoever looks.

    Attributes:
        codes_N: int32 (N,), index into `names`.
        names: every scene once, in the order of the frames.
    """

    def __init__(self, codes_N: npt.NDArray[np.int32], names: Sequence[str]) -> None:
        self.codes_N = codes_N
        self.names = list(names)

    @classmethod
    def of(cls, scenes: Sequence[str]) -> "Scenes":
        """Number the scenes of some frames by first appearance."""
        number = {name: code for code, name in enumerate(dict.fromkeys(scenes))}
        return cls(np.array([number[scene] for scene in scenes], np.int32), list(number))

    def __len__(self) -> int:
        return len(self.codes_N)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self.names[code] for code in self.codes_N[place].tolist()]
        return self.names[int(self.codes_N[place])]

    def __iter__(self) -> Iterator[str]:
        return (self.names[code] for code in self.codes_N.tolist())

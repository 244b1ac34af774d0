"""The frames of a selection. A million are 20 MB: strings are made when they are asked for."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from bevcask.errors import DataError

_TOKEN = re.compile("[0-9a-f]{32}")
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

    def __contains__(self, token: object) -> bool:
        return isinstance(token, str) and int(self.positions([token])[0]) >= 0

    def positions(self, tokens: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return where each of some tokens is, int64 (n,); -1 where it is not."""
        known_n = np.array([_TOKEN.fullmatch(token) is not None for token in tokens], bool)
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


class FrameTable:
    """The frames of a selection, one entry a frame, sorted by scene then time.

    Args:
        tokens: sample token, 32 hex digits.
        scenes: name of the scene.
        timestamps: (N,) float64, seconds.
        lidar_to_global: (N, 4, 4) float64, keyframe LIDAR_TOP frame -> global frame.

    Raises:
        DataError: what a cache cannot address or resume; all problems in one message.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        scenes: Sequence[str],
        timestamps: npt.NDArray[np.float64],
        lidar_to_global: npt.NDArray[np.float64],
    ) -> None:
        problems = _problems(tokens, len(scenes), timestamps, lidar_to_global)
        self.scenes = Scenes.of(scenes)
        if (np.diff(self.scenes.codes_N) < 0).any():
            problems.append("frames of a scene do not follow each other")
        bad = [token for token in tokens if not _TOKEN.fullmatch(token)]
        if bad:
            problems.append(f"{len(bad)} tokens are not 32 hex digits, first {bad[0]!r}")
        else:
            digits = np.frombuffer(bytes.fromhex("".join(tokens)), np.uint8)
            self.tokens = Tokens(digits.reshape(-1, 16))
            if repeated := self.tokens.num_repeated():
                problems.append(f"{repeated} tokens occur twice")
        if problems:
            raise DataError(f"selection cannot be cached: {'; '.join(problems)}.")
        self._columns: Mapping[str, npt.NDArray[Any]] = {
            "timestamp": timestamps,
            "lidar_to_global": lidar_to_global,
        }

    @classmethod
    def stored(
        cls, tokens: Tokens, scenes: Scenes, columns: Mapping[str, npt.NDArray[Any]]
    ) -> "FrameTable":
        """Return a table that was checked when it was made.

        Args:
            tokens: as above.
            scenes: as above.
            columns: `timestamp` and `lidar_to_global`, looked up when they are asked for.
        """
        table = cls.__new__(cls)
        table.tokens, table.scenes, table._columns = tokens, scenes, columns
        return table

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def timestamps(self) -> npt.NDArray[np.float64]:
        """(N,) float64, seconds."""
        return self._columns["timestamp"]

    @property
    def lidar_to_global(self) -> npt.NDArray[np.float64]:
        """(N, 4, 4) float64, keyframe LIDAR_TOP frame -> global frame."""
        return self._columns["lidar_to_global"]


def _problems(
    tokens: Sequence[str],
    num_scenes: int,
    timestamps: npt.NDArray[np.float64],
    lidar_to_global: npt.NDArray[np.float64],
) -> list[str]:
    """Return what is wrong with the lengths of a table's columns."""
    num, problems = len(tokens), []
    if num == 0:
        problems.append("no frames")
    if num_scenes != num or timestamps.shape != (num,):
        problems.append(f"{num} tokens, {num_scenes} scenes, timestamps {timestamps.shape}")
    if lidar_to_global.shape != (num, 4, 4):
        problems.append(f"lidar_to_global: expected {(num, 4, 4)}, got {lidar_to_global.shape}")
    return problems

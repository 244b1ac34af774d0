"""The frames of a selection, as a cache holds them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.errors import DataError
from bevcask.tokens import TOKEN, Scenes, Tokens


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
        bad = [token for token in tokens if not TOKEN.fullmatch(token)]
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

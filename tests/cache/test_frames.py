"""Tables of frames: what cannot be cached is refused."""

import numpy as np
import pytest

from bevcask.cache.frames import FrameTable
from bevcask.errors import DataError


def test_repeated_tokens_are_counted_where_they_are_not_neighbours() -> None:
    tokens = ["ab" * 16, "00" * 16, "ab" * 16, "cd" * 16, "ab" * 16]
    with pytest.raises(DataError, match="2 tokens occur twice"):
        FrameTable(tokens, ["a"] * 5, np.zeros(5), np.zeros((5, 4, 4)))

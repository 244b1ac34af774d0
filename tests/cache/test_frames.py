"""Frames in arrays: what they say is what lists of strings said."""

import numpy as np
import pytest

from bevcask.cache.frames import FrameTable, Scenes, Tokens
from bevcask.errors import DataError


def random_tokens(num: int) -> Tokens:
    """Tokens whose bytes are few, so that many agree in all but one, zeros at the end included."""
    bytes_N16 = np.random.default_rng(0).choice(
        np.array([0, 1, 127, 128, 255], np.uint8), (num, 16)
    )
    bytes_N16[: num // 2, 2:] = 0
    return Tokens(np.unique(bytes_N16, axis=0)[np.random.default_rng(1).permutation(num // 2)])


def test_tokens_are_a_sequence_of_strings() -> None:
    tokens = random_tokens(20_000)
    strings = [row.tobytes().hex() for row in tokens.bytes_N16]
    assert list(tokens) == strings
    assert [tokens[place] for place in (0, 7, -1)] == [strings[0], strings[7], strings[-1]]
    assert list(tokens[5:9]) == strings[5:9]
    assert len(tokens) == len(strings)
    with pytest.raises(IndexError):
        tokens[len(strings)]


def test_every_token_is_found_and_no_other() -> None:
    tokens = random_tokens(20_000)
    strings = list(tokens)
    strange = ["f" * 31, "F" * 32, " " * 32, "g" * 32, "", "f" * 33, "ab" * 16]
    shuffled = np.random.default_rng(2).permutation(len(strings))
    found = tokens.positions([*(strings[place] for place in shuffled), *strange])
    assert found.tolist() == [*shuffled.tolist(), *[-1] * len(strange)]
    assert tokens.positions([]).shape == (0,)
    assert strings[3] in tokens
    assert not any(token in tokens for token in strange)
    assert 3 not in tokens
    last = max(strings)
    assert tokens.positions([last]).tolist() == [strings.index(last)]


def test_scenes_are_a_sequence_of_strings() -> None:
    names = ["b", "b", "a", "c", "c", "c"]
    scenes = Scenes.of(names)
    assert (scenes.names, scenes.codes_N.tolist()) == (["b", "a", "c"], [0, 0, 1, 2, 2, 2])
    assert list(scenes) == names
    assert (scenes[2], scenes[-1], scenes[1:4]) == ("a", "c", ["b", "a", "c"])


def test_repeated_tokens_are_counted_where_they_are_not_neighbours() -> None:
    tokens = ["ab" * 16, "00" * 16, "ab" * 16, "cd" * 16, "ab" * 16]
    with pytest.raises(DataError, match="2 tokens occur twice"):
        FrameTable(tokens, ["a"] * 5, np.zeros(5), np.zeros((5, 4, 4)))

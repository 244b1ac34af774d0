"""Tokens and scenes in arrays say what lists of strings said."""

import numpy as np
import pytest

from bevcask.tokens import Scenes, Tokens


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


def test_tokens_equal_the_strings_they_stand_for() -> None:
    tokens = random_tokens(200)
    assert tokens == list(tokens)
    assert list(tokens) == tokens
    assert tokens[2:5] == tokens[2:5]
    assert tokens != list(tokens)[:-1]
    assert tokens != "no tokens"


def test_tokens_are_found_in_others_without_becoming_strings() -> None:
    tokens = random_tokens(2_000)
    some = Tokens(tokens.bytes_N16[::-3])
    assert tokens.positions(some).tolist() == tokens.positions(list(some)).tolist()
    assert Tokens(tokens.bytes_N16[10:]).positions(tokens[:10]).tolist() == [-1] * 10

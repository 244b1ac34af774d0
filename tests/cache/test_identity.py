"""Is this the cache the run means?"""

import pytest

from bevcask.cache import check_identity, open_cache
from bevcask.errors import CacheIdentityError
from cache.example import FINGERPRINT


def test_what_is_not_mentioned_is_not_compared(sealed: str) -> None:
    cache = open_cache(sealed)
    check_identity(cache, {})
    check_identity(cache, {"teacher": {"weights": "aa" * 32}})
    check_identity(cache, FINGERPRINT)
    check_identity(cache, {"teacher": {"config": {"channels": (64, 128)}}})


def test_a_leaf_that_differs_is_named_with_both_values(sealed: str) -> None:
    with pytest.raises(CacheIdentityError) as caught:
        check_identity(open_cache(sealed), {"teacher": {"weights": "dd" * 32}})
    message = str(caught.value)
    expected = f"teacher.weights: expected {'dd' * 32} (this run), got {'aa' * 32} (the cache)"
    assert expected in message
    assert sealed in message
    assert "Name the teacher (config and checkpoint) that made the cache" in message


def test_a_leaf_the_cache_lacks_is_a_difference(sealed: str) -> None:
    with pytest.raises(CacheIdentityError, match=r"teacher.seed: expected 1 .* got \(absent\)"):
        check_identity(open_cache(sealed), {"teacher": {"seed": 1}})


def test_another_kind_of_teacher_is_said_without_what_follows_from_it(
    sealed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(sealed)
    own = cache.attributes["fingerprint"]["teacher"]
    monkeypatch.setitem(own, "type", "native/centerpoint")
    theirs = {"type": "native/pillarnext", "weights": "dd" * 32, "config": {"blocks": [1, 1]}}
    with pytest.raises(CacheIdentityError) as caught:
        check_identity(cache, {"teacher": theirs, "classes": ["car"]})
    message = str(caught.value)
    first, second, *more = message.split("means. ")[1].split("; ")
    assert first == (
        "teacher.type: expected native/pillarnext (this run), got native/centerpoint (the cache)"
    )
    assert second.startswith("classes")
    assert not more
    assert "Name the teacher" in message


def test_many_differences_are_counted(sealed: str) -> None:
    tokens = {"selection": {"tokens": ["0" * 32] * 6}}
    with pytest.raises(CacheIdentityError, match="and 2 more differences") as caught:
        check_identity(open_cache(sealed), tokens)
    assert "selection.tokens.0: expected" in str(caught.value)
    assert "The frames of a cache are fixed" in str(caught.value)

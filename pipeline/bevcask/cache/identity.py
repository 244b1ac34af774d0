"""Is this the cache the run means? Differences are named leaf by leaf, with what to do."""

from collections.abc import Mapping
from typing import Any

from bevcask.cache.reader import Cache
from bevcask.errors import CacheIdentityError
from bevcask.fingerprint import ABSENT, canonical, differences

_NUM_SHOWN = 4
_CAUSES_FIRST = ("teacher", "selection", "dataset", "classes", "preprocessing", "targets")
_WIDTH = 64
_ADVICE = {
    "selection": "The frames of a cache are fixed when it is created: extract this selection to "
    "another URL, or ask for the cache's own (dataset.split, dataset.scenes, dataset.limit).",
    "teacher": "Name the teacher (config and checkpoint) that made the cache, or extract with this "
    "one to another URL.",
    "dataset": "The dataset on disk is not the one the teacher saw: restore it, or extract to "
    "another URL.",
    "targets": "Ask for the targets, codec and region the cache holds, or extract to another URL.",
    "shard_rows": "Use the cache's store.shard_rows, or extract to another URL.",
}


def check_identity(cache: Cache, expected: Mapping[str, Any]) -> None:
    """Check that a cache is what a run expects, as far as the run says.

    Args:
        cache: an open cache.
        expected: part of an identity tree, e.g. `{"teacher": {"weights": DIGEST}}`; what it does
            not mention is not compared.

    Raises:
        CacheIdentityError: leaves differ; each is named with both values.
    """
    _raise_on(cache, [leaf for leaf in _compare(cache, expected) if leaf[1] != ABSENT])


def require_identity(cache: Cache, expected: Mapping[str, Any]) -> None:
    """Check that a cache has exactly this identity tree; see `check_identity`."""
    _raise_on(cache, _compare(cache, expected))


def _compare(cache: Cache, expected: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    leaves = differences(canonical(dict(expected)), cache.identity)
    return sorted(leaves, key=lambda leaf: _rank(leaf[0].partition(".")[0]))


def _rank(section: str) -> int:
    return _CAUSES_FIRST.index(section) if section in _CAUSES_FIRST else len(_CAUSES_FIRST)


def _raise_on(cache: Cache, leaves: list[tuple[str, Any, Any]]) -> None:
    if not leaves:
        return
    shown = [
        f"{leaf}: expected {_short(expected)} (this run), got {_short(got)} (the cache)"
        for leaf, expected, got in leaves[:_NUM_SHOWN]
    ]
    if len(leaves) > _NUM_SHOWN:
        shown.append(f"and {len(leaves) - _NUM_SHOWN} leaves more")
    section = leaves[0][0].partition(".")[0]
    advice = _ADVICE.get(section, "Restore what changed, or extract to another URL.")
    raise CacheIdentityError(
        f"cache {cache.url} is not the one this run means. {'; '.join(shown)}. {advice}"
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}..."

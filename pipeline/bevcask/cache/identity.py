"""Is this the cache the run means? Differences are named leaf by leaf, with what to do."""

from collections.abc import Collection, Mapping
from typing import Any

from bevcask.cache.layout import Layout
from bevcask.cache.reader import Cache
from bevcask.errors import CacheIdentityError
from bevcask.fingerprint import ABSENT, canonical, differences
from bevcask.targets.spec import TargetSpec

_NUM_SHOWN = 4
_CAUSES_FIRST = (
    "teacher", "memory", "selection", "dataset", "classes", "preprocessing", "targets",
)  # fmt: skip
_WHO = "teacher.type"
_WIDTH = 64
_ADVICE = {
    "selection": "The frames of a cache are fixed when it is created: extract this selection to "
    "another URL, or ask for the cache's own (dataset.split, dataset.scenes, dataset.limit).",
    "teacher": "Name the teacher (config and checkpoint) that made the cache, or extract with this "
    "one to another URL.",
    "memory": "Show the teacher scenes or windows as the cache did (teacher.memory, "
    "teacher.history, teacher.parts), or extract to another URL.",
    "dataset": "The dataset on disk is not the one the teacher saw: restore it, or extract to "
    "another URL.",
    "preprocessing": "Read images as the teacher's were (dataset.resampling), or extract to "
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


def require_shared_identity(
    cache: Cache, layout: Layout, fingerprint: Mapping[str, Any]
) -> list[TargetSpec]:
    """Check that a run agrees with a sealed cache in everything both speak of.

    New targets may rest on more than the old ones did: leaves below `dataset` (its annotations) and
    whole sections (replayed views) that the cache does not have are no difference then.

    Args:
        cache: a sealed cache.
        layout: rows and targets of the run.
        fingerprint: identity tree of the run.

    Returns:
        The run's targets that the cache does not have.

    Raises:
        CacheIdentityError: leaves differ; each is named with both values.
    """
    new = [spec for name, spec in layout.specs.items() if name not in cache.specs]
    mine, theirs = layout.identity(fingerprint), cache.identity
    for tree in (mine, theirs):
        tree["targets"] = {
            name: spec
            for name, spec in tree["targets"].items()
            if name in layout.specs and name in cache.specs
        }
    leaves = [
        (leaf, expected, got)
        for leaf, expected, got in _sorted(differences(mine, theirs))
        if not (new and got == ABSENT and (leaf.startswith("dataset.") or "." not in leaf))
    ]
    _raise_on(cache, leaves)
    return new


def require_same_source(cache: Cache, identity: Mapping[str, Any], names: Collection[str]) -> None:
    """Check that some targets of a cache come from the same source, whatever its frames are.

    Selection and dataset are left to the caller.

    Args:
        cache: an open cache.
        identity: whole identity tree of another.
        names: the targets that must be there and be stored alike.

    Raises:
        CacheIdentityError: leaves differ; each is named with both values.
    """
    mine, theirs = (
        {leaf: value for leaf, value in tree.items() if leaf not in ("selection", "dataset")}
        for tree in (identity, cache.identity)
    )
    for tree in (mine, theirs):
        tree["targets"] = {name: spec for name, spec in tree["targets"].items() if name in names}
    _raise_on(cache, _sorted(differences(mine, theirs)))


def _compare(cache: Cache, expected: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return _sorted(differences(canonical(dict(expected)), cache.identity))


def _sorted(leaves: list[tuple[str, Any, Any]]) -> list[tuple[str, Any, Any]]:
    """Sort causes before consequences, and leave out what only says that a teacher is another."""
    if any(leaf == _WHO for leaf, _, _ in leaves):
        leaves = [own for own in leaves if own[0] == _WHO or not own[0].startswith("teacher.")]
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
        shown.append(f"and {len(leaves) - _NUM_SHOWN} more differences")
    section = leaves[0][0].partition(".")[0]
    advice = _ADVICE.get(section, "Restore what changed, or extract to another URL.")
    raise CacheIdentityError(
        f"cache {cache.url} is not the one this run means. {'; '.join(shown)}. {advice}"
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}..."

"""What in a configuration runs code that is not bevcask's, and so needs the user's word.

A section can come from a YAML, a catalog or the note in a checkpoint: files that somebody else may
have written. Two things in it reach code: a plug-in named as `module:Class`, and an mmdet3d config,
which is a program, or names any callable as a `type`. The word is `trust_code=true`, taken from the
command line alone.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from bevcask.errors import ConfigError

OUTSIDE = ":"
"""Stands between module and class in the name of a plug-in that is not in our tables."""
_CONFIG_FILES = frozenset({".py", ".json", ".yaml", ".yml", ".pkl"})
_NUMBERS = (int, float, type(None))


def is_config_file(name: str) -> bool:
    """Tell whether an mmdet3d config is a file, not the name of one that mmdet3d ships."""
    return PurePath(name).suffix in _CONFIG_FILES or "/" in name


def require_consent(sections: Mapping[str, Mapping[str, Any]], trusted: bool) -> None:
    """Refuse sections that run foreign code, unless the user trusts them.

    Args:
        sections: dotted key -> plug-in section (`{type: NAME, ...}`).
        trusted: whether `trust_code=true` was said.

    Raises:
        ConfigError: what runs code, by key.
    """
    found = [
        f"{where}.{key}={value}"
        for where, section in sections.items()
        for key, value in _code_in(section)
    ]
    if found and not trusted:
        raise ConfigError(
            f"{', '.join(found)}: this runs code that is not bevcask's, and it can do whatever you "
            "can. If you trust whoever wrote it, say trust_code=true on the command line. Without "
            "that word a plug-in is one of bevcask's own names, an mmdet3d config the name of one "
            "that mmdet3d ships, and its `options` change numbers and lists of numbers alone."
        )


def refuse_consent_of_files(tree: Mapping[str, Any], file: str) -> None:
    """Refuse a YAML that gives consent in the user's name.

    Raises:
        ConfigError: a key `trust_...` at any depth.
    """
    for key, value in tree.items():
        if key.startswith("trust_"):
            raise ConfigError(
                f"{file}: {key} is the user's word, and a file cannot give it. Say it on the "
                "command line."
            )
        if isinstance(value, Mapping):
            refuse_consent_of_files(value, file)


def _code_in(section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a section that reach code."""
    if OUTSIDE in str(section.get("type", "")):
        yield "type", section["type"]
    if section.get("type") != "mmdet3d":
        return
    if is_config_file(str(section.get("config", ""))):
        yield "config", section["config"]
    yield from _more_than_numbers(section.get("options") or {}, "options")


def _more_than_numbers(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yield what is neither a number nor a container of them, and mmengine's own keys."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            parts = str(key).split(".")
            if any(part.startswith("_") or part == "type" for part in parts):
                yield f"{where}.{key}", inner
            else:
                yield from _more_than_numbers(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _more_than_numbers(inner, f"{where}.{number}")
    elif not isinstance(value, _NUMBERS):
        yield where, value

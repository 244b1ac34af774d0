"""From the words of a command line to the validated configuration of a verb.

`compose(PlanConfig, ["dataset=mini", "seed=3"])` picks one YAML a group, merges the other
`key=value` words over it (OmegaConf dotlist) and validates the whole. A YAML may speak to several
verbs: what this one does not read is left out. A word may not: it was said to this verb.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from bevcask.commands import VERBS
from bevcask.config import Config, ConfigT, PathText, validate
from bevcask.consent import refuse_consent_of_files, require_consent
from bevcask.errors import ConfigError
from bevcask.groups import EXPERIMENT, GROUPS, assign, group_members, load_group, sort_words
from bevcask.wording import shown

_METHODS = "methods"
_TEACHERS = "teachers"
_LABEL = re.compile(r"[a-z][a-z0-9_]*")


def compose(
    model: type[ConfigT], words: Sequence[str], groups: Mapping[str, str] | None = None
) -> ConfigT:
    """Turn `key=value` words into the validated configuration of a verb.

    Args:
        model: the verb's.
        words: `group=name` picks a YAML (a path ending in .yaml works too).
        groups: picks used where the words and the experiment name none.

    Raises:
        ConfigError: a word without `=`, an unknown key or group member, a key of another verb, a
            value out of range; all problems in one message.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    words, repeated = _repeated(model, words)
    words, several = _several(words)
    words, teachers = _teachers(words)
    several |= teachers
    picks, values, literals = sort_words(words, lambda key: takes_text(model, key))
    _refuse_unread(
        model, [*picks, *several, *literals, *(word.partition("=")[0] for word in values)]
    )
    overlay: dict[str, Any] = {}
    if EXPERIMENT in picks:
        overlay = _load(EXPERIMENT, picks.pop(EXPERIMENT))
        picks = {**overlay.pop("groups", {}), **picks}
    chosen = {**(groups or {}), **picks}
    if "method" in several:
        chosen.pop("method", None)
        overlay.pop("method", None)
    shared = {group: _load(group, name) for group, name in chosen.items()} | several
    merged = OmegaConf.merge(_read_part(model, shared), _read_part(model, overlay))
    for word in values:
        merged = _with_word(merged, word)
    try:
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}.") from error
    assert isinstance(plain, dict)
    named = {str(key): value for key, value in plain.items()}
    for key, value in literals.items():
        assign(named, key, value)
    named |= repeated
    config = validate(model, named, where="")
    require_consent(_plugin_sections(config), getattr(config, "trust_code", False))
    return config


def refuse_repeated(model: type[Config], words: Sequence[str]) -> None:
    """Refuse keys that are given different values: nobody knows which of them was meant.

    Raises:
        ConfigError: each such key with all that is said of it.
    """
    said: dict[str, list[str]] = {}
    for word in dict.fromkeys(_repeated(model, words)[0]):
        said.setdefault(word.partition("=")[0], []).append(word)
    lines = [
        f"{key}: said more than once, {' and '.join(own)}. Say it once."
        for key, own in said.items()
        if len(own) > 1
    ]
    if lines:
        raise ConfigError("\n".join(lines))


def _with_word(tree: Any, word: str) -> Any:
    """Return a tree of OmegaConf's with `key=value` laid over it, the value read as YAML."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    key, _, value = word.partition("=")
    if value.strip() == "???":  # OmegaConf would keep what is there
        raise ConfigError(f"{key}: expected a value, got ???.")
    try:
        return OmegaConf.merge(tree, OmegaConf.from_dotlist([word]))
    except (OmegaConfBaseException, YAMLError, UnicodeError) as error:
        why = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(
            f"{key}: {shown(value)} is not readable as YAML: {why}. Text with signs of YAML in it "
            f"stands in quotes of its own: \"{key}='TEXT'\"."
        ) from error
    except TypeError as error:  # OmegaConf's own, of containers
        raise ConfigError(
            f"{key}: a list cannot stand where keys are expected, nor {key}= change one entry of a "
            f"list, got {shown(value)}. A list is said whole: KEY=[a,b]."
        ) from error


def _repeated(model: type[Config], words: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Part the words of keys that hold texts and are said once for each: `run=A run=B`."""
    fields = model.model_fields.items()
    keys = {name for name, field in fields if field.annotation == tuple[PathText, ...]}
    pairs = [(word.partition("=")[0], word.partition("=")[2]) for word in words]
    found = {key: [value for own, value in pairs if own == key] for key in keys}
    rest = [word for word, (key, _) in zip(words, pairs, strict=True) if key not in keys]
    return rest, {key: values for key, values in found.items() if values}


def _several(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Turn `methods=a,b` into the tree of a method that holds both; `method.a.` is then of a.

    Raises:
        ConfigError: beside `method=`, or a name is given twice.
    """
    asked = [word.partition("=")[2] for word in words if word.startswith(f"{_METHODS}=")]
    if not asked:
        return list(words), {}
    names = asked[-1].split(",")
    rest = [word for word in words if not word.startswith(f"{_METHODS}=")]
    if any(word.startswith("method=") for word in rest) or len(set(names)) < len(names):
        raise ConfigError(
            f"{_METHODS}={asked[-1]}: expected different methods, separated by commas, and no "
            "method= beside it."
        )
    moved = []
    for word in rest:
        key = word.removeprefix("method.")
        mine = key != word and key.partition(".")[0] in names
        moved.append(f"method.of.{key}" if mine else word)
    of = {name: _load("method", name) for name in names}
    return moved, {"method": {"type": "several", "of": of}}


def _teachers(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Turn `teachers=a=NAME,b=NAME` into the sections of both, by label.

    Raises:
        ConfigError: beside `teacher=`, or not of that form.
    """
    asked = [word.partition("=")[2] for word in words if word.startswith(f"{_TEACHERS}=")]
    if not asked:
        return list(words), {}
    rest = [word for word in words if not word.startswith(f"{_TEACHERS}=")]
    pairs = [one.strip().partition("=") for one in asked[-1].split(",")]
    labels = [label for label, _, _ in pairs]
    told = all(_LABEL.fullmatch(label) and name for label, _, name in pairs)
    if not told or len(set(labels)) < len(labels) or any(w.startswith("teacher=") for w in rest):
        raise ConfigError(
            f"{_TEACHERS}={asked[-1]}: expected different labels, each with a teacher "
            "(lidar=NAME,camera=NAME), and no teacher= beside it."
        )
    return rest, {_TEACHERS: {label: _load("teacher", name) for label, _, name in pairs}}


def _load(group: str, name: str) -> dict[str, Any]:
    tree = load_group(group, name)
    refuse_consent_of_files(tree, f"{group}={name}")
    return tree


def _plugin_sections(config: Config) -> dict[str, Mapping[str, Any]]:
    """Return the sections of a configuration that name plug-ins, by dotted key."""
    sections: dict[str, Mapping[str, Any]] = {}
    for name in ("teacher", "student", "method"):
        section = getattr(config, name, None)
        if isinstance(section, Config):
            sections[name] = {"type": getattr(section, "type", "")}
            sections[f"{name}.detector"] = getattr(section, "detector", {})
        elif section is not None:
            sections[name] = section
            parts = section.get("of", {})
            sections |= {f"{name}.of.{part}": own for part, own in parts.items()}
    for label, own in getattr(config, _TEACHERS, {}).items():
        sections |= {
            f"{_TEACHERS}.{label}": {"type": own.type},
            f"{_TEACHERS}.{label}.detector": own.detector,
        }
    return sections


def words_for(model: type[Config], words: Iterable[str]) -> list[str]:
    """Return those of several verbs' words that one verb reads; a URL in front stays."""
    return [word for word in words if "=" not in word or reads(model, word.partition("=")[0])]


@functools.cache
def reads(model: type[Config], key: str) -> bool:
    """Tell whether a verb reads a dotted key, or anything of a group.

    Remembered: every word is asked about for every verb, and a group means reading a shipped file.
    """
    if key == EXPERIMENT:
        return any(reads(model, group) for group in GROUPS if group != EXPERIMENT)
    if key in GROUPS and (members := group_members(key)):
        return bool(_read_part(model, {key: load_group(key, members[0])}).get(key))
    return _field_type(model, key) is not None


def takes_text(model: type[Config], key: str) -> bool:
    """Tell whether the value of a key is text, and so taken literally, never as YAML."""
    if key.startswith(("teacher.detector.", "student.detector.")):
        return key.endswith(".detector.config")  # a path; the section is a plug-in's own
    kinds = _alternatives(_field_type(model, key))
    return str in kinds and all(kind in (str, type(None)) for kind in kinds)


def _field_type(model: type[Config], key: str) -> Any:
    """Return the annotation of a dotted key; None where the model has no such key."""
    name, _, rest = key.partition(".")
    if name not in model.model_fields:
        return None
    annotation = model.model_fields[name].annotation
    if not rest:
        return annotation
    for kind in _alternatives(annotation):
        if isinstance(kind, type) and issubclass(kind, Config):
            return _field_type(kind, rest)
        if get_origin(kind) is dict:
            return Any
    return None


def _alternatives(annotation: Any) -> list[Any]:
    """Return what a union may hold, `Annotated` taken off."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    return [annotation]


def section_of(annotation: Any) -> type[Config] | None:
    """Return the model of a section; None for a plain value or a plug-in's mapping."""
    models = [a for a in _alternatives(annotation) if isinstance(a, type) and issubclass(a, Config)]
    return models[0] if models else None


def _refuse_unread(model: type[Config], keys: Iterable[str]) -> None:
    """Raise for keys that another verb reads and this one does not."""
    mine = next((name for name, verb in VERBS.items() if verb.config is model), "this verb")
    lines = []
    for key in keys:
        known = (
            key if any(reads(verb.config, key) for verb in VERBS.values()) else key.split(".")[0]
        )
        others = [name for name, verb in VERBS.items() if reads(verb.config, known)]
        if others and mine not in others:
            lines.append(f"{key}: {mine} does not read this key; it is for {', '.join(others)}.")
    if lines:
        raise ConfigError("\n".join(lines))


def _read_part(model: type[Config], tree: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return a tree without what only other verbs read; what none reads stays, and is refused."""
    part = {}
    for name, value in tree.items():
        key = f"{where}{name}"
        kind = _field_type(model, key)
        if kind is not None:
            below = isinstance(value, dict) and section_of(kind) is not None
            part[name] = _read_part(model, value, f"{key}.") if below else value
        elif all(_field_type(verb.config, key) is None for verb in VERBS.values()):
            part[name] = value
    return part

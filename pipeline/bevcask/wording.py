"""What pydantic finds wrong with a configuration, in plain words: key, expectation, value."""

from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from bevcask.registry import suggest

_SHOWN = 100
_NOUNS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def in_words(
    error: ValidationError, model: type[BaseModel], values: Mapping[str, Any], where: str
) -> str:
    """Return what is wrong with each key, a line a key.

    Args:
        error: raised by the model for these values.
        model: the model.
        values: what it was given.
        where: dotted key of the section, in front of every key; may be empty.
    """
    lines = [_explain(problem, model, values, where) for problem in error.errors()]
    return "\n".join(dict.fromkeys(lines))  # the branches of a union say the same


class _Place(NamedTuple):
    """Where a problem is: dotted path, annotation, value, and the model and field around it."""

    path: list[str]
    kind: Any
    value: Any
    owner: type[BaseModel]
    field: FieldInfo | None


def _explain(problem: Any, model: type[BaseModel], values: Any, where: str) -> str:
    own = problem.get("ctx", {}).get("key")  # of a rule that speaks of one key
    place = _find((*problem["loc"], own) if own else problem["loc"], model, values)
    parts = [where, *place.path] if where else place.path
    key = ".".join(parts)
    front = f"{key}: " if key else ""
    if problem["type"] == "missing" and place.value is None and place.path:
        described = place.field.description if place.field else None
        said = described or f"expected {expectation(place.kind)}"
        return f"{front}needed, and not given: {said.rstrip('.')}."
    if problem["type"] == "extra_forbidden":
        known = list(place.owner.model_fields)
        near = suggest(place.path[-1], known)
        return f"{key}: unknown key.{near} Known: {', '.join(known)}."
    if problem["type"] == "value_error":
        said = problem["msg"].removeprefix("Value error, ").rstrip(".")
        whole = isinstance(problem["input"], Mapping)  # a rule between keys names those it means
        return f"{front}{said}." if whole else f"{front}{said}, got {shown(problem['input'])}."
    expected = expectation(place.kind)
    if problem["type"] == "finite_number" and int not in _alternatives(place.kind):
        expected += ", and finite"
    if problem["type"] == "string_pattern_mismatch" and place.field and place.field.description:
        expected += f" ({place.field.description})"
    return f"{front}expected {expected}, got {shown(place.value)}.{_below(key, place.kind)}"


def _find(location: tuple[int | str, ...], model: type[BaseModel], values: Any) -> _Place:
    """Walk to a problem; lists of plain values, and the branches of a union, are one place."""
    place = _Place([], model, values, model, None)
    for part in location:
        kinds = _alternatives(place.kind)
        section = _section(kinds)
        table = next((kind for kind in kinds if get_origin(kind) is dict), None)
        listed = next((kind for kind in kinds if get_origin(kind) is tuple), None)
        field, owner = place.field, place.owner
        if section and isinstance(part, str):
            owner, field = section, section.model_fields.get(part)
            kind: Any = Annotated[field.annotation, *field.metadata, None] if field else Any
        elif table:
            kind = get_args(table)[1]
        elif listed and isinstance(part, int) and _section(_alternatives(get_args(listed)[0])):
            kind = get_args(listed)[0]
        else:
            break
        place = _Place([*place.path, str(part)], kind, _value(place.value, part), owner, field)
    return place


def _value(values: Any, part: int | str) -> Any:
    try:
        return values[part]
    except (KeyError, IndexError, TypeError):
        return None


def shown(value: object) -> str:
    """Return a value as a message quotes it: short, and `nothing` for null."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def expectation(kind: Any, rules: tuple[Any, ...] = ()) -> str:
    """Return what an annotation takes, in words, e.g. `a whole number, at least 1, or null`."""
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        return expectation(inner, (*rules, *more))
    if get_origin(kind) in (Union, UnionType):
        return ", or ".join(expectation(part, rules) for part in get_args(kind))
    if kind is type(None):
        return "null"
    if get_origin(kind) is tuple:
        return _list(kind) + _bounds(rules)
    if get_origin(kind) is dict or _section([kind]):
        return "keys below it"
    return _one(kind) + _bounds(rules)


def _one(kind: Any) -> str:
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    noun = _NOUNS.get(kind, "a value")
    return f"a {noun}" if kind in (int, float) else noun


def _list(kind: Any) -> str:
    first, *rest = get_args(kind)
    limits = _bounds(get_args(first)[1:] if get_origin(first) is Annotated else ())
    each = limits.replace(",", ", each", 1)
    if rest != [...]:
        nouns = [_NOUNS.get(_alternatives(part)[0], "value") for part in (first, *rest)]
        return f"a list [{', '.join(nouns)}]{each}"
    plain = _alternatives(first)[0]
    if _section([plain]):
        return f"a list of [{{{': ..., '.join(plain.model_fields)}: ...}}]"
    if get_origin(plain) is Literal:
        return f"a list, in brackets, of {', '.join(map(str, get_args(plain)))}"
    example = "[a,b]" if plain is str else "[1,2]"
    return f"a list as in {example}, of {_NOUNS.get(plain, 'value')}s{each}"


def _bounds(rules: tuple[Any, ...]) -> str:
    """Return limits in words, each behind a comma."""
    said = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    flat = [own for rule in rules for own in getattr(rule, "metadata", [rule])]
    found = [
        f"{words} {getattr(rule, limit)}"
        for limit, words in said.items()
        for rule in flat
        if getattr(rule, limit, None) is not None
    ]
    found += [f"{rule.min_length} or more" for rule in flat if getattr(rule, "min_length", None)]
    found += [f"that matches {rule.pattern}" for rule in flat if getattr(rule, "pattern", None)]
    return "".join(f", {limit}" for limit in found)


def _below(key: str, kind: Any) -> str:
    """Return how the keys of a section are said, where the value should have been one."""
    kinds = _alternatives(kind)
    front = f"{key}." if key else ""
    if section := _section(kinds):
        names = list(section.model_fields)
        return f" Say {front}{names[0]}=VALUE. Known: {', '.join(names)}."
    if any(get_origin(part) is dict for part in kinds):
        return f" Say {front}KEY=VALUE."
    return ""


def _alternatives(kind: Any) -> list[Any]:
    """Return what a union may hold, but null, `Annotated` taken off."""
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [own for part in get_args(kind) for own in _alternatives(part)]
    return [] if kind is type(None) else [kind]


def _section(kinds: list[Any]) -> type[BaseModel] | None:
    models = (kind for kind in kinds if isinstance(kind, type) and get_origin(kind) is None)
    return next((kind for kind in models if issubclass(kind, BaseModel)), None)


def takes_number(kind: Any) -> bool:
    """Tell whether an annotation takes a number, or a list of numbers, and no true or false."""
    kinds = _alternatives(kind)
    kinds += [own for part in kinds if get_origin(part) is tuple for own in get_args(part)]
    return bool not in kinds and (int in kinds or float in kinds)

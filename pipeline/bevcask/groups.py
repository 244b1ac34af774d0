"""The shipped YAML groups, and the words of a command line that pick and change them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from bevcask.errors import ConfigError
from bevcask.registry import suggest

EXPERIMENT = "experiment"
_IN_FULL = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
GROUPS = ("dataset", "teacher", "student", "method", "store", "trainer", EXPERIMENT)

_PLUGINS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "method": lambda name: {"type": name},
    "teacher": lambda name: {"type": name},
    "student": lambda name: {"detector": {"type": name}},
}


def group_members(group: str) -> list[str]:
    """Return the names of a shipped group."""
    folder = resources.files("bevcask.configs") / group
    if not folder.is_dir():
        return []
    return sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml"))


def datasets_of(versions: Iterable[str]) -> str:
    """Return ` dataset=NAME reads VERSION.` for each version that a shipped dataset is of."""
    shipped = {name: load_group("dataset", name) for name in group_members("dataset")}
    names = {own["version"]: name for name, own in shipped.items() if name != "infos"}
    return "".join(
        f" dataset={names[version]} reads split {shipped[names[version]]['split']} of {version}."
        for version in versions
        if version in names
    )


def load_group(group: str, name: str) -> dict[str, Any]:
    """Load one YAML of a group; a mapping with `include: GROUP/NAME` is laid over that file.

    A method, teacher or detector of another package is named in full, `module:Class`, without one.

    Raises:
        ConfigError: no such group member or file, or the file is not a mapping.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if group in _PLUGINS and _IN_FULL.fullmatch(name):
        return _PLUGINS[group](name)
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"{group}={name}: no such file.")
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{group}={name}: cannot be read: {error}") from None
    else:
        members = group_members(group)
        if name not in members:
            full = ", or my_package.module:Class" if group in _PLUGINS else ""
            known = f"Known: {', '.join(members)}; or give" if members else "None is shipped; give"
            raise ConfigError(
                f"{group}={name:.200}: no such {group}.{suggest(name, members)} {known} a path "
                f"ending in .yaml{full}."
            )
        text = (resources.files("bevcask.configs") / group / f"{name}.yaml").read_text()
    try:
        data = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{group}={name}: not readable as YAML: {_said_by(error)}.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{group}={name}: expected a mapping, got {type(data).__name__}.")
    return _expand({str(key): value for key, value in data.items()})


def _said_by(error: Exception) -> str:
    """Return what a YAML reader says in one line, with the line of the file."""
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{place}{getattr(error, 'problem', None) or str(error).splitlines()[0]}"


def _expand(data: dict[str, Any]) -> dict[str, Any]:
    base: dict[str, Any] = {}
    if "include" in data:
        group, _, name = str(data.pop("include")).partition("/")
        if group not in (*GROUPS, "detector"):
            raise ConfigError(f"include: {group}/{name}: expected GROUP/NAME, e.g. detector/NAME.")
        base = load_group(group, name)
    own = {key: _expand(value) if isinstance(value, dict) else value for key, value in data.items()}
    return _laid_over(base, own)


def _laid_over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Merge mappings at every depth; lists and values of `own` replace those of `base`."""
    both = {
        key: _laid_over(base[key], own[key])
        for key in base.keys() & own.keys()
        if isinstance(base[key], dict) and isinstance(own[key], dict)
    }
    return {**base, **own, **both}


def sort_words(
    words: Sequence[str], takes_text: Callable[[str], bool]
) -> tuple[dict[str, str], list[str], dict[str, str]]:
    """Sort words into group picks, dotlist values and values that are text.

    Args:
        words: `key=value` each.
        takes_text: tells whether the value of a key is taken literally.

    Raises:
        ConfigError: a word without `=`.
    """
    picks: dict[str, str] = {}
    values: list[str] = []
    texts: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"expected key=value, got {word!r}. Example: trainer.max_steps=100.")
        if key in GROUPS:
            picks[key] = value
        elif takes_text(key):
            texts[key] = value
        else:
            values.append(word)
    return picks, values, texts


def assign(tree: dict[str, Any], dotted: str, value: str) -> None:
    """Set a leaf of nested mappings by its dotted path."""
    *path, leaf = dotted.split(".")
    for part in path:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[leaf] = value

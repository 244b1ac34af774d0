"""Names for datasets, checkpoints and caches: `catalog:NAME` works wherever a path does.

Two layers: the files shipped in `data_catalog/`, and the user's own `$BEVCASK_HOME/catalog.yaml`
(default `~/.bevcask/catalog.yaml`), to which `teacher-extract name=NAME` adds. A user entry
hides a shipped one of the same name. Opens no weights and no caches.
"""

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import yaml
from filelock import FileLock
from pydantic import Field

from bevcask.config import Config, validate
from bevcask.errors import CheckpointError, ConfigError, UnknownNameError
from bevcask.paths import local_path, write_whole
from bevcask.registry import suggest

PREFIX = "catalog:"


class DatasetEntry(Config):
    """A nuScenes-format dataset."""

    root: str = Field(description="folder; a relative one starts at the working folder")
    version: str = Field(description="name of the folder with the 13 tables")
    licence: str
    description: str

    @property
    def location(self) -> str:
        return self.root


class CheckpointEntry(Config):
    """Weights of a detector."""

    path: str = Field(description="safetensors file; a relative one starts beside the catalog file")
    detector: str = Field(description="name in configs/detector")
    weights: str = Field(description="weights digest (`detectors.weights.identify`), sha256 hex")
    command: str = Field(description="what made it")
    world: str = Field(description="data it was trained on, and whether that is synthetic")
    metrics: dict[str, float] = Field(default_factory=dict, description="e.g. mAP, NDS")
    description: str

    @property
    def location(self) -> str:
        return self.path


class CacheEntry(Config):
    """A sealed cache."""

    url: str = Field(description="store URL; local ones absolute")
    teacher: str = Field(description="teacher type and the start of its weights digest")
    fingerprint: str = Field(description="cache id: digest of its identity")
    rows: int = Field(ge=0, description="cached frames")
    bytes: int = Field(ge=0, description="stored bytes of all targets")
    created: str = Field(description="UTC time, ISO 8601")
    command: str = Field(description="what made it")

    @property
    def location(self) -> str:
        return self.url


class Catalog(Config):
    """All known entries by name."""

    datasets: dict[str, DatasetEntry] = Field(default_factory=dict)
    checkpoints: dict[str, CheckpointEntry] = Field(default_factory=dict)
    caches: dict[str, CacheEntry] = Field(default_factory=dict)


Entry = DatasetEntry | CheckpointEntry | CacheEntry
KINDS = {"dataset": "datasets", "checkpoint": "checkpoints", "cache": "caches"}


class SealedCache(Protocol):
    """What registration reads of a `bevcask.cache` reader."""

    @property
    def id(self) -> str: ...
    @property
    def fingerprint(self) -> Mapping[str, Any]: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...
    @property
    def specs(self) -> Mapping[str, Any]: ...
    @property
    def frames(self) -> Any: ...
    def stored_bytes(self, name: str) -> int: ...


def home() -> Path:
    """Return the folder of everything bevcask keeps for a user: `$BEVCASK_HOME` or `~/.bevcask`.

    Raises:
        ConfigError: neither is known (an arbitrary user id in a container).
    """
    try:
        return Path(os.environ.get("BEVCASK_HOME") or Path.home() / ".bevcask")
    except RuntimeError:
        raise ConfigError(
            f"no home folder is known for user {os.getuid()}, and bevcask keeps frame indexes and "
            "its catalog in one. Set BEVCASK_HOME to a folder with room and write permission."
        ) from None


def user_file() -> Path:
    """Return the user's own catalog file; it may not exist yet."""
    return home() / "catalog.yaml"


def load_catalog() -> Catalog:
    """Read the shipped files and the user's file.

    Raises:
        ConfigError: a file is not YAML, or an entry is wrong; file and key are named.
    """
    merged: dict[str, dict[str, Any]] = {section: {} for section in KINDS.values()}
    with resources.as_file(resources.files("bevcask.data_catalog")) as shipped:
        for section in KINDS.values():
            file = shipped / f"{section}.yaml"
            merged[section] |= _read(file, {section: _mapping(file)})[section]
    mine = user_file()
    if mine.is_file():
        for section, entries in _read(mine, _mapping(mine)).items():
            merged[section] |= entries
    return Catalog(**merged)


def _read(file: Path, data: Mapping[str, Any]) -> dict[str, dict[str, Entry]]:
    """Validate one file; relative checkpoint paths become absolute."""
    catalog = validate(Catalog, data, where=str(file))
    checkpoints = {
        name: entry.model_copy(update={"path": str(file.parent / entry.path)})
        for name, entry in catalog.checkpoints.items()
    }
    return {
        "datasets": dict(catalog.datasets),
        "checkpoints": dict(checkpoints),
        "caches": dict(catalog.caches),
    }


def _mapping(file: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not readable as YAML: {error}. Mend or remove it.") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: expected a mapping of names, got {type(data).__name__}.")
    return {str(key): value for key, value in data.items()}


def find(kind: str, name: str) -> Entry:
    """Return an entry.

    Args:
        kind: `dataset`, `checkpoint` or `cache`.
        name: its name, without `catalog:`.

    Raises:
        UnknownNameError: no such entry; the message lists those of the kind.
    """
    entries: dict[str, Entry] = getattr(load_catalog(), KINDS[kind])
    if name not in entries:
        known = f"Known: {', '.join(sorted(entries))}." if entries else "There is none yet."
        raise UnknownNameError(
            f"{PREFIX}{name}: no such {kind}.{suggest(name, entries)} {known} "
            f"Add your own to {user_file()}."
        )
    return entries[name]


def resolve(kind: str, value: str) -> str:
    """Turn `catalog:NAME` into a path or URL; anything else is returned as it is.

    >>> resolve("cache", "runs/demo/cache.zarr")
    'runs/demo/cache.zarr'

    Args:
        kind: `dataset`, `checkpoint` or `cache`.
        value: a path, a URL, or `catalog:NAME`.

    Raises:
        UnknownNameError: the catalog has no such name.
    """
    if not value.startswith(PREFIX):
        return value
    return find(kind, value.removeprefix(PREFIX)).location


def is_missing(location: str) -> bool:
    """Tell whether a local path does not exist; remote URLs are not looked up."""
    path = local_path(location)
    return path is not None and not path.exists()


def require_checkpoint(key: str, name: str) -> None:
    """Refuse a file of weights that is not there; one in a remote store is not looked up.

    Args:
        key: the configuration key that names it, for messages.
        name: a path, a URL, or `catalog:NAME`.

    Raises:
        CheckpointError: there is no such file.
        UnknownNameError: the catalog has no such name.
    """
    path = local_path(resolve("checkpoint", name))
    if path is not None and not path.is_file():
        raise CheckpointError(
            f"{key}: {path}: no such checkpoint. Give a file, or catalog:NAME (`bevcask catalog` "
            "lists them)."
        )


def register_cache(url: str, cache: SealedCache, name: str) -> None:
    """Write a sealed cache into the user's catalog, replacing an older entry of the same name.

    Args:
        url: where the cache is.
        cache: the opened cache.
        name: what `catalog:NAME` will mean.

    Raises:
        ConfigError: the file cannot be read or written; the cache itself is not touched.
    """
    local = local_path(url)
    teacher = cache.fingerprint["teacher"]
    entry = CacheEntry(
        url=url if local is None else str(local.resolve()),
        teacher=f"{teacher['type']} {str(teacher['weights'])[:12]}",
        fingerprint=cache.id,
        rows=len(cache.frames.tokens),
        bytes=sum(cache.stored_bytes(name) for name in cache.specs),
        created=str(cache.provenance["time"]),
        command=str(cache.provenance["command"]),
    )
    file = user_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # runs that end together all keep their entry
            data = _mapping(file) if file.is_file() else {}
            data.setdefault("caches", {})[name] = entry.model_dump()
            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
            write_whole(file, text.encode())
    except OSError as error:
        raise ConfigError(
            f"{url} is complete, but cannot be added to {file}: {error.strerror}. Set BEVCASK_HOME "
            "to a folder with room and write permission; the same command then only adds it."
        ) from error


def check_name(name: str, url: str) -> None:
    """Make sure that a cache can be kept under a name, before anything is extracted.

    Raises:
        ConfigError: another cache has that name, or the store ends with this process.
    """
    if url.startswith("memory://"):
        raise ConfigError(f"name={name}: {url} ends with this process, and cannot be kept.")
    local = local_path(url)
    entry = load_catalog().caches.get(name)
    if entry is not None and entry.url != (url if local is None else str(local.resolve())):
        raise ConfigError(
            f"name={name}: the catalog has a cache of that name already, {entry.url}. Choose "
            f"another, or remove it from {user_file()}."
        )

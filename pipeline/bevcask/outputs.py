"""Where a command may write: never into a cache, never over a file of another sort."""

from pathlib import Path

from bevcask.errors import ConfigError
from bevcask.paths import local_path

_ROOT = "zarr.json"


def output_file(key: str, name: str, suffix: str) -> Path:
    """Return the place of a file that a command is to write.

    Args:
        key: the configuration key that names it, for messages.
        name: its path.
        suffix: what it must end with, e.g. `.png`: nothing of another sort is replaced.

    Raises:
        ConfigError: another suffix, a folder, or a place inside a cache.
    """
    path = Path(name)
    if path.suffix != suffix or path.is_dir():
        raise ConfigError(
            f"{key}={name}: expected a file that ends with {suffix}. Nothing was written."
        )
    _refuse_cache(key, name, path.parent)
    return path


def output_folder(key: str, name: str) -> Path:
    """Return the place of a folder that a command is to fill.

    Raises:
        ConfigError: it is a file, a cache, or inside one.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():
        raise ConfigError(
            f"{key}={name}: expected a folder, and this is a file. Choose another place."
        )
    _refuse_cache(key, name, path)
    return path


def cache_place(url: str) -> str:
    """Return the URL of a cache that a command is to fill.

    Raises:
        ConfigError: it is a file.
    """
    path = local_path(url)
    if path is not None and path.exists() and not path.is_dir():
        raise ConfigError(
            f"cache={url}: expected a folder, and this is a file. Choose another place. "
            "Nothing was written."
        )
    return url


def _refuse_cache(key: str, name: str, folder: Path) -> None:
    place = folder.absolute()
    for parent in (place, *place.parents):
        if (parent / _ROOT).is_file():
            raise ConfigError(
                f"{key}={name}: lies inside the cache {parent}, which holds nothing but its own "
                "files. Choose another place. Nothing was written."
            )

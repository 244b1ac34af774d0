"""Several caches of the same frames read as one: targets of different teachers, or of one."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy.typing as npt

from bevcask.cache.layout import Encoded
from bevcask.cache.near import Near
from bevcask.cache.reader import Cache, open_cache
from bevcask.errors import ConfigError, UnknownNameError
from bevcask.paths import local_path
from bevcask.registry import suggest
from bevcask.targets.spec import TargetSpec

SEPARATOR = ","


def open_caches(urls: str, near: Near | None = None, allow_unsealed: bool = False) -> "Caches":
    """Open one cache, or several separated by commas; see `open_cache`."""
    return Caches([open_cache(url, allow_unsealed, near) for url in split_urls(urls)])


def split_urls(urls: str) -> list[str]:
    """Return the URLs of `a,b`.

    Raises:
        ConfigError: one of them is empty, or named twice.
    """
    whole = local_path(urls)
    if whole is not None and whole.exists():  # a comma in the name of one
        return [urls]
    found = [url.strip() for url in urls.split(SEPARATOR)]
    if not all(found) or len(set(found)) < len(found):
        raise ConfigError(f"cache={urls}: expected different cache URLs, separated by commas.")
    return found


class Caches:
    """Open caches and which of them holds what.

    A target that several hold is read where it is stored on the most cells, if one teacher said it.
    """

    def __init__(self, caches: Sequence[Cache]) -> None:
        self._caches = tuple(caches)

    def __iter__(self) -> Iterator[Cache]:
        return iter(self._caches)

    @property
    def urls(self) -> str:
        """The URLs, separated by commas."""
        return SEPARATOR.join(cache.url for cache in self)

    @property
    def ids(self) -> str:
        """The identities in the order of the URLs, separated by commas."""
        return SEPARATOR.join(cache.id for cache in self)

    @property
    def specs(self) -> dict[str, TargetSpec]:
        """Target name -> how it is stored; of a name that several hold, the first cache's."""
        found: dict[str, TargetSpec] = {}
        for cache in self:
            found = {**cache.specs, **found}
        return found

    def home(self, name: str) -> Cache:
        """Return the cache that a target is read from.

        Raises:
            UnknownNameError: none holds it.
            ConfigError: several do, of different teachers or on cells that differ.
        """
        homes = [cache for cache in self if name in cache.specs]
        if not homes:
            known = ", ".join(self.specs)
            raise UnknownNameError(
                f"no cache of {self.urls} has a target {name!r}.{suggest(name, self.specs)} "
                f"Known: {known}."
            )
        regions = [cache.specs[name].region for cache in homes]
        widest = [
            cache
            for cache in homes
            if all(cache.specs[name].region.covers(region) for region in regions)
        ]
        if not widest or any(
            cache.fingerprint["teacher"] != homes[0].fingerprint["teacher"] for cache in homes
        ):
            raise ConfigError(
                f"target {name!r} is in {' and in '.join(cache.url for cache in homes)}: whose is "
                "meant cannot be told. Leave one of these caches out of cache=, or let the method "
                "read another target."
            )
        return widest[0]

    def read_batch(
        self, tokens: Sequence[str], names: Collection[str]
    ) -> dict[str, Encoded[npt.NDArray[Any]]]:
        """Return targets of some frames, still quantised; see `Cache.read_batch`."""
        homes = {name: self.home(name) for name in names}
        found: dict[str, Encoded[npt.NDArray[Any]]] = {}
        for cache in self:
            own = [name for name in names if homes[name] is cache]
            if own:
                found |= cache.read_batch(tokens, own)
        return {name: found[name] for name in names}

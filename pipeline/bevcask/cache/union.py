"""Several caches of the same frames read as one: targets of different teachers, or of one.

`cache=lidar=A,camera=B` labels them: the targets of A are then `lidar/bev.neck` and so on, and what
is of no teacher (`lidar.pixels`) keeps its name.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from bevcask.cache.encoded import Encoded
from bevcask.cache.near import Near
from bevcask.cache.reader import Cache, open_cache
from bevcask.errors import ConfigError, UnknownNameError
from bevcask.paths import local_path
from bevcask.registry import suggest
from bevcask.targets.pixels import PIXELS
from bevcask.targets.spec import TargetSpec

SEPARATOR = ","
OF_NO_TEACHER = (PIXELS.name,)
"""Targets that the data alone says: the same in every cache of the same frames."""
_LABEL = re.compile(r"([a-z][a-z0-9_]*)=(.+)")


def open_caches(urls: str, near: Near | None = None, allow_unsealed: bool = False) -> "Caches":
    """Open one cache, or several separated by commas; see `open_cache`."""
    found = [open_cache(url, allow_unsealed, near) for url in split_urls(urls)]
    return Caches(found, labels_of(urls))


def labels_of(urls: str) -> list[str]:
    """Return the label of each of several URLs, empty where it has none.

    >>> labels_of("lidar=a.zarr,camera=s3://b/c.zarr"), labels_of("a.zarr")
    (['lidar', 'camera'], [''])
    """
    matches = [_LABEL.fullmatch(one) for one in _listed(urls)]
    return [match[1] if match else "" for match in matches]


def split_urls(urls: str) -> list[str]:
    """Return the URLs of `a,b`, without their labels.

    Raises:
        ConfigError: one of them, or a label, is empty or named twice.
    """
    found = [match[2] if (match := _LABEL.fullmatch(one)) else one for one in _listed(urls)]
    labels = [label for label in labels_of(urls) if label]
    if not all(found) or len(set(found)) < len(found) or len(set(labels)) < len(labels):
        raise ConfigError(
            f"cache={urls}: expected different cache URLs, separated by commas, with different "
            "labels if any (lidar=URL,camera=URL)."
        )
    return found


def _listed(urls: str) -> list[str]:
    whole = local_path(urls)
    if whole is not None and whole.exists():  # a comma, or an equals sign, in the name of one
        return [urls]
    return [url.strip() for url in urls.split(SEPARATOR)]


class Caches:
    """Open caches and which of them holds what.

    A target that several hold is read where it is stored on the most cells, if one teacher said it.

    Args:
        caches: open ones.
        labels: of each, in front of the names of its targets; empty leaves them as they are.
    """

    def __init__(self, caches: Sequence[Cache], labels: Sequence[str] = ()) -> None:
        self._caches = tuple(caches)
        self._labels = tuple(labels) or ("",) * len(self._caches)

    def __iter__(self) -> Iterator[Cache]:
        return iter(self._caches)

    @property
    def urls(self) -> str:
        """The URLs, separated by commas."""
        pairs = zip(self._labels, self, strict=True)
        return SEPARATOR.join(
            f"{label}={cache.url}" if label else cache.url for label, cache in pairs
        )

    @property
    def ids(self) -> str:
        """The identities in the order of the URLs, separated by commas."""
        return SEPARATOR.join(cache.id for cache in self)

    @property
    def specs(self) -> dict[str, TargetSpec]:
        """Target name -> how it is stored; of a name that several hold, the first cache's."""
        found: dict[str, TargetSpec] = {}
        for label, cache in zip(self._labels, self, strict=True):
            own = {labelled(name, label): _told(s, label) for name, s in cache.specs.items()}
            found = {**own, **found}
        return found

    def spec(self, name: str) -> TargetSpec:
        """Return how a target is stored where it is read from; raises as `home` does."""
        return _told(self.home(name).specs[bare(name)], label_in(name))

    def home(self, name: str) -> Cache:
        """Return the cache that a target is read from.

        Raises:
            UnknownNameError: none holds it.
            ConfigError: several do, of different teachers or on cells that differ.
        """
        homes = [cache for cache, own in self._asked(name) if own in cache.specs]
        if not homes:
            known = ", ".join(self.specs)
            raise UnknownNameError(
                f"no cache of {self.urls} has a target {name!r}.{suggest(name, self.specs)} "
                f"Known: {known}."
            )
        name = bare(name)
        if name in OF_NO_TEACHER:
            return homes[0]
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
                "meant cannot be told. Label them, cache=one=URL,other=URL, and let the method "
                f"read one/{name}; or leave one of these caches out."
            )
        return widest[0]

    def read_batch(
        self, tokens: Sequence[str], names: Collection[str]
    ) -> dict[str, Encoded[npt.NDArray[Any]]]:
        """Return targets of some frames, still quantised; see `Cache.read_batch`."""
        homes = {name: self.home(name) for name in names}
        found: dict[str, Encoded[npt.NDArray[Any]]] = {}
        for cache in self:
            own = {bare(name): name for name in names if homes[name] is cache}
            if own:
                read = cache.read_batch(tokens, list(own))
                found |= {own[name]: target for name, target in read.items()}
        return {name: found[name] for name in names}

    def _asked(self, name: str) -> Iterator[tuple[Cache, str]]:
        """Yield the caches that a name may be of, with their own word for it."""
        label = label_in(name)
        for own, cache in zip(self._labels, self, strict=True):
            if own == label or (not label and bare(name) in OF_NO_TEACHER):
                yield cache, bare(name)


def labelled(name: str, label: str) -> str:
    """Return what a run calls a target of a labelled cache, or teacher.

    A name that has a label keeps it: a method may read one map of somebody else.
    """
    plain = not label or name in OF_NO_TEACHER or "/" in name
    return name if plain else f"{label}/{name}"


def _told(spec: TargetSpec, label: str) -> TargetSpec:
    return replace(spec, tap=replace(spec.tap, name=labelled(spec.name, label)))


def bare(name: str) -> str:
    """Return what a cache, or teacher, calls a target.

    >>> bare("lidar/bev.neck"), bare("bev.neck")
    ('bev.neck', 'bev.neck')
    """
    return name.rpartition("/")[2]


def label_in(name: str) -> str:
    """Return the label of a target, empty where it has none.

    >>> label_in("lidar/bev.neck"), label_in("bev.neck")
    ('lidar', '')
    """
    return name.rpartition("/")[0]

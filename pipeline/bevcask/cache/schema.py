"""What the root of a cache may say: anybody can write one, with a digest that fits.

Types, bounds and what must follow from what; a root that passes makes no reader ask for more memory
than a cache can need, and leads it nowhere outside the store.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from bevcask.cache.files import is_key
from bevcask.cache.layout import MAX_ROWS, check_spec
from bevcask.errors import CacheCorruptError, CacheIdentityError, TargetMismatchError
from bevcask.fingerprint import canonical
from bevcask.targets.spec import TargetSpec

_MAX_TARGETS = 256
_SHOWN = 160
_SPEC = TypeAdapter(TargetSpec)

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Said(dict[str, Any]):
    """A tree in which a cache speaks of itself: what it does not say is named, at any depth."""

    def __init__(self, tree: Mapping[str, Any], where: str) -> None:
        super().__init__(
            {
                key: Said(value, f"{where}.{key}") if isinstance(value, dict) else value
                for key, value in tree.items()
            }
        )
        self._where = where

    def __missing__(self, key: str) -> Any:
        raise CacheIdentityError(
            f"{self._where} does not say `{key}`: no `bevcask teacher-extract` wrote this cache. "
            "Write what is missing when making it, or extract it."
        )


def said(attributes: Mapping[str, Any], name: str, url: str) -> Said:
    """Return what the cache at a URL says of itself under a name.

    Raises:
        CacheCorruptError: that is no tree.
    """
    found = attributes.get(name)
    if not isinstance(found, dict):
        raise CacheCorruptError(
            f"{url}: expected `{name}`, a mapping. Restore the file from a copy, "
            "or extract the cache again."
        )
    return Said(found, f"cache {url}: its {name}")


class _Teacher(BaseModel):
    model_config = ConfigDict(strict=True)

    weights: Annotated[str, Field(min_length=1)]


class _Fingerprint(BaseModel):
    model_config = ConfigDict(strict=True)

    teacher: _Teacher


class _Root(BaseModel):
    """The attributes of a root, see README.md."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: str
    schema_version: int
    id: Digest
    state: Literal["open", "sealed"]
    commit: Digest | None
    shard_rows: Annotated[int, Field(ge=1, le=4096)]
    num_shards: Annotated[int, Field(ge=1)]
    num_frames: Annotated[int, Field(ge=1)]
    scenes: Annotated[list[str], Field(min_length=1)]
    specs: Annotated[list[dict[str, Any]], Field(max_length=_MAX_TARGETS)]
    fingerprint: _Fingerprint
    files: dict[str, Digest]
    sha256: Digest

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.state == "sealed") != (self.commit is not None):
            raise ValueError(f"state {self.state} with commit {self.commit}")
        if not len(self.scenes) <= self.num_shards <= self.num_frames:
            raise ValueError(
                f"{len(self.scenes)} scenes, {self.num_shards} shards, {self.num_frames} frames"
            )
        if self.num_shards * self.shard_rows > MAX_ROWS:
            raise ValueError(f"{self.num_shards * self.shard_rows} rows of at most {MAX_ROWS}")
        if len(set(self.scenes)) < len(self.scenes):
            raise ValueError("a scene is named twice")
        bad = [key for key in self.files if not is_key(key)]
        if bad:
            raise ValueError(f"files: {bad[0]!r} leads out of the store")
        names = [_spec_of(spec).key for spec in self.specs]
        if len(set(names)) < len(names):
            raise ValueError("a target is there twice")
        return self


def _spec_of(said: dict[str, Any]) -> TargetSpec:
    spec = _SPEC.validate_json(json.dumps(said), strict=True)
    check_spec(spec)
    if canonical(spec.to_dict()) != said:
        raise ValueError(f"target {spec.key}: keys that are not known, or missing")
    return spec


def check_root(attributes: Mapping[str, Any], where: str) -> None:
    """Check that a root says what the root of a cache can say.

    Raises:
        CacheCorruptError: it does not; the first thing that is wrong is named.
    """
    try:
        _Root.model_validate(attributes)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "attributes"
        said = " ".join(f"{place}: {first['msg']}".split())
        raise _absurd(where, said) from error
    except (TargetMismatchError, RecursionError) as error:
        raise _absurd(where, str(error)) from error


def _absurd(where: str, said: str) -> CacheCorruptError:
    short = said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."
    return CacheCorruptError(
        f"{where}: no cache says this: {short}. Restore the file from a copy, or extract the cache "
        "again."
    )


def check_fingerprint(fingerprint: Mapping[str, Any]) -> None:
    """Check that a fingerprint says whose weights made the targets.

    Raises:
        TargetMismatchError: it does not.
    """
    try:
        _Fingerprint.model_validate(fingerprint)
    except ValidationError as error:
        raise TargetMismatchError(
            "the fingerprint has no teacher.weights (a digest or another text that tells these "
            "weights from others): without it nobody can tell whose targets these are. The "
            "teacher's fingerprint() must give `weights`."
        ) from error

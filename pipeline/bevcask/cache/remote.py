"""The drivers of remote stores: fsspec's, told what a cache needs of them; what their errors mean.

Patience is theirs: botocore and s3fs repeat what a store answers with 5xx or breaks off, waiting
longer each time.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bevcask.cache.signed import CONNECTIONS, fetch_signed
from bevcask.errors import ConfigError
from bevcask.paths import local_path

_FRESH = {"use_listings_cache": False}  # other processes write too
_NEEDED: Mapping[str, Mapping[str, Any]] = {
    "s3": {
        **_FRESH,
        "config_kwargs": {"max_pool_connections": CONNECTIONS, "signature_version": "s3v4"},
    },
    "gs": _FRESH,
    "gcs": _FRESH,
}
_SECRET = ("key", "secret", "token", "password", "credential", "connection_string")
_REFUSED = frozenset(("403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "ExpiredToken"))
_PAST_THE_END = frozenset(("416", "InvalidRange"))


def protocol_of(url: str) -> str:
    """Return which driver a remote URL asks for, of a chain the last one's.

    >>> protocol_of("simplecache::s3://bucket/a.zarr")
    's3'
    """
    return url.partition("://")[0].rpartition("::")[2]


def connect(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL and the path there.

    What `FSSPEC_S3`, fsspec's configuration files or `use_options` say goes before our own wishes.
    """
    import fsspec

    protocol = protocol_of(url)
    said = fsspec.config.conf.get(protocol, {})
    ours = {key: value for key, value in _NEEDED.get(protocol, {}).items() if key not in said}
    filesystem, path = fsspec.core.url_to_fs(url, **({protocol: ours} if ours else {}))
    return filesystem, str(path)


def fetch(filesystem: Any, path: str, start: int, stop: int) -> bytes:
    """Return bytes [start, stop) of a path, fewer if it is shorter, in one request."""
    try:
        return bytes(filesystem.cat_file(path, start=start, end=stop))
    except Exception as error:
        if _is_past_the_end(error):
            return b""
        raise


def fetch_all(filesystem: Any, places: Sequence[tuple[str, int, int]]) -> list[bytes | Exception]:
    """Return what `fetch` does of each (path, start, stop), or its error; side by side."""
    found: list[Any] = list(fetch_signed(filesystem, places))
    left = [number for number, one in enumerate(found) if one is None]
    paths, starts, stops = ([places[number][column] for number in left] for column in range(3))
    answers = filesystem.cat_ranges(paths, starts, stops, on_error="return")
    for number, answer in zip(left, answers, strict=True):
        found[number] = _answer(answer)
    return found


def _answer(found: Any) -> bytes | Exception:
    if not isinstance(found, Exception):
        return bytes(found)
    return b"" if _is_past_the_end(found) else found


def use_options(url: str, options: Mapping[str, Any]) -> None:
    """Hand `store.options` to the driver of a URL, in this process and all that it starts.

    Raises:
        ConfigError: the URL is local, or an option is a secret: commands are recorded.
    """
    import fsspec

    if local_path(url) is not None:
        raise ConfigError(
            f"store.options: {url} is on a local disk, which has none. Leave them out, or give a "
            "URL such as s3://BUCKET/my.zarr."
        )
    if secrets := sorted(_secrets(options)):
        raise ConfigError(
            f"store.options.{secrets[0]}: a secret, and a command is recorded where others read "
            "it. Say it by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or "
            f"FSSPEC_{protocol_of(url).upper()}='{{...}}' instead."
        )
    protocol = protocol_of(url)
    known = fsspec.config.conf.setdefault(protocol, {})
    known.update(options)
    os.environ[f"FSSPEC_{protocol.upper()}"] = json.dumps(known)


def _secrets(options: Mapping[str, Any], where: str = "") -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets(value, f"{where}{name}.")
        elif any(word in name.lower() for word in _SECRET):
            yield f"{where}{name}"


def lacks_bucket(error: BaseException) -> bool:
    """Tell whether it is not the key alone that is missing."""
    return "NoSuchBucket" in _codes(error)


def _is_past_the_end(error: BaseException) -> bool:
    """Tell whether a range was refused because the key is shorter."""
    return not _PAST_THE_END.isdisjoint(_codes(error))


def missing_driver(error: ImportError, url: str) -> str:
    """Return what to install for a URL whose driver is not there."""
    ours = " (pip install 'bevcask[s3]')" if protocol_of(url) in ("s3", "s3a") else ""
    return f"{url}: its driver is missing: {error}{ours}"


def meaning(error: BaseException, url: str) -> str:
    """Return what a driver's error means, and what to do, as sentences."""
    said = f"{type(error).__name__}: {error}".rstrip(": ").replace("\n", " ")
    if lacks_bucket(error):
        bucket = url.partition("://")[2].partition("/")[0]
        return (
            f"there is no bucket {bucket} ({said}). Correct the URL, or make the bucket; an "
            "endpoint other than Amazon's is named by AWS_ENDPOINT_URL or "
            "store.options.endpoint_url. Credentials were accepted."
        )
    if isinstance(error, PermissionError) or not _REFUSED.isdisjoint(_codes(error)):
        return (
            f"the store refuses it (403, {said}). Whoever the credentials belong to (AWS_PROFILE, "
            "AWS_ACCESS_KEY_ID; none: store.options.anon=true) needs to list the bucket and to "
            "get its objects, and for anything but reading to put and delete them."
        )
    return (
        f"the store says {said}. Check the URL, the network, the credentials and what they allow; "
        "what is committed is not in doubt, and the same command goes on from here."
    )


def _codes(error: BaseException | None) -> set[str]:
    """Return the codes that an error, and those it came from, have from the store."""
    codes: set[str] = set()
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, Mapping):
            codes.add(str(answer.get("Error", {}).get("Code")))
        codes.add(str(getattr(error, "status", getattr(error, "code", None))))
        error = error.__cause__
    return codes

"""What drivers are told, and what their errors mean."""

import json
import os

import fsspec
import pytest

from bevcask.cache import remote
from bevcask.cache.signed import CONNECTIONS
from bevcask.errors import ConfigError


@pytest.fixture(autouse=True)
def _own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    for protocol in ("S3", "MEMORY"):
        monkeypatch.setenv(f"FSSPEC_{protocol}", "{}")
    monkeypatch.setattr(fsspec.config, "conf", {})


def made(url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Return what the driver of a URL would be made with."""
    found: dict[str, object] = {}

    def note(url: str, **options: object) -> tuple[object, str]:
        found.update(options)
        return object(), url

    monkeypatch.setattr(fsspec.core, "url_to_fs", note)
    remote.connect(url)
    return found


def test_a_bucket_is_listed_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("s3://bucket/c", "simplecache::s3://bucket/c"):
        said = made(url, monkeypatch)["s3"]
        assert said == {
            "use_listings_cache": False,
            "config_kwargs": {"max_pool_connections": CONNECTIONS, "signature_version": "s3v4"},
        }
    assert made("memory://c", monkeypatch) == {}


def test_options_reach_this_process_and_those_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    remote.use_options("s3://a/b", {"endpoint_url": "http://x:9000"})
    remote.use_options("s3://a/c", {"config_kwargs": {"read_timeout": 60}})
    expected = {"endpoint_url": "http://x:9000", "config_kwargs": {"read_timeout": 60}}
    assert fsspec.config.conf["s3"] == json.loads(os.environ["FSSPEC_S3"]) == expected
    assert made("s3://a/b", monkeypatch)["s3"] == {"use_listings_cache": False}


@pytest.mark.parametrize(
    "options",
    [{"secret": "x"}, {"client_kwargs": {"aws_secret_access_key": "x"}}, {"key": "x"}],
)
def test_no_secret_gets_into_a_command(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"a secret, .*AWS_SECRET_ACCESS_KEY"):
        remote.use_options("s3://a/b", options)
    assert os.environ["FSSPEC_S3"] == "{}"


@pytest.mark.parametrize("url", ["/data/my.zarr", "file:///data/my.zarr"])
def test_a_disk_has_no_options(url: str) -> None:
    with pytest.raises(ConfigError, match=r"is on a local disk"):
        remote.use_options(url, {"anon": True})


def test_errors_are_one_line_with_what_to_do() -> None:
    cause = Exception("no such bucket")
    cause.response = {"Error": {"Code": "NoSuchBucket"}}  # type: ignore[attr-defined]
    missing = FileNotFoundError("The bucket\ndoes not exist")
    missing.__cause__ = cause
    said = remote.meaning(missing, "s3://lab/c.zarr")
    assert "no bucket lab" in said
    assert "\n" not in said
    assert "403" in remote.meaning(PermissionError("Forbidden"), "s3://lab/c.zarr")
    assert "network" in remote.meaning(TimeoutError("timed out"), "s3://lab/c.zarr")

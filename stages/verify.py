"""verify: is every stored byte still the byte that was committed?"""

from typing import Any

from bevcask.cache.verify import verify
from bevcask.catalog import resolve
from bevcask.config import RunConfig
from bevcask.errors import ConfigError


def run(config: RunConfig) -> dict[str, Any]:
    """Re-hash a cache.

    Returns:
        `ok`, files and bytes checked, and `problems`: one line a damaged, missing or foreign file.

    Raises:
        ConfigError: no cache URL.
    """
    if config.cache is None:
        raise ConfigError("verify needs a cache URL: bevcask verify URL.")
    url = resolve("cache", config.cache)
    report = verify(url)
    return {"cache": url, "ok": report.ok, "problems": report.problems, "bytes": report.bytes}

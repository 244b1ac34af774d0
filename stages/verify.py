"""verify: is every stored byte still the byte that was committed?"""

from typing import Any

from bevcask.cache.verifier import verify
from bevcask.catalog import resolve
from bevcask.config import RunConfig
from bevcask.errors import ConfigError
from bevcask.progress import progress_bar


def run(config: RunConfig) -> dict[str, Any]:
    """Re-hash every file of a cache.

    Returns:
        `ok`, files and bytes checked, and `problems`: a line for each damaged, missing or foreign
        file.

    Raises:
        ConfigError: no cache URL.
        CacheIncompleteError: there is no cache at the URL.
    """
    if config.cache is None:
        raise ConfigError("verify needs a cache URL: bevcask verify URL.")
    url = resolve("cache", config.cache)
    with progress_bar("verify", 0) as bar:
        report = verify(url, progress=bar.move_to)
    return {
        "cache": url,
        "ok": report.ok,
        "files": report.num_files,
        "bytes": report.num_bytes,
        "problems": [f"{problem.key}: {problem.what}" for problem in report.problems],
    }

"""What is recorded of one run: who wrote which shards, in a small file of its own."""

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from bevcask.cache import metadata
from bevcask.cache.files import Files
from bevcask.cache.lease import holding_small_files


class Run:
    """What is recorded of one run: who wrote which shards, in a small file of its own.

    Args:
        files: the cache.
        made: what is known beforehand.
    """

    def __init__(self, files: Files, made: Mapping[str, Any]) -> None:
        time = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self._key = f"provenance/{time}-{secrets.token_hex(4)}/zarr.json"
        self._files = files
        self._made = dict(made)

    def begin(self, shards: range, targets: list[str]) -> None:
        """Record that it has begun; `shards_written` stays null if it is killed."""
        self._made |= {"shards": [shards.start, shards.stop], "targets": targets}
        self._put(None)

    def end(self, shards_written: int) -> None:
        """Record how many shards it wrote."""
        self._put(shards_written)

    def _put(self, shards_written: int | None) -> None:
        with holding_small_files(self._files, "recording"):
            self._files.put(
                self._key, metadata.group_json({**self._made, "shards_written": shards_written})
            )

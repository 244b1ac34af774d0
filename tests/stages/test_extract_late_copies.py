"""A shard whose copies from the device are late is handed over behind the next batch, whole."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bevcask.extraction.host import HostCopies, Mark
from cache.test_writer import different_files

Call = Callable[..., tuple[int, str, str]]


def test_late_copies_are_waited_for_and_no_shard_is_lost(
    teacher_words: list[str],
    cached_world: Path,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[int] = []

    class Late:
        def query(self) -> bool:
            return False

        def synchronize(self) -> None:
            waited.append(1)

    monkeypatch.setattr(HostCopies, "mark", lambda _: Mark(Late()))
    url = tmp_path / "c.zarr"
    code, _, err = call("teacher-extract", url, *teacher_words, "store.shard_rows=2")
    assert code == 0, err
    assert len(waited) > 1
    assert different_files(url, cached_world) == []

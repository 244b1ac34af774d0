"""benchmarks/write_threads.py runs end to end on something tiny."""

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return importlib.import_module("write_threads")


def test_write_threads_end_to_end(script: Any, tmp_path: Path) -> None:
    size = script.Size(channels=(4, 2, 2), side=16, shard_rows=2, num_shards=3)
    result = script.measure(size, [1, 2], 3, tmp_path)
    one, two = (result["seconds"][name] for name in ("1 thread", "2 threads"))
    assert result["encoded_bytes"] == 3 * 2 * (4 + 2 + 2) * 16 * 16
    assert 0 < result["stored_bytes"] < result["encoded_bytes"]
    (row,) = result["ratios"]
    assert row["goal"] == ">= 1.7"
    assert row["median"] == sorted(a / b for a, b in zip(one, two, strict=True))[1]
    assert len(result["cpu_seconds"]["2 threads"]) == 3
    assert script.table(result).splitlines()[1].startswith("1 thread ")
    assert not list(tmp_path.iterdir())


def test_other_bytes_are_no_result(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = script.Writing.write

    def differently(self: Any, threads: int) -> float:
        self.digests.add(f"by {threads}")
        return float(write(self, threads))

    monkeypatch.setattr(script.Writing, "write", differently)
    size = script.Size(channels=(2, 2, 2), side=8, shard_rows=1, num_shards=1)
    with pytest.raises(SystemExit, match="bytes depend on the number of threads"):
        script.measure(size, [1, 2], 1, tmp_path)

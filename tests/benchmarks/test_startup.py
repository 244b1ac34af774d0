"""Starting is measured in fresh processes, on a cache and an index that really open."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from bevcask.cache import open_cache
from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
def test_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("BEVCASK_HOME", str(tmp_path / "home"))
    startup: Any = importlib.import_module("startup")
    result = startup.measure([100], 1, tmp_path)
    json.dumps(result)
    assert set(result["seconds"]) == {"frames, 100 rows", "cache, 100 rows"}
    assert len(result["ratios"]) == 4
    config = DatasetConfig(root=str(tmp_path / "frames-100"), version=startup.VERSION, split="all")
    assert len(Frames.select(config)) == 100
    cache = open_cache(str(tmp_path / "cache-100"))
    assert cache.sealed
    assert len(cache.frames.tokens) == 100
    assert not cache.read(cache.frames.tokens[99])["bev.neck"].values.any()

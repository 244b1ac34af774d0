"""benchmarks/plain.py: every way reads the same, and a wrong byte is counted."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevcask.cache import open_cache
from cache.example import build

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    cache = open_cache(build(tmp_path / "cache.zarr"))
    module: Any = importlib.import_module("plain")
    stored = cache.read_batch(cache.frames.tokens, module.TARGETS)
    rows = np.array([cache.layout.row_of[token] for token in cache.frames.tokens])
    values = {name: stored[name].values for name in module.TARGETS}
    np.savez(tmp_path / "reference.npz", rows=rows, **values)
    return module


def test_every_way_is_measured(plain: Any, tmp_path: Path) -> None:
    rates = plain.measure(tmp_path, 1, 2)
    assert {"bevcask", "bevcask, dask", "zarr, default"} <= rates.keys()
    assert min(min(own) for own in rates.values()) > 0


def test_wrong_bytes_are_counted(plain: Any, tmp_path: Path) -> None:
    assert plain.compare(tmp_path, 40)["zarr, default"] == 0
    with np.load(tmp_path / "reference.npz") as reference:
        changed = {name: reference[name].copy() for name in reference.files}
    changed["bev.neck"] += 1
    np.savez(tmp_path / "reference.npz", **changed)
    assert plain.compare(tmp_path, 40)["zarr, default"] > 10

"""benchmarks/parts.py runs end to end on something tiny."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
def test_parts_end_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    parts: Any = importlib.import_module("parts")
    size = replace(parts.SIZES["tiny"], num_keyframes=2)
    words = ["teacher.detector.num_sweeps=1", "store.shard_rows=1"]
    result = parts.measure(size, words, 1, tmp_path)
    one, two = result["seconds"]["one"][0], result["seconds"]["two"][0]
    assert result["ratios"][0]["median"] == pytest.approx(one / two)
    assert result["frames"] == 2
    assert not list(tmp_path.glob("*.zarr"))

"""benchmarks/forward.py on the smallest detectors."""

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("name", "train"),
    [("bevformer_tiny_student", False), ("bevdepth_tiny", False), ("raydn_tiny", True)],
)
def test_forward(name: str, train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    forward: Any = importlib.import_module("forward")
    row = forward.measure(name, 1, train)
    assert len(row["seconds"]) == 2
    assert min(row["seconds"]) > 0
    assert 0.1 < row["peak_gib"] < 24
    assert 5e5 < row["parameters"] < 2e6

"""The scale benchmark runs end to end on something tiny."""

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_scale_end_to_end(load: Any, tmp_path: Path) -> None:
    result = load("scale").measure([16, 40], 8, 1, tmp_path / "small", tmp_path / "big")
    work = ("create", "write", "seal", "open", "read", "verify")
    assert {f"{what}, {num} rows" for what in work for num in (16, 40)} < set(result["seconds"])
    ratios = {row["name"]: row for row in result["ratios"]}
    assert set(ratios) == {
        *(f"{what}, 40 / 16 rows" for what in work),
        "sha256 / verify, warm",
        "sha256 / verify, cold",
    }
    write = result["seconds"]["write, 40 rows"][0] / result["seconds"]["write, 16 rows"][0]
    assert ratios["write, 40 / 16 rows"]["median"] == pytest.approx(write)
    assert result["verify"]["bytes"] > 8 * 64 * 128 * 128
    assert result["verify"]["megabytes_a_second"]["verify, cold"][0] > 0

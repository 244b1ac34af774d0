"""benchmarks/gpu.py: parts fail alone, and its own parts run on a CPU."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


def test_every_part_has_a_limit_and_all_fit_ten_minutes(gpu: Any) -> None:
    parts = gpu.parts()
    assert {"tests", "repeat", "twice", "reader", "step distillbev"} <= parts.keys()
    assert sum(part.limit for part in parts.values()) <= 660
    assert sum(part.limit for part in parts.values() if part.quick) <= 330


def test_what_fails_or_takes_too_long_is_a_line(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {
        "slow": gpu.Part(("-c", "import time; time.sleep(60)"), 1, answers=True),
        "bad": gpu.Part(("-c", "raise SystemExit('no such thing')"), 20, answers=True),
        "good": gpu.Part(("-c", "import json; print(json.dumps(dict(a=1)))"), 20, answers=True),
    }
    monkeypatch.setattr(gpu, "parts", lambda: found)
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(out)])
    gpu.main()
    parts = json.loads(out.read_text())["parts"]
    assert parts["slow"] == {"failed": "not done after 1 s"}
    assert parts["bad"]["failed"] == "no such thing"
    assert parts["good"]["result"] == {"a": 1}


def test_a_detector_repeats_itself(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "TINY", ("centerpoint_tiny",))
    table = gpu.repeat()
    assert table["centerpoint_tiny float32"] == {"twice": 0.0, "cpu": 0.0}
    assert table["centerpoint_tiny bf16"]["cpu"] > 0

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
    assert sum(part.limit for part in parts.values()) <= 600
    assert sum(part.limit for part in parts.values() if part.quick) <= 240


CHILD = """
import json, subprocess, sys, time
found = sys.argv[-1]
open(found, "w").write(json.dumps({"rounds": 1}))
own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(str(own.pid))
time.sleep(60)
"""


def test_what_fails_or_takes_too_long_is_a_line_with_what_it_had_found(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, answer = tmp_path / "pid", "import sys; open(sys.argv[-1], 'w').write('{\"a\": 1}')"
    found = {
        "slow": gpu.Part(("-c", CHILD, str(pid)), 2),
        "bad": gpu.Part(("-c", "raise SystemExit('no such thing')"), 20),
        "good": gpu.Part(("-c", answer), 20),
    }
    monkeypatch.setattr(gpu, "parts", lambda world="": found)
    out = tmp_path / "gpu.json"
    out.write_text(json.dumps({"hardware": {"gpu": None}, "parts": {"other": {"a": 2}}}))
    monkeypatch.setattr(gpu, "CUDA", False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(out)])
    gpu.main()
    parts = json.loads(out.read_text())["parts"]
    assert parts["slow"]["failed"] == "not done after 2 s"
    assert parts["slow"]["result"] == {"rounds": 1}
    state = Path(f"/proc/{pid.read_text()}/stat")  # what it started has ended too
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert parts["bad"]["failed"] == "no such thing"
    assert parts["good"]["result"] == {"a": 1}
    assert parts["other"] == {"a": 2}


def test_a_detector_repeats_itself(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "TINY", ("centerpoint_tiny",))
    *_, table = gpu.repeat()
    assert table["centerpoint_tiny float32"] == {"twice": 0.0, "cpu": 0.0}
    assert table["centerpoint_tiny bf16"]["cpu"] > 0

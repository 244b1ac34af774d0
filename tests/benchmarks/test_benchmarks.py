"""The benchmarks run end to end on something tiny, and their arithmetic is right."""

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bevcask.data.samples import Key

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = [
    "student.detector.image_size_HW=[64,128]",
    "teacher.detector.num_sweeps=1",
    "loader.batch_size=1",
]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize(
    ("values", "goal", "met"),
    [
        ([0.02, 0.9, 0.01], "<= 0.03", True),
        ([0.02, 0.9, 0.04], "<= 0.03", False),
        ([0.95, 0.1, 0.91], ">= 0.9", True),
        ([1.0], None, None),
    ],
)
def test_a_goal_is_met_by_the_median(
    load: Any, values: list[float], goal: str | None, met: bool | None
) -> None:
    row = load("measure").ratio("r", values, goal)
    assert row["met"] is met
    assert row["median"] == sorted(values)[len(values) // 2]


def test_results_do_not_say_where_a_machine_has_things(load: Any) -> None:
    said = "bytes.py dataset.root=/data/nu scenes=[/a/b,c] ~/x s3://bucket/y --root /z/w 1/2"
    found = load("measure").placeless(said)
    assert found == "bytes.py dataset.root=nu scenes=[b,c] x s3://bucket/y --root w 1/2"
    for path in sorted((BENCHMARKS / "results").iterdir()):
        text = path.read_text()
        commands = [line for line in text.splitlines() if '"command"' in line or ".root=" in line]
        assert not [line for line in commands if re.search(r"[ =\"]/\w", line)], path.name


def test_rounds_interleave_and_the_first_is_thrown_away(load: Any) -> None:
    calls: list[str] = []

    def arm(name: str) -> Any:
        def run() -> float:
            calls.append(name)
            return float(len(calls))

        return run

    seconds = load("measure").interleave({name: arm(name) for name in "abc"}, rounds=4, seed=0)
    assert all(len(values) == 4 for values in seconds.values())
    assert min(min(values) for values in seconds.values()) == 4.0
    turns = [tuple(calls[first : first + 3]) for first in range(0, 15, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 1


@pytest.mark.slow
def test_step_time_end_to_end(
    load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step_time = load("step_time")
    size = replace(step_time.SIZES["tiny"], num_keyframes=2, image_width=128, steps=1)
    result = step_time.measure(size, SMALL, 1, tmp_path)
    load("measure").report("step_time", result, tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert set(written["seconds"]) == {"none", "resident", "cached", "online"}
    assert all(value > 0 for values in written["seconds"].values() for value in values)
    assert {"commit", "config", "seed", "data", "hardware"} <= set(written)
    assert written["data"].startswith("synthetic")
    assert "cached / none" in capsys.readouterr().out


@pytest.mark.slow
def test_all_arms_get_the_same_batches_and_their_own_targets(load: Any, tmp_path: Path) -> None:
    step_time, measure = load("step_time"), load("measure")
    root = measure.make_world(tmp_path / "world", 2, 128)
    data = ["dataset=synthetic", f"dataset.root={root}", "dataset.split=all"]
    arms = step_time.build_arms([*step_time.SIZES["tiny"].words, *SMALL, *data], tmp_path)
    batches = {}
    for name, arm in arms.items():
        arm._blocks.keys = [[Key(1, 3)]]
        (batches[name],) = list(arm._loader)
    first = batches["none"].batch
    for name, joined in batches.items():
        assert torch.equal(joined.batch.images_BVCHW, first.images_BVCHW), name
        assert bool(joined.targets) == (name in {"resident", "cached"}), name
        assert bool(joined.teacher_batches) == (name == "online"), name
    for name, target in batches["cached"].targets.items():
        assert torch.equal(target.values, batches["resident"].targets[name].values)
    assert arms["resident"]._loader.dataset.source._open is None


def test_extract_end_to_end(load: Any, tmp_path: Path) -> None:
    extract = load("extract")
    size = replace(extract.SIZES["tiny"], num_keyframes=2)
    result = extract.measure(size, ["teacher.detector.num_sweeps=1"], 1, tmp_path)
    assert result["stored_bytes"] > 0
    assert result["stored_bytes"] < result["encoded_bytes"]
    assert result["ratios"][0]["median"] == pytest.approx(
        result["seconds"]["extract"][0] / result["seconds"]["forward"][0]
    )
    assert not list(tmp_path.glob("[1-9]*.zarr"))

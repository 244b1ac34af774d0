"""Runs beside each other, from what a training leaves in its folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from bevcask.errors import ConfigError
from bevcask.viz.runs import _thinned, compare


def run_folder(
    path: Path, config: dict[str, Any], nds: dict[int, float], ended: bool = True
) -> str:
    """Write what student-distill writes: two sittings, the second from step 3 on again."""
    (path / "logs/csv/sitting_0").mkdir(parents=True)
    (path / "logs/csv/sitting_10").mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "logs/csv/sitting_0/metrics.csv").write_text(
        "epoch,step,train/loss,train/neck/spatial,val/NDS\n0,1,4.0,1.0,\n0,2,,,0.1\n0,4,99.0,9.0,\n"
    )
    (path / "logs/csv/sitting_10/metrics.csv").write_text(
        "epoch,step,train/loss,train/neck/spatial\n0,3,2.0,\n0,4,1.0,0.25\n"
    )
    for step, score in nds.items():
        folder = path / f"validation/step_{step:06d}"
        folder.mkdir(parents=True)
        tree = {"mAP": score / 2, "NDS": score, "per_class": {"car": {"AP": score}}}
        (folder / "metrics.json").write_text(json.dumps(tree))
    if ended:
        tree = {"seconds_per_step": 0.5, "step": 4, "peak_memory_gb": 1.5}
        (path / "metrics.json").write_text(json.dumps(tree))
    return str(path)


def test_what_was_logged_and_scored_by_hand(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a", {"seed": 0, "trainer": {"lr": 1e-3}}, {2: 0.1, 4: 0.3, 6: 0.3})
    b = run_folder(tmp_path / "b", {"seed": 1, "trainer": {"lr": 1e-3}}, {}, ended=False)
    found = compare([a, b])
    one, other = found["runs"]
    assert (one["name"], other["name"]) == ("a", "b")
    assert one["curves"]["loss"] == [(1, 4.0), (3, 2.0), (4, 1.0)]  # the later sitting says
    assert one["curves"]["neck/spatial"] == [(1, 1.0), (4, 0.25)]
    assert one["best_step"] == 4
    assert one["scores"]["NDS"] == 0.3
    assert [row["step"] for row in one["validations"]] == [2, 4, 6]
    assert one["result"]["peak_memory_gb"] == 1.5
    assert (other["ended"], other["step"], other["scores"]) == (False, 4, {})
    assert found["differences"] == [{"key": "seed", "values": [0, 1]}]


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name / "run", {}, {}) for name in ("a", "b")]
    assert [run["name"] for run in compare(folders)["runs"]] == ["a/run", "b/run"]
    with pytest.raises(ConfigError, match="expected different run folders"):
        compare([folders[0], folders[0] + "/../run"])


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json there, so it is no run"):
        compare([str(tmp_path)])
    folder = run_folder(tmp_path / "a", {}, {})
    (tmp_path / "a/metrics.json").write_text("{")
    with pytest.raises(ConfigError, match=r"metrics\.json: cannot be read"):
        compare([folder])


def test_a_long_curve_keeps_its_mean() -> None:
    curve = [(step, float(step % 7)) for step in range(1000)]
    found = _thinned(curve)
    assert len(found) == 400
    assert found[-1][0] == 999
    assert sum(v for _, v in found) / 400 == pytest.approx(
        sum(v for _, v in curve) / 1000, rel=0.01
    )

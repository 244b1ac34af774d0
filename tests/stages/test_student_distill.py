"""The recipe from the command line: results, logs, resume, refusals."""

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colors
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bevcask.cache.reader import open_cache
from bevcask.viz import layers
from small_student import STUDENT

Call = Callable[..., tuple[int, str, str]]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
SMALL = (
    *STUDENT,
    "trainer.warmup_steps=1",
    "trainer.log_every=1",
    "augment.bev_flip_x=true",
)


def words(world: Path, run: Path, *more: object) -> list[str]:
    return [
        *SMALL,
        "dataset=synthetic",
        f"dataset.root={world}",
        "dataset.split=synthetic_train",
        f"run={run}",
        *map(str, more),
    ]


def validated(world: Path) -> tuple[str, ...]:
    return f"val.root={world}", "val.version=v1.0-synthetic", "val.split=synthetic_val"


@pytest.fixture(scope="module")
def finished(
    tiny_world: Path, cached_world: Path, call: Call, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str], dict[str, Any]]:
    """A distilled student: its run, the command, the printed result."""
    run = tmp_path_factory.mktemp("runs") / "distilled"
    command = [
        "student-distill",
        str(cached_world),
        *words(tiny_world, run, "method=distillbev", *validated(tiny_world)),
        "trainer.max_steps=5",
        "trainer.validate_every=2",
        "trainer.checkpoint_every=2",
        "trainer.pictures=2",
        "--json",
    ]
    code, out, err = call(*command)
    assert code == 0, err
    return run, command, json.loads(out)


def test_result_holds_official_scores_and_the_cache(
    finished: tuple[Path, list[str], dict[str, Any]], cached_world: Path
) -> None:
    run, _, result = finished
    assert json.loads((run / "metrics.json").read_text()) == result
    assert 0 <= result["mAP"] <= 1
    assert 0 <= result["NDS"] <= 1
    assert result["coverage"] == "3 of 3 frames"
    assert result["seconds_per_step"] > 0
    assert 0 <= result["loader_share"] <= 1
    assert result["cache_id"] == open_cache(str(cached_world)).id
    assert result["frames"] == 3
    assert result["adapter_parameters"] > 0
    weights = load_file(result["weights"])
    learned = {name: n.numel() for name, n in weights.items() if not name.endswith(STATISTICS)}
    assert result["parameters"] == sum(learned.values())
    assert result["numbers"] == sum(tensor.numel() for tensor in weights.values())
    assert result["numbers"] > result["parameters"]


def test_validates_every_n_steps_and_at_the_end(
    finished: tuple[Path, list[str], dict[str, Any]],
) -> None:
    run, _, _ = finished
    assert sorted(p.name for p in (run / "validation").iterdir()) == [
        "step_000002",
        "step_000004",
        "step_000005",
    ]
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5


def test_every_term_is_logged(finished: tuple[Path, list[str], dict[str, Any]]) -> None:
    run, _, _ = finished
    with (run / "logs" / "csv" / "sitting_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3, 4]
    for row in rows:
        terms = [
            float(value)
            for name, value in row.items()
            if name.startswith(("train/detection/", "train/distillbev/"))
        ]
        assert len(terms) == 2 + 3 * 3 + 1  # head; three terms a level; false positives at one
        assert sum(terms) == pytest.approx(float(row["train/loss"]), rel=1e-5)
        assert float(row["train/grad_norm"]) > 0
        assert float(row["train/lr"]) > 0
    assert all(row["time/seconds_per_step"] for row in rows[1:2])
    assert list((run / "logs" / "tensorboard").glob("events.out.tfevents.*"))


def test_every_other_validation_and_the_last_is_a_picture(
    finished: tuple[Path, list[str], dict[str, Any]],
) -> None:
    run, _, _ = finished
    events = EventAccumulator(str(run / "logs" / "tensorboard"), {"images": 0})
    events.Reload()
    pictures = events.Images("val/bev")
    assert [own.step for own in pictures] == [4, 5]
    was_HW3, now_HW3 = (
        np.asarray(Image.open(io.BytesIO(own.encoded_image_string))).astype(int) for own in pictures
    )
    assert now_HW3.shape == (532, 5 * 434, 3)
    for colour in (
        layers.TRUTH,
        layers.TEACHER,
        layers.STUDENT,
    ):  # in the legend, if no box has such a score yet
        assert (np.abs(now_HW3 / 255 - colors.to_rgb(colour)).max(-1) < 0.1).any(), colour
    changed = [
        (was_HW3[120:, 434 * panel : 434 * (panel + 1)] != now_HW3[120:, 434 * panel :][:, :434])
        for panel in range(5)
    ]
    assert [bool(own.any()) for own in changed] == [False, False, False, True, True]


def test_exported_student_has_no_adapters_and_records_the_cache(
    finished: tuple[Path, list[str], dict[str, Any]], cached_world: Path
) -> None:
    _, _, result = finished
    weights = load_file(result["weights"])
    assert weights
    assert not any(name.startswith(("method", "student", "adapters")) for name in weights)
    with safe_open(result["weights"], framework="pt") as file:
        note = file.metadata()
    assert note["cache"] == open_cache(str(cached_world)).id
    assert json.loads(note["detector"])["type"] == "centerpoint"
    assert note["step"] == str(result["step"])


def test_an_ended_run_is_not_repeated(
    finished: tuple[Path, list[str], dict[str, Any]], call: Call
) -> None:
    run, command, result = finished
    before = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    code, out, _ = call(*command)
    assert code == 0
    assert json.loads(out) == result
    assert (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_another_configuration_in_the_same_folder_is_refused(
    finished: tuple[Path, list[str], dict[str, Any]], call: Call
) -> None:
    run, command, _ = finished
    code, _, err = call(*command[:-1], "trainer.lr=0.5")
    assert code == 2
    assert "trainer.lr: was 0.002, now 0.5" in err
    assert "resume=false" in err
    assert (run / "metrics.json").is_file()


def test_cached_targets_import_no_teacher(
    tiny_world: Path, cached_world: Path, tmp_path: Path
) -> None:
    command = words(
        tiny_world,
        tmp_path / "run",
        f"cache={cached_world}",
        "method=distillbev",
        "trainer.max_steps=1",
    )
    program = (
        "import sys\n"
        "from bevcask.compose import compose\nfrom bevcask.verbs import DistillConfig\n"
        "from bevcask.stages import student_distill\n"
        f"student_distill.run(compose(DistillConfig, {command!r}))\n"
        "print([name for name in sys.modules if name.startswith('bevcask.teachers')])"
    )
    answer = subprocess.run(
        # Deprecations are for the tests of this process: old releases of others are full of them.
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("seen", ["canonical", "augmented"])
def test_online_teacher_runs_through_the_same_recipe(
    seen: str, tiny_world: Path, checkpoint: Path, call: Call, tmp_path: Path
) -> None:
    code, out, err = call(
        "student-distill",
        *words(tiny_world, tmp_path / "run", "method=distillbev", "trainer.max_steps=1"),
        "teacher=centerpoint_tiny",
        f"teacher.checkpoint={checkpoint}",
        "targets=online",
        f"online.input={seen}",
        "--json",
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["cache_id"] is None
    assert f"online ({seen})" in result["teacher"]
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any("teacher" in name for name in saved["state_dict"])


def test_trains_a_teacher_and_starts_from_it(tiny_world: Path, call: Call, tmp_path: Path) -> None:
    first = ["method=none", "trainer.max_steps=1"]
    code, out, err = call(
        "student-distill", *words(tiny_world, tmp_path / "teacher", *first), "--json"
    )
    assert code == 0, err
    weights = json.loads(out)["weights"]
    code, out, err = call(
        "student-distill",
        *words(tiny_world, tmp_path / "next", *first, f"student.checkpoint={weights}"),
        "--json",
    )
    assert code == 0, err
    assert json.loads(out)["started_from"] == {"checkpoint": weights}


def test_method_without_targets_is_told_where_to_get_them(
    tiny_world: Path, call: Call, tmp_path: Path
) -> None:
    code, _, err = call(
        "student-distill", *words(tiny_world, tmp_path / "run", "method=distillbev")
    )
    assert code == 2
    assert "needs bev.block1, bev.block2, bev.neck, head.heatmap of a teacher" in err
    assert "cache=URL" in err


def test_unsealed_cache_is_refused(
    tiny_world: Path, cached_world: Path, call: Call, tmp_path: Path
) -> None:
    url = Path(shutil.copytree(cached_world, tmp_path / "unsealed.zarr"))
    root = json.loads((url / "zarr.json").read_text())
    root["attributes"]["state"] = "open"
    (url / "zarr.json").write_text(json.dumps(root))
    code, _, err = call(
        "student-distill", str(url), *words(tiny_world, tmp_path / "run", "method=distillbev")
    )
    assert code == 2
    assert err.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_frames_without_a_row_are_refused_or_skipped(
    tiny_world: Path, checkpoint: Path, call: Call, tmp_path: Path
) -> None:
    url = tmp_path / "part.zarr"
    code, _, err = call(
        "teacher-extract",
        str(url),
        "teacher=centerpoint_tiny",
        f"teacher.checkpoint={checkpoint}",
        "dataset=synthetic",
        f"dataset.root={tiny_world}",
        "dataset.split=synthetic_train",
        "dataset.limit=2",
        "loader.num_workers=0",
    )
    assert code == 0, err
    command = [
        "student-distill",
        str(url),
        *words(tiny_world, tmp_path / "run", "method=distillbev", "dry_run=true"),
    ]
    code, _, err = call(*command)
    assert code == 2
    assert "1 of 3 selected frames have no row" in err
    code, out, err = call(*command, "on_missing=skip", "--json")
    assert code == 0, err
    assert json.loads(out)["frames"] == 2


def test_mixed_precision_trains(
    tiny_world: Path, cached_world: Path, call: Call, tmp_path: Path
) -> None:
    code, _, err = call(
        "student-distill",
        str(cached_world),
        *words(tiny_world, tmp_path, "method=distillbev", "trainer.precision=bf16-mixed"),
        "trainer.max_steps=2",
    )
    assert code == 0, err
    with (tmp_path / "logs" / "csv" / "sitting_0" / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 2
    assert all(0 < loss < 1e6 for loss in losses)


def test_half_precision_on_a_cpu_is_refused(tiny_world: Path, call: Call, tmp_path: Path) -> None:
    code, _, err = call(
        "student-distill",
        *words(tiny_world, tmp_path / "run", "method=none", "trainer.precision=16-mixed"),
    )
    assert code == 2
    assert "bf16-mixed" in err

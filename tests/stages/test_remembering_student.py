"""A detector that remembers, of somebody else's package, from training to scores and a cache."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bevcask.compose import words_for
from bevcask.verbs import PlanConfig, VerifyConfig
from cache.test_writer import different_files
from ending import at_step

Call = Callable[..., tuple[int, str, str]]
NAME = "detectors.remembering:Remembering"


SMALL = (
    "pillar=0.8", "num_sweeps=1", "pillar_channels=8", "channels=[8,12,16]", "convs=[1,1,1]",
    "strides=[1,2,2]", "neck_channels=[8,8,8]", "head.channels=8", f"type={NAME}",
)  # fmt: skip


RAYDN = (
    "image_size_HW=[40,72]", "backbone.width=4", "channels=16", "heads=2", "feed_forward=16",
    "layers=2", "queries=12", "propagated=4", "kept=6", "memory=8", "groups=2", "points=3",
    "image_channels=8", "history=1",
)  # fmt: skip
SIZES = {"centerpoint_tiny": SMALL, "raydn_tiny": RAYDN}
KINDS = ["centerpoint_tiny", pytest.param("raydn_tiny", marks=pytest.mark.slow)]


def words(world: Path, role: str, split: str, kind: str = "centerpoint_tiny") -> list[str]:
    return [
        f"{role}={kind}",
        *(f"{role}.detector.{key}" for key in SIZES[kind]),
        "trust_code=true",
        "dataset=synthetic",
        f"dataset.root={world}",
        f"dataset.split={split}",
        "loader.num_workers=0",
        "device=cpu",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_on_windows_and_is_scored_in_lanes(
    kind: str, tiny_world: Path, call: Call, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trained = [*words(tiny_world, "student", "synthetic_train", kind), "trainer=tiny"]
    trained.append("method=none")
    steps = ["trainer.max_steps=2", "loader.batch_size=2", "trainer.warmup_steps=1", f"run={run}"]
    code, _, err = call("student-distill", *trained, *steps)
    assert code == 0, err
    weights = run / "student.safetensors"
    scored = [*words(tiny_world, "student", "all", kind), f"student.checkpoint={weights}"]
    found: list[Any] = []
    for width in (1, 2):
        place = tmp_path / f"scores{width}"
        code, _, err = call("evaluate", *scored, f"loader.batch_size={width}", f"run={place}")
        assert code == 0, err
        found.append(sorted((place / "nuscenes").rglob("results_nusc.json"))[0].read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_kept_when_training_stops_in_the_middle_of_a_scene(
    kind: str, tiny_world: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a validation between two frames, or the average of weights, disturb it."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    method = ["method=none"]
    if kind == "raydn_tiny":
        method = ["method=harmodistill", "method.denoising=true"]
        method.append(f"cache={levels_and_boxes(tiny_world, call, tmp_path, method)}")
    trained = [
        *words(tiny_world, "student", "all", kind),
        *method,
        *("trainer=tiny", "trainer.max_steps=2", "trainer.warmup_steps=1"),
        *(
            "trainer.ema=0.9",
            "trainer.accumulate=2",
            "loader.order=scenes",
            "loader.batch_size=2",
            "--json",
        ),
    ]
    scored = [f"val.root={tiny_world}", "val.version=v1.0-synthetic", "val.split=synthetic_val"]
    val = [*scored, "trainer.validate_every=1"]
    code, out, err = call("student-distill", *trained, *val, f"run={whole}")
    assert code == 0, err
    assert (json.loads(out)["order"], json.loads(out)["draws_per_epoch"]) == ("scenes", 6)
    with monkeypatch.context() as patch:
        at_step(patch, 0, signal.SIGINT)
        assert call("student-distill", *trained, f"run={cut}")[0] == 130
    last = cut / "checkpoints" / "last.ckpt"
    kept = torch.load(last, weights_only=True)["stream"]
    assert kept["memory"]
    assert {len(own) for own in kept["memory"].values()} == {len(kept["tokens"])} == {2}
    others = ["loader.num_workers=1"] if kind == "raydn_tiny" else []
    code, _, err = call("student-distill", *trained, *others, f"run={cut}")
    assert code == 0, err
    one, other = (
        torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (whole, cut)
    )
    assert one["stream"]["tokens"] == other["stream"]["tokens"]
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part]), part
    for name, value in one["stream"]["memory"].items():
        assert torch.equal(value, other["stream"]["memory"][name]), name
    windows = [word for word in trained if word != "loader.order=scenes"]
    code, _, err = call("student-distill", *windows, f"run={cut}")
    assert code == 2
    assert "loader.order: was scenes, now frames" in err


def levels_and_boxes(world: Path, call: Call, folder: Path, method: list[str]) -> Path:
    url = folder / "taught.zarr"
    taught = words(world, "teacher", "all", "raydn_tiny")
    code, _, err = call("teacher-extract", url, *taught, *method, "store.shard_rows=2")
    assert code == 0, err
    return url


def test_it_teaches_scene_by_scene(tiny_world: Path, call: Call, tmp_path: Path) -> None:
    one, two = tmp_path / "one.zarr", tmp_path / "two.zarr"
    taught = [*words(tiny_world, "teacher", "all"), "store.codec=float32", "store.shard_rows=2"]
    method = ["method=distillbev", "seed=5"]
    for url, width in ((one, 1), (two, 2)):
        code, _, err = call("teacher-extract", url, *taught, *method, f"loader.batch_size={width}")
        assert code == 0, err
    assert different_files(one, two) == []
    again = [*words_for(VerifyConfig, taught), "seed=5", "--json"]
    code, _, err = call("verify", one, "resample=1", *again)
    assert code == 2
    assert "whole scenes" in err
    code, out, err = call("verify", one, "windows=6", "teacher.history=1", *again)
    assert code == 0, err
    gap = json.loads(out)["windows"]["bev.neck"]
    assert gap["frames"] == 2  # of three a scene: two have all of it in their window
    assert gap["begun"] < 1e-6
    assert gap["l2"] > 1e-4
    assert gap["cosine"] < 1
    code, _, err = call("teacher-extract", one, *taught, *method, "teacher.memory=window")
    assert code == 2
    assert "memory.policy" in err
    student = [*words(tiny_world, "student", "all"), *taught[:-2], "teacher.memory=window"]
    student += ["method=distillbev", "trainer=tiny", "dry_run=true"]
    code, _, err = call("student-distill", one, *student)
    assert (code, "memory.policy" in err) == (2, True)


@pytest.mark.slow
def test_a_window_can_be_asked_about_alone(tiny_world: Path, call: Call, tmp_path: Path) -> None:
    url = tmp_path / "window.zarr"
    taught = [*words(tiny_world, "teacher", "all"), "store.codec=float32", "store.shard_rows=2"]
    windows = [*taught, "method=distillbev", "seed=5", "teacher.memory=window"]
    probed = [*words_for(PlanConfig, words(tiny_world, "student", "all")), "probe=1", "--json"]
    code, out, err = call("plan", *words_for(PlanConfig, windows), *probed)
    assert code == 0, err
    planned = json.loads(out)
    assert planned["probed_frames"] == 1
    assert planned["teacher_passes"] == 3 * planned["frames"] == 18
    assert {row["context"] for row in planned["targets"]} == {"window of 2"}
    code, _, err = call("teacher-extract", url, *windows, "loader.batch_size=4")
    assert code == 0, err
    again = [*words_for(VerifyConfig, taught), "seed=5", "--json"]
    code, out, err = call("verify", url, "resample=3", *again)
    assert code == 0, err
    assert json.loads(out)["ok"]
    code, out, err = call("inspect", url, "--json")
    assert json.loads(out)["targets"][0]["context"] == "window of 2"
    code, _, err = call(
        "verify", url, "resample=1", *again, "teacher.memory=window", "teacher.history=1"
    )
    assert (code, "memory.history" in err) == (2, True)
    code, _, err = call("verify", url, "windows=1", *again)
    assert (code, "memory window" in err) == (2, True)


def test_it_cannot_be_asked_out_of_order(tiny_world: Path, call: Call, tmp_path: Path) -> None:
    taught = words(tiny_world, "teacher", "all")
    online = [*taught, "student=bevdepth_tiny", "targets=online"]
    code, _, err = call("student-distill", *online, "trainer=tiny", f"run={tmp_path}")
    assert code == 2
    assert "this teacher remembers the frames before" in err
    probe = [*words_for(PlanConfig, taught), "student=bevdepth_tiny", "probe=1"]
    code, _, err = call("plan", *probe)
    assert (code, "this one remembers whole scenes" in err) == (2, True)

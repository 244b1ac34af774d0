"""Two ranks on the CPU are one process with twice the batch: trained, resumed, validated, ended."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from time import monotonic, sleep
from typing import Any

import pytest
import torch

from bevcask.compose import words_for
from bevcask.signals import exit_code
from bevcask.verbs import ExtractConfig
from command_words import last_of_each_key
from ending import at_step
from small_student import STUDENT
from two_ranks import TwoRanks, calm

Call = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.slow

STEPS = 20
FRAMES = ("dataset=synthetic", "dataset.split=all", "loader.num_workers=0", "device=cpu")
FUSION = ("image_size_HW=[64,96]", "image_channels=16", "decoder_channels=[8,12,16]")
RAYDN = (
    "image_size_HW=[40,72]", "backbone.width=4", "channels=16", "heads=2", "feed_forward=16",
    "layers=2", "queries=12", "propagated=4", "kept=6", "memory=8", "groups=2", "points=3",
    "image_channels=8",
)  # fmt: skip
HARMO = (
    "experiment=tiny_harmodistill",
    *(f"student.detector.{key}" for key in RAYDN),
    *(f"teacher.detector.{key}" for key in RAYDN),
    "augment.image_size_HW=[40,72]",
)
NO_NOISE = ("student.detector.denoising.groups=0", "student.detector.denoising.ray_draws=0")
DENOISING = "harmodistill with denoising"  # whose boxes' gradients are 1e4 at the range's border
HARMO_PLAIN = "harmodistill"
# Steps are small: what floats round, norms and kinks of an untrained network amplify.
METHODS = {
    "none": (*STUDENT, "method=none"),
    "distillbev": (*STUDENT, "teacher=centerpoint_tiny", "method=distillbev"),
    "tigdistill": (
        "experiment=tiny_tigdistill",
        "student=bevdepth_tiny",
        "method.keypoints=6",
        "student.detector.image_size_HW=[64,96]",
        "augment.image_size_HW=[64,96]",
    ),
    "simdistill": (
        "experiment=tiny_simdistill",
        *(f"{role}.detector.{key}" for role in ("student", "teacher") for key in FUSION),
        "augment.image_size_HW=[64,96]",
    ),
    "focaldistiller": ("experiment=tiny_focaldistiller",),
    "fd3d": ("experiment=tiny_fd3d",),
    HARMO_PLAIN: (*HARMO, *NO_NOISE),
    DENOISING: (*HARMO, "method.denoising=true"),
}


@pytest.fixture(scope="session")
def two_ranks(bevcask_home: Path) -> Iterator[TwoRanks]:
    with TwoRanks() as ranks:
        yield ranks


@pytest.fixture(autouse=True)
def calm_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    calm(monkeypatch)


def training(method: str, world: Path, *more: str) -> list[str]:
    return [
        "student-distill",
        *METHODS[method],
        *FRAMES,
        f"dataset.root={world}",
        "trainer.schedule=constant",
        f"trainer.lr={5e-7 if method in (HARMO_PLAIN, DENOISING) else 2e-5}",
        "trainer.warmup_steps=2",
        "trainer.log_every=1",
        "trainer.sync_batchnorm=true",
        f"trainer.max_steps={STEPS}",
        "loader.batch_size=2",
        *more,
        "--json",
    ]


def cached(method: str, world: Path, call: Call, url: Path) -> list[str]:
    """Return the words that name a cache of what a method reads; none where it reads nothing."""
    if method == "none":
        return []
    chosen = words_for(ExtractConfig, [*METHODS[method], *FRAMES, f"dataset.root={world}"])
    code, _, err = call("teacher-extract", url, *chosen)
    assert code == 0, err
    return [f"cache={url}"]


def succeed(*answers: tuple[int, str, str]) -> dict[str, Any]:
    for code, _, err in answers:
        assert code == 0, err
    result: dict[str, Any] = json.loads(answers[0][1])
    assert not any(out for _, out, _ in answers[1:])
    return result


def last(run: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return saved


def logged(run: Path) -> dict[int, dict[str, float]]:
    """Return what was logged of each step, whatever sitting it was made in."""
    found: dict[int, dict[str, float]] = {}
    for log in sorted(run.glob("logs/csv/sitting_*/metrics.csv")):
        with log.open() as file:
            for row in csv.DictReader(file):
                own = {k: float(v) for k, v in row.items() if k.startswith("train/") and v}
                if own:
                    found[int(row["step"])] = own
    return found


def assert_close(one: Path, other: Path, stopped: int = -1, within: float = 1e-5) -> None:
    """Compare losses and weights; what was logged of the step that a signal stopped is not kept."""
    ours, theirs = logged(one), logged(other)
    theirs.pop(stopped, None)
    assert ours.keys() == theirs.keys()
    for step, values in theirs.items():
        norm = values.pop("train/grad_norm")  # a float32 sum of what kinks and norms amplify
        assert ours[step].pop("train/grad_norm") == pytest.approx(norm, rel=1e-2), step
        assert ours[step] == pytest.approx(values, rel=within, abs=within), step
    ours, theirs = last(one)["state_dict"], last(other)["state_dict"]
    assert ours.keys() == theirs.keys()
    gaps = {
        name: float(((ours[name] - own).double() / (1 + own.double().abs())).abs().max())
        for name, own in theirs.items()
    }
    worst = max(gaps, key=gaps.__getitem__)
    assert gaps[worst] <= within, (worst, gaps[worst])


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_are_one_with_twice_the_batch(
    method: str, tiny_world: Path, two_ranks: TwoRanks, call: Call, tmp_path: Path
) -> None:
    words = training(method, tiny_world, *cached(method, tiny_world, call, tmp_path / "cache"))
    succeed(*two_ranks(*words, f"run={tmp_path / 'two'}"))
    result = succeed(call(*words, "loader.batch_size=4", f"run={tmp_path / 'one'}"))
    assert result["step"] == STEPS
    assert len(logged(tmp_path / "one")) == STEPS
    within = 1e-4 if method == DENOISING else 1e-5
    assert_close(tmp_path / "two", tmp_path / "one", within=within)


@pytest.mark.parametrize(
    ("method", "more"),
    [("distillbev", ("trainer.ema=0.9", "trainer.accumulate=2")), ("harmodistill", ())],
)
def test_a_run_goes_on_with_another_number_of_ranks(
    method: str,
    more: tuple[str, ...],
    tiny_world: Path,
    two_ranks: TwoRanks,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in the middle of a scene, by a signal to one rank alone; memory is carried on."""
    words = training(method, tiny_world, *cached(method, tiny_world, call, tmp_path / "cache"))
    words += [*more, "trainer.max_steps=5", "trainer.warmup_steps=1"]
    alone = [*words, "loader.batch_size=4"]
    whole, halved, doubled = (tmp_path / name for name in ("whole", "halved", "doubled"))
    succeed(call(*alone, f"run={whole}"))

    stopped = two_ranks(*words, f"run={halved}", at_step=(1, 1, signal.SIGTERM))
    assert [code for code, _, _ in stopped] == [75, 75]
    assert all("step 2 is saved; the same command goes on" in err for _, _, err in stopped)
    succeed(call(*alone, f"run={halved}"))
    assert_close(halved, whole, stopped=1)

    with monkeypatch.context() as patch:
        at_step(patch, 1, signal.SIGUSR1)
        assert call(*alone, f"run={doubled}")[0] == 75
    succeed(*two_ranks(*words, f"run={doubled}"))
    assert_close(doubled, whole, stopped=1)
    code, _, err = call(*words, f"run={doubled}")
    assert code == 2
    assert "loader.batch_size: was 4, now 2" in err


def validated(world: Path) -> list[str]:
    return [f"val.root={world}", "val.version=v1.0-synthetic", "val.split=all"]


@pytest.mark.parametrize("method", ["none", "harmodistill"])
def test_official_numbers_are_those_of_one_process(
    method: str, tiny_world: Path, two_ranks: TwoRanks, call: Call, tmp_path: Path
) -> None:
    run, scores = tmp_path / "run", tmp_path / "scores"
    words = training(method, tiny_world, *cached(method, tiny_world, call, tmp_path / "cache"))
    steps = ["trainer.max_steps=3", "trainer.warmup_steps=1", "trainer.validate_every=1"]
    result = succeed(*two_ranks(*words, *steps, *validated(tiny_world), f"run={run}"))
    assert sorted(path.name for path in (run / "validation").iterdir()) == [
        f"step_{step:06d}" for step in (1, 2, 3)
    ]
    code, _, err = call(
        "evaluate",
        *FRAMES,
        f"dataset.root={tiny_world}",
        "loader.batch_size=2",
        f"student.checkpoint={run / 'student.safetensors'}",
        f"run={scores}",
    )
    assert code == 0, err
    own = run / "validation" / f"step_{result['step']:06d}"
    [ours], [theirs] = (list(at.rglob("results_nusc.json")) for at in (own, scores))
    assert json.loads(ours.read_bytes()) == json.loads(theirs.read_bytes())
    one, other = (
        json.loads(path.read_text()) for path in (own / "metrics.json", scores / "evaluation.json")
    )
    for key in ("mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE", "per_class"):
        assert one[key] == other[key], key


def started(words: list[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "bevcask", *last_of_each_key(*words), "trainer.devices=2"]
    return subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True)


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    until = monotonic() + 120
    while not path.exists() and process.poll() is None and monotonic() < until:
        sleep(0.2)
    assert path.exists(), process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_processes_started_here_end_together(
    number: signal.Signals, tiny_world: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = training("none", tiny_world, "trainer.checkpoint_every=1", f"run={run}")
    process = started([*words, "trainer.max_steps=2000"])
    wait_for(run / "checkpoints" / "last.ckpt", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == exit_code(number), err
    assert out == ""
    assert err.count("is saved; the same command goes on from there") == 1
    assert f"step {last(run)['global_step']} is saved" in err


def test_an_error_of_one_process_ends_all_and_is_said_once(
    tiny_world: Path, own_world: Path, tmp_path: Path
) -> None:
    for sweep in sorted((own_world / "samples" / "LIDAR_TOP").iterdir())[:1]:
        sweep.write_bytes(b"short")
    process = started(training("none", own_world, f"run={tmp_path / 'run'}"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert (out, err.count("error:")) == ("", 1)
    assert "Traceback" not in err


def test_a_process_that_is_killed_ends_all(tiny_world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = training("none", tiny_world, "trainer.checkpoint_every=1", f"run={run}")
    process = started([*words, "trainer.max_steps=2000"])
    wait_for(run / "checkpoints" / "last.ckpt", process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [
        int(child)
        for child in children
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()
    ]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert "was killed" in err
    assert "Traceback" not in err
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)

"""A run that was stopped goes on as if it had not been, averages and half-made steps included."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bevcask.signals import exit_code
from ending import Killed, at_step
from small_student import STUDENT

Call = Callable[..., tuple[int, str, str]]
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "random", "global_step")
PLAIN = (
    "trainer.warmup_steps=1",
    "trainer.schedule=one_cycle",
    "trainer.cycle_momentum=[0.95,0.85]",
)
PUBLISHED = (
    "trainer.accumulate=2",
    "trainer.ema=0.9",
    "trainer.warmup_steps=1",
    "trainer.schedule=step",
    "trainer.milestones=[2,4]",
    "loader.batch_size=1",
)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(PLAIN, id="plain", marks=pytest.mark.slow),
        pytest.param(PUBLISHED, id="published"),
    ],
)
def finished(
    request: pytest.FixtureRequest,
    tiny_world: Path,
    cached_world: Path,
    call: Call,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[str], dict[str, Any]]:
    """A distilled student: its run, the command, the printed result."""
    run = tmp_path_factory.mktemp("runs") / "distilled"
    command = [
        "student-distill",
        str(cached_world),
        "method=distillbev",
        *STUDENT,
        "dataset=synthetic",
        f"dataset.root={tiny_world}",
        "dataset.split=synthetic_train",
        f"val.root={tiny_world}",
        "val.version=v1.0-synthetic",
        "val.split=synthetic_val",
        "augment.bev_flip_x=true",
        "trainer.max_steps=5",
        "trainer.validate_every=2",
        "trainer.checkpoint_every=2",
        "trainer.log_every=1",
        *request.param,
        f"run={run}",
        "--json",
    ]
    code, out, err = call(*command)
    assert code == 0, err
    return run, command, json.loads(out)


@pytest.mark.parametrize(
    ("step", "end"),
    [
        pytest.param(0, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGTERM, marks=pytest.mark.slow),
        (3, Killed),
    ],
)
def test_ended_early_and_resumed_equals_uninterrupted(
    step: int,
    end: signal.Signals | type[BaseException],
    finished: tuple[Path, list[str], dict[str, Any]],
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, command, result = finished
    command = [word if not word.startswith("run=") else f"run={tmp_path}" for word in command]
    with monkeypatch.context() as patch:
        at_step(patch, step, end)
        if isinstance(end, signal.Signals):
            code, _, err = call(*command)
            assert code == exit_code(end)
            assert f"step {step + 1} is saved; the same command goes on from there" in err
        else:
            with pytest.raises(Killed):
                call(*command)
    last = tmp_path / "checkpoints" / "last.ckpt"
    kept = step + 1 if isinstance(end, signal.Signals) else 2
    assert torch.load(last, weights_only=True)["global_step"] == kept
    code, out, err = call(*command)
    assert code == 0, err
    assert_same_training(tmp_path, whole)
    again = json.loads(out)
    assert {**again, **timeless(tmp_path)} == {**result, **timeless(tmp_path)}


def timeless(run: Path) -> dict[str, Any]:
    return {"seconds_per_step": 0, "loader_share": 0, "wall_time": 0, "weights": str(run)}


def assert_same_training(one: Path, other: Path) -> None:
    """Weights, optimizer, schedule, random state and validation are equal bit for bit."""
    ours, theirs = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other)
    )
    averages = [part for part in ("current_model_state", "averaging_state") if part in theirs]
    for part in (*PARTS, *averages):
        assert_same(ours[part], theirs[part], part)
    for step in ("step_000002", "step_000004", "step_000005"):
        ours, theirs = (
            (run / "validation" / step / "results_nusc.json").read_bytes() for run in (one, other)
        )
        assert ours == theirs, step


def assert_same(one: Any, other: Any, where: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}.{number}")
    else:
        assert one == other, where


def test_the_average_is_what_is_kept_and_exported(
    finished: tuple[Path, list[str], dict[str, Any]],
) -> None:
    run, command, _ = finished
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert ("averaging_state" in last) == ("trainer.ema=0.9" in command)
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    exported = load_file(run / "student.safetensors")
    for name, tensor in exported.items():
        assert torch.equal(tensor, best["state_dict"][f"student.{name}"]), name

"""One folder, one run: whatever the environment holds, whatever ended it, wherever it has moved."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from bevcask.signals import ASKED
from bevcask.training import keeper
from bevcask.training.module import Distillation
from ending import Killed, at_step
from small_student import STUDENT

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def words(tiny_world: Path, tmp_path: Path) -> list[str]:
    """A short training without a teacher into `tmp_path/run`."""
    return [
        "student-distill",
        *STUDENT,
        "method=none",
        "dataset=synthetic",
        f"dataset.root={tiny_world}",
        "dataset.split=synthetic_train",
        "trainer.max_steps=2",
        "trainer.warmup_steps=1",
        "trainer.schedule=constant",
        f"run={tmp_path / 'run'}",
        "--json",
    ]


@pytest.fixture
def validated(words: list[str], tiny_world: Path) -> list[str]:
    """The same with a validation after each step."""
    val = [f"val.root={tiny_world}", "val.version=v1.0-synthetic", "val.split=synthetic_val"]
    return [*words, *val, "trainer.validate_every=1"]


def last(run: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return saved


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = last(one)["state_dict"], last(other)["state_dict"]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def succeed(answer: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = answer
    assert code == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


def test_variables_of_a_slurm_allocation_change_nothing(
    words: list[str], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no file that Lightning would go on from by itself does, with resume=false."""
    before = signal.getsignal(signal.SIGUSR1)
    succeed(call(*words))
    plain, run = tmp_path / "plain", tmp_path / "run"
    shutil.copytree(run, plain)
    for name, value in {"NTASKS": "2", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for folder in (run, run / "logs", run / "checkpoints"):
        shutil.copy(plain / "checkpoints" / "last.ckpt", folder / "hpc_ckpt_1.ckpt")
    result = succeed(call(*words, "resume=false"))
    assert result["step"] == 2
    assert list((run / "logs" / "csv").iterdir()) == [run / "logs" / "csv" / "sitting_0"]
    assert_same_weights(run, plain)
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize(
    ("variables", "key", "said"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "devices=4", "of the launcher (RANK=0 of WORLD_SIZE=2)"),
        ({"WORLD_SIZE": "2"}, "devices=2", "no RANK says which one this is"),
        ({}, "nodes=2", "started by torchrun on each of them, or by srun"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "5"}, "nodes=1", "none of SLURM_STEP"),
    ],
)
def test_processes_that_contradict_themselves_are_refused_at_once(
    variables: dict[str, str],
    key: str,
    said: str,
    words: list[str],
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, _, err = call(*words, f"trainer.{key}")
    assert code == 2
    assert said in err
    assert not (tmp_path / "run").exists()


def test_logs_are_written_whatever_rank_lightning_believes_in(
    words: list[str], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    succeed(call(*words))
    assert (tmp_path / "run" / "logs" / "csv" / "sitting_0" / "metrics.csv").is_file()


def test_an_evaluation_does_not_end_a_training(
    words: list[str],
    cached_world: Path,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 0, signal.SIGTERM)
        code, _, err = call(*words)
    assert code == 75
    assert "step 1 is saved" in err
    scored = succeed(call("evaluate", str(cached_world), f"run={tmp_path / 'run'}", "--json"))
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == scored
    result = succeed(call(*words))
    assert result["step"] == 2
    assert last(tmp_path / "run")["global_step"] == 2


def test_a_second_signal_is_nobodys(
    words: list[str], call: Call, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It ends the process as the system does, at once."""
    found = []

    def train_on(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        found.extend(map(signal.getsignal, ASKED))

    monkeypatch.setattr(keeper.Keeper, "on_train_start", train_on)
    before = signal.getsignal(signal.SIGINT)
    assert call(*words)[0] == 130
    assert found == [signal.SIG_DFL] * 3
    assert "SIGINT: stopping at the end of this step" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) == before


def test_a_moved_run_keeps_its_best(
    validated: list[str], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.4, 0.3, 0.2])

    def score(self: Any, *arguments: Any) -> dict[str, Any]:
        return {"NDS": next(scores), "mAP": 0.1}

    monkeypatch.setattr("bevcask.evaluation.nuscenes.Evaluation.score", score)
    words = [*validated, "trainer.max_steps=3"]
    with monkeypatch.context() as patch:
        at_step(patch, 1, Killed)
        with pytest.raises(Killed):
            call(*words)
    moved = shutil.move(tmp_path / "run", tmp_path / "moved")
    result = succeed(call(*words, f"run={moved}"))
    assert (result["step"], result["NDS"]) == (1, 0.4)
    assert last(moved)["global_step"] == 3


def test_a_validation_that_fails_costs_no_step_and_is_made_up_for(
    validated: list[str], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = succeed(call(*validated))
    run = Path(shutil.move(tmp_path / "run", tmp_path / "whole"))
    with monkeypatch.context() as patch:
        calls = []

        def detect(*arguments: Any, **named: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                raise Killed
            return found(*arguments, **named)

        found = keeper.detect
        patch.setattr(keeper, "detect", detect)
        with pytest.raises(Killed):
            call(*validated)
    assert last(tmp_path / "run")["global_step"] == 2
    again = succeed(call(*validated))
    for name in ("NDS", "mAP", "step", "per_class"):
        assert again[name] == whole[name]
    assert_same_weights(tmp_path / "run", run)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("val.version=v1.0-syn", "Check val.root and val.version"),
        ("val.split=valid", "val.split=valid: no such split"),
        ("val.scenes=[scene-1]", "val.scenes for"),
    ],
)
def test_a_dry_run_selects_the_validation_frames_and_names_their_keys(
    word: str, named: str, validated: list[str], call: Call
) -> None:
    code, _, err = call(*validated, word, "dry_run=true")
    assert code == 2
    assert named in err
    assert "dataset.root" not in err


def test_a_damaged_checkpoint_is_told_and_the_one_before_goes_on(
    validated: list[str], call: Call, tmp_path: Path
) -> None:
    whole = succeed(call(*validated))
    run = tmp_path / "run"
    for name in ("metrics.json", "checkpoints/best.ckpt"):
        (run / name).unlink()
    saved = run / "checkpoints" / "last.ckpt"
    saved.write_bytes(saved.read_bytes()[:-20])
    code, _, err = call(*validated)
    assert code == 2
    assert "last.ckpt: damaged" in err
    assert "last.previous.ckpt, is whole and of step 1. Remove last.ckpt" in err
    saved.unlink()
    again = succeed(call(*validated))
    for name in ("NDS", "mAP", "step", "per_class"):
        assert again[name] == whole[name]


def test_a_missing_validation_file_is_found_before_the_first_step(
    validated: list[str], own_world: Path, call: Call, tmp_path: Path
) -> None:
    lost = sorted((own_world / "samples" / "LIDAR_TOP").iterdir())[-1]
    lost.unlink()
    code, _, err = call(*validated, f"val.root={own_world}")
    assert code == 2
    assert f"{lost}: missing, of frame" in err
    assert "val.root" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("config", [None, '{"hidden_size": 4}'])
def test_only_a_run_of_ours_is_cleared(
    config: str | None, words: list[str], call: Call, tmp_path: Path
) -> None:
    mine = tmp_path / "run" / "checkpoints" / "mine.bin"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"precious")
    if config is not None:
        (tmp_path / "run" / "config.json").write_text(config)
    code, _, err = call(*words, "resume=false")
    assert code == 2
    assert "no config.json that bevcask wrote: nothing was removed" in err
    assert mine.read_bytes() == b"precious"


def test_steps_are_raised_where_the_schedule_allows(
    words: list[str], call: Call, tmp_path: Path
) -> None:
    assert succeed(call(*words))["step"] == 2
    assert succeed(call(*words, "trainer.max_steps=4"))["step"] == 4
    longer = shutil.move(tmp_path / "run", tmp_path / "longer")
    assert succeed(call(*words, "trainer.max_steps=4"))["step"] == 4
    assert_same_weights(tmp_path / "run", longer)
    code, _, err = call(*words, "trainer.max_steps=3")
    assert code == 2
    assert "was 4, now 3: steps that were made are not unmade" in err


def test_steps_are_not_raised_where_the_past_would_have_been_another(
    words: list[str], call: Call, tmp_path: Path
) -> None:
    cosine = [*words, "trainer.schedule=cosine"]
    succeed(call(*cosine))
    code, _, err = call(*cosine, "trainer.max_steps=4")
    assert code == 2
    assert "trainer.schedule=cosine falls towards the last step" in err
    assert "student.safetensors starts another run" in err
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_once(
    words: list[str], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    saved = keeper.Keeper.on_train_batch_end

    def counted(self: Any, trainer: Any, *arguments: Any) -> None:
        steps.append(trainer.global_step)
        monkeypatch.setattr(os, "fsync", refuse)
        saved(self, trainer, *arguments)

    def refuse(descriptor: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(keeper.Keeper, "on_train_batch_end", counted)
    code, _, err = call(*words, "trainer.checkpoint_every=1")
    assert code == 2
    assert "last.ckpt: cannot write the checkpoint (Permission denied)" in err
    assert steps == [1]


@pytest.mark.parametrize(
    ("step", "kept"), [(0, "None is saved."), (1, "The last checkpoint is intact.")]
)
def test_a_loss_that_is_no_number_names_its_frames_and_what_is_saved(
    step: int, kept: str, words: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = Distillation.losses

    def broken(self: Distillation, *arguments: Any) -> dict[str, torch.Tensor]:
        found = losses(self, *arguments)
        return {k: v * torch.nan for k, v in found.items()} if self.global_step == step else found

    monkeypatch.setattr(Distillation, "losses", broken)
    code, _, err = call(*words, "trainer.checkpoint_every=1", "trainer.log_every=1")
    assert code == 2
    assert re.search(
        rf"step {step}: .* not finite; the batch is of frames \w{{32}}, \w{{32}}\.", err
    )
    assert err.strip().endswith(kept)


def test_a_training_checkpoint_is_scored_as_the_student_in_it(
    validated: list[str], tiny_world: Path, call: Call, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trained = succeed(call(*validated, "trainer.max_steps=1"))
    scored = succeed(
        call(
            "evaluate",
            f"student.checkpoint={run / 'checkpoints' / 'last.ckpt'}",
            "dataset=synthetic",
            f"dataset.root={tiny_world}",
            "dataset.split=synthetic_val",
            "loader.num_workers=0",
            f"run={run}",
            "--json",
        )
    )
    assert scored["NDS"] == trained["NDS"]
    assert scored["per_class"] == trained["per_class"]

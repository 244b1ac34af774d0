"""Which frames a student is trained on, and in which order, from the command line."""

import json
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ending import at_step
from small_student import STUDENT

Call = Callable[..., tuple[int, str, str]]

SMALL = (
    *STUDENT,
    "method=distillbev",
    "trainer.max_steps=4",
    "trainer.checkpoint_every=1",
)


def words(world: Path, cache: Path, run: Path, *more: object) -> list[str]:
    return [
        "student-distill",
        f"cache={cache}",
        *SMALL,
        "dataset=synthetic",
        f"dataset.root={world}",
        "dataset.split=all",
        f"run={run}",
        "--json",
        *map(str, more),
    ]


def result(answer: tuple[int, str, str]) -> dict[str, Any]:
    assert answer[0] == 0, answer[2]
    found: dict[str, Any] = json.loads(answer[1])
    return found


@pytest.fixture(scope="module")
def half_cache(
    tiny_world: Path, checkpoint: Path, call: Call, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A cache of the training scene alone: 3 of 6 frames."""
    url = tmp_path_factory.mktemp("half") / "half.zarr"
    code, _, err = call(
        "teacher-extract",
        str(url),
        "teacher=centerpoint_tiny",
        f"teacher.checkpoint={checkpoint}",
        "dataset=synthetic",
        f"dataset.root={tiny_world}",
        "dataset.split=synthetic_train",
        "loader.num_workers=0",
    )
    assert code == 0, err
    return url


def test_missing_frames_are_refused_with_their_number(
    tiny_world: Path, half_cache: Path, tmp_path: Path, call: Call
) -> None:
    code, out, err = call(*words(tiny_world, half_cache, tmp_path / "run"))
    assert (code, out) == (2, "")
    assert "3 of 6 selected frames" in err
    assert "on_missing=skip" in err


def test_skipped_frames_are_said_and_recorded(
    tiny_world: Path,
    half_cache: Path,
    tmp_path: Path,
    call: Call,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        found = result(call(*words(tiny_world, half_cache, run, "on_missing=skip")))
    assert (found["frames"], found["skipped_frames"]) == (3, 3)
    assert json.loads((run / "metrics.json").read_text())["skipped_frames"] == 3
    assert any("3 of 6 selected frames" in record.message for record in caplog.records)


def test_windows_need_a_cache(tiny_world: Path, cached_world: Path, call: Call) -> None:
    given = words(tiny_world, cached_world, Path("unused"), "loader.shuffle=window")
    given = [word for word in given if not word.startswith(("cache=", "method="))]
    code, _, err = call(*given, "method=none", "dry_run=true")
    assert code == 2
    assert "loader.shuffle=full" in err


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(("loader.sampler=cbgs",), marks=pytest.mark.slow),
        pytest.param(
            ("loader.sampler=cbgs", "loader.shuffle=window", "loader.window=2"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["cbgs", "cbgs-window"],
)
def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(
    keys: tuple[str, ...],
    tiny_world: Path,
    cached_world: Path,
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert result(call(*words(tiny_world, cached_world, whole, *keys)))["step"] == 4
    with monkeypatch.context() as patch:
        at_step(patch, 1, signal.SIGINT)
        assert call(*words(tiny_world, cached_world, cut, *keys))[0] == 130
    assert result(call(*words(tiny_world, cached_world, cut, *keys)))["step"] == 4
    one, other = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (whole, cut)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_the_order_decides_the_weights(
    tiny_world: Path, cached_world: Path, tmp_path: Path, call: Call
) -> None:
    """Or the test above would pass with any order."""
    seen = []
    for number, key in enumerate(("uniform", "cbgs")):
        run = tmp_path / str(number)
        result(call(*words(tiny_world, cached_world, run, f"loader.sampler={key}")))
        seen.append(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    assert any(not torch.equal(seen[0][name], seen[1][name]) for name in seen[0])


def test_the_result_says_how_long_an_epoch_is(
    tiny_world: Path, cached_world: Path, tmp_path: Path, call: Call
) -> None:
    given = words(tiny_world, cached_world, tmp_path / "run", "dry_run=true")
    assert result(call(*given))["draws_per_epoch"] == 6
    assert result(call(*given, "loader.sampler=cbgs"))["draws_per_epoch"] > 6

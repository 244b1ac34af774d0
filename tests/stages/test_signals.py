"""A scheduler ends extractions, trainings and verifications at random moments: exit code 75."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bevcask.cache.verify_bytes import verify
from bevcask.signals import TRY_AGAIN
from cache.test_writer import different_files
from command_words import last_of_each_key
from small_student import STUDENT

PATIENCE = 30  # seconds from a signal to the end


def start(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bevcask.cli", *last_of_each_key(*words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)


def ended(process: subprocess.Popen[bytes], number: signal.Signals, wait: float) -> int | None:
    """Send a signal `wait` seconds after the first word; return the exit code, None if over."""
    with process:
        assert process.stderr is not None
        process.stderr.readline()
        time.sleep(wait)
        if process.poll() is not None:
            return None
        process.send_signal(number)
        begin = time.monotonic()
        said = process.stderr.read().decode()
        code = process.wait(timeout=PATIENCE)
    assert time.monotonic() - begin < PATIENCE
    assert "Traceback" not in said, said
    return code


def whole(process: subprocess.Popen[bytes]) -> float:
    """Return how long a process lasts after its first word."""
    with process:
        assert process.stderr is not None
        process.stderr.readline()
        begin = time.monotonic()
        said = process.stderr.read().decode()
    assert process.returncode == 0, said
    return time.monotonic() - begin


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_an_extraction_loses_nothing(
    seed: int, teacher_words: list[str], cached_world: Path, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    words = [*teacher_words, "store.shard_rows=1", "teacher.checkpoint=random"]  # says so at first
    lasts = whole(start("teacher-extract", tmp_path / "whole.zarr", *words))
    url, codes = tmp_path / "cache.zarr", []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process = start("teacher-extract", url, *words)
        code = ended(process, number, draw.uniform(0, 0.3 * lasts))
        codes += [] if code is None else [code]
        if (url / "zarr.json").is_file():
            left = {problem.what for problem in verify(str(url)).problems}
            assert all("not sealed" in what or "left over" in what for what in left), left
    assert TRY_AGAIN in codes
    assert set(codes) <= {TRY_AGAIN, 0}  # over before it was asked to end
    whole(start("teacher-extract", url, *words))
    assert not different_files(url, tmp_path / "whole.zarr")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("seed", range(4))
def test_a_training_saves_its_step(
    seed: int, number: signal.Signals, tiny_world: Path, cached_world: Path, tmp_path: Path
) -> None:
    words = [cached_world, *STUDENT, f"dataset.root={tiny_world}", "dataset=synthetic"]
    words += ["dataset.split=synthetic_train", "method=distillbev_tiny", "trainer=tiny"]
    words += ["trainer.max_steps=40", "loader.num_workers=1", "device=cpu", f"run={tmp_path / 'r'}"]
    process = start("student-distill", *words)
    assert ended(process, number, random.Random(seed).uniform(0, 3)) == TRY_AGAIN
    whole(start("student-distill", *words))
    assert (tmp_path / "r" / "student.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("seed", range(4))
def test_a_verification_can_be_tried_again(
    seed: int, number: signal.Signals, cached_world: Path, tiny_world: Path
) -> None:
    words = ["verify", cached_world, "check=meaning", f"dataset.root={tiny_world}"]
    code = ended(start(*words), number, random.Random(seed).uniform(0, 0.1))
    assert code in (TRY_AGAIN, 0, None)  # it is over in no time
    whole(start(*words))

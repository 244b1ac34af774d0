"""Job arrays: the script that is written, who it is handed to, and what its tasks make together."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bevcask.cache.verify_bytes import verify
from cache.test_writer import different_files

Call = Callable[..., tuple[int, str, str]]
WORDS = ("teacher-extract", "my own.zarr", "teacher=centerpoint_tiny", "dataset=synthetic")


def dry(call: Call, *words: str) -> str:
    code, out, err = call("submit", *words, "--dry-run")
    assert code == 0, err
    return out


def program(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(0o755)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of one empty folder, and a folder of our own to be in."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.chdir(tmp_path)
    return programs


def test_a_script_a_shell_understands(call: Call, tmp_path: Path) -> None:
    odd = "name=a'b\"c $HOME `x`.zarr"
    own = ["slurm.tasks=16", "slurm.hours=1.51", "slurm.gpus=2", "slurm.partition=gpu"]
    file = tmp_path / "array.sh"
    file.write_text(dry(call, *WORDS, odd, *own, "slurm.options=[--qos=low]"))
    lines = file.read_text().splitlines()
    wanted = ["--array=0-15", "--time=01:31:00", "--gres=gpu:2", "--partition=gpu", "--requeue"]
    wanted += ["--signal=USR1@60", "--open-mode=append", "--qos=low"]
    assert {f"#SBATCH {option}" for option in wanted} <= set(lines)
    subprocess.run(["bash", "-n", file], check=True)
    if found := shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.defpath}"):
        subprocess.run([found, "--severity=warning", file], check=True)
    program(tmp_path, "srun", 'printf "%s\\n" "${@:5}"')
    own_programs = {"PATH": f"{tmp_path}:{os.defpath}"}
    told = subprocess.check_output(["bash", file], env=own_programs, text=True)
    assert told.splitlines() == [*WORDS[1:], odd]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teacher-extrakt"], "submit VERB ...: got 'teacher-extrakt', known: plan"),
        ([], "submit VERB ...: got ''"),
        ([*WORDS, "teacher=nobody"], "teacher=nobody: no such teacher"),
        ([*WORDS, "slurm.task=2"], "slurm.task: unknown key. Did you mean 'tasks'?"),
        ([*WORDS, "slurm.partition=a\nrm"], "slurm.partition: "),
        ([*WORDS, "slurm.options=[qos]"], "slurm.options"),
        ([*WORDS, "slurm.tasks=2", "part=1/2"], "all would do the same"),
        (["verify", "x.zarr", "slurm.tasks=2"], "all would do the same"),
    ],
)
def test_what_is_refused(words: list[str], message: str, call: Call) -> None:
    code, _, err = call("submit", *words, "--dry-run")
    assert code == 2
    assert message in err


def test_without_a_scheduler_the_script_is_left(call: Call, bare: Path) -> None:
    code, _, err = call("submit", *WORDS)
    assert code == 2
    [file] = Path("runs/slurm").iterdir()
    assert f"say `sbatch {file}`" in " ".join(err.split())
    assert file.read_text() == dry(call, *WORDS)


def test_sbatch_takes_it_or_does_not(call: Call, bare: Path) -> None:
    program(bare, "sbatch", 'echo "Submitted batch job 7"; echo "$1" > taken')
    code, out, err = call("submit", *WORDS, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["job"] == "Submitted batch job 7"
    assert Path("taken").read_text().strip() == told["file"]
    program(bare, "sbatch", 'echo "invalid partition" >&2; exit 1')
    code, _, err = call("submit", *WORDS)
    assert code == 2
    assert "invalid partition" in err


def test_submitit_is_handed_the_same_script(call: Call, bare: Path) -> None:
    pytest.importorskip("submitit")
    program(bare, "srun", "true")
    program(bare, "sbatch", '/bin/cp "$1" taken; echo "Submitted batch job 8"')
    code, out, err = call("submit", *WORDS, "--json")
    assert code == 0, err
    assert json.loads(out)["job"] == "8"
    assert Path("taken").read_text() == dry(call, *WORDS)


@pytest.mark.slow
def test_the_tasks_of_a_script_fill_one_cache(
    teacher_words: list[str], cached_world: Path, call: Call, tmp_path: Path
) -> None:
    """A first task is asked to end, and to be queued again; then both do their share."""
    url, log = tmp_path / "array.zarr", tmp_path / "requeued"
    words = [str(url), *teacher_words, "store.shard_rows=2", "slurm.tasks=2"]
    file = tmp_path / "array.sh"
    file.write_text(dry(call, "teacher-extract", *words))
    program(tmp_path, "srun", 'echo $$ > pid; exec "$@"')
    program(tmp_path, "scontrol", f'echo "$@" >> {log}')

    def task(number: int) -> subprocess.Popen[str]:
        array: dict[str, Any] = {"JOB_ID": 5, "TASK_ID": number, "TASK_MIN": 0, "TASK_COUNT": 2}
        own = {f"SLURM_ARRAY_{name}": str(value) for name, value in array.items()}
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = {**os.environ, **own, "PATH": path, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(["bash", file], cwd=tmp_path, env=environment, text=True)

    with task(0) as first:
        while not (url / "zarr.json").exists():
            assert first.poll() is None
            time.sleep(0.02)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR1)
        assert first.wait(timeout=30) == 75
    assert log.read_text() == "requeue 5_0\n"
    for number in (1, 0):
        with task(number) as again:
            assert again.wait(timeout=120) == 0
    assert different_files(url, cached_world) == []
    assert verify(str(url)).ok

"""submit: a SLURM array whose tasks share the work of a verb, and are queued again by exit code 75.

What the script says is all there is to it: `sbatch` takes it as it is.
"""

import importlib.util
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bevcask.errors import ConfigError
from bevcask.outputs import output_file
from bevcask.paths import write_whole
from bevcask.verbs import SlurmConfig

_SHARED = "teacher-extract"  # the verb that works out its part


def run(verb: str, words: Sequence[str], slurm: SlurmConfig, dry_run: bool) -> dict[str, Any]:
    """Write the script of a job array and submit it.

    Args:
        verb: what each task runs.
        words: of its command line; they have been validated.
        slurm: what is asked of the scheduler.
        dry_run: only say what the script would be.

    Returns:
        `script`, the `file` it lies in and the `job`; None both where nothing was submitted.

    Raises:
        ConfigError: tasks that would all do the same, or no way to submit; the script stays.
    """
    if slurm.tasks > 1 and (verb != _SHARED or any(word.startswith("part=") for word in words)):
        raise ConfigError(
            f"slurm.tasks={slurm.tasks}: all would do the same. Tasks share {_SHARED} without "
            "part=, by their numbers; say slurm.tasks=1."
        )
    text = script(verb, words, slurm)
    if dry_run:
        return {"script": text, "file": None, "job": None}
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    file = output_file("slurm.folder", f"{slurm.folder}/{verb}-{stamp}.sh", ".sh")
    write_whole(file, text.encode())
    return {"script": text, "file": str(file), "job": _submit(file, text)}


def script(verb: str, words: Sequence[str], slurm: SlurmConfig) -> str:
    """Return the text of an sbatch script: an array of one verb, requeued by exit code 75."""
    minutes = math.ceil(60 * slurm.hours)
    asked = {
        "job-name": f"bevcask-{verb}",
        "array": f"0-{slurm.tasks - 1}",
        "time": f"{minutes // 60:02}:{minutes % 60:02}:00",
        "gres": f"gpu:{slurm.gpus}" if slurm.gpus else None,
        "cpus-per-task": slurm.cpus,
        "mem": slurm.memory_gb and f"{slurm.memory_gb}G",
        "partition": slurm.partition,
        "account": slurm.account,
        "output": f"{slurm.folder}/%x-%A_%a.log",
        "open-mode": "append",
        "signal": "USR1@60",
    }
    lines = [f"--{key}={shlex.quote(str(value))}" for key, value in asked.items() if value]
    directives = "\n".join(f"#SBATCH {line}" for line in [*lines, "--requeue", *slurm.options])
    command = shlex.join([sys.executable, "-m", "bevcask", verb, *words])
    return f"""#!/bin/bash
{directives}

srun {command}
code=$?
if [ "$code" -eq 75 ]; then  # try again
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


def _submit(file: Path, text: str) -> str:
    """Hand a script to the scheduler; return what it answers, or the number submitit knows it by.

    Raises:
        ConfigError: there is no scheduler here, or it wants none of it.
    """
    if importlib.util.find_spec("submitit") and shutil.which("srun"):
        return _by_submitit(file.parent, text)
    if shutil.which("sbatch") is None:
        raise ConfigError(
            f"there is no sbatch here, nor submitit. The script lies at {file}: where there is "
            f"one, say `sbatch {file}`."
        )
    answer = subprocess.run(["sbatch", str(file)], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ConfigError(f"sbatch refuses {file}: {answer.stderr.strip()}")
    return answer.stdout.strip()


def _by_submitit(folder: Path, text: str) -> str:
    """Submit with submitit, which keeps an account of the job in the folder."""
    import submitit

    ours = {"_make_submission_file_text": lambda *_: text}  # not a pickled function's
    executor: Any = type("Executor", (submitit.SlurmExecutor,), ours)
    return str(executor(folder=folder)._submit_command("").job_id)


def render(result: dict[str, Any]) -> str:
    """Show the script where nothing was submitted, else what became of it."""
    if result["file"] is None:
        return str(result["script"])
    return f"{result['job']}\n{result['file']}\n"

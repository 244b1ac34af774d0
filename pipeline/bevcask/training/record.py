"""The folder of a run: its configuration, checkpoints and results, and whether it may go on.

RUN/config.json  checkpoints/{last,best}.ckpt  validation/step_N/  logs/  student.safetensors
metrics.json  lock
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bevcask.catalog import KINDS, resolve
from bevcask.errors import ConfigError, UnknownNameError
from bevcask.fingerprint import canonical, differences
from bevcask.paths import whereabouts
from bevcask.verbs import DistillConfig

# What may differ between the sittings of one run: where and how fast, never what.
_STATE = frozenset(
    {
        "run",
        "device",
        "resume",
        "dry_run",
        "sample",
        "picture",
        "out",
        "half",
        "name",
        "repair",
        "check",
        "resample",
        "equivariance",
    }
)
_SHOWN = 5
_PATIENCE_SECONDS = 10.0  # loader workers of a killed run hold its lock until they notice


class RunFolder:
    """Paths of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.validation = path / "validation"
        self.logs = path / "logs"
        self.student = path / "student.safetensors"
        self.metrics = path / "metrics.json"
        self.lock = path / "lock"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes of this machine out of the folder; the system lets go if we die.

        Raises:
            ConfigError: another process trains here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.lock, os.O_CREAT | os.O_RDWR)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise ConfigError(
                            f"run={self.path}: another process is training in this folder. Wait "
                            "until it ends, or choose another run=DIR."
                        ) from None
                    time.sleep(0.1)
            yield
        finally:
            os.close(descriptor)

    def open(self, config: DistillConfig) -> None:
        """Make the folder, or check that it holds a run of the same configuration.

        `resume=false` clears what an earlier run left.

        Raises:
            ConfigError: another configuration was run here; the differing keys are named.
        """
        if not config.resume:
            self._clear()
        mine = _identity(config)
        if self.config.is_file():
            found = differences(_read(self.config), mine)
            if found:
                lines = [f"{key}: was {was}, now {now}" for key, was, now in found[:_SHOWN]]
                more = f"\n- and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
                raise ConfigError(
                    f"run={self.path} holds a run with another configuration:\n- "
                    + "\n- ".join(lines)
                    + more
                    + "\nChoose another run=DIR, or start over in this one with resume=false, "
                    "which removes its checkpoints."
                )
        self.path.mkdir(parents=True, exist_ok=True)
        self._write(self.config, mine)

    def finished(self) -> dict[str, Any] | None:
        """Return the result of a run that has ended, else None."""
        if not self.metrics.is_file():
            return None
        return _read(self.metrics)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Keep the result of the run."""
        self._write(self.metrics, result)

    def validation_result(self, step: int) -> dict[str, Any]:
        """Return the score of the validation after a step; empty if there was none."""
        path = self.validation / f"step_{step:06d}" / "metrics.json"
        return _read(path) if path.is_file() else {}

    def _write(self, path: Path, tree: Mapping[str, Any]) -> None:
        """Write a file that is there whole or as it was before, whenever the process dies."""
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(tree, indent=2) + "\n")
        partial.replace(path)

    def _clear(self) -> None:
        for folder in (self.checkpoints, self.validation, self.logs):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.config, self.student, self.metrics):
            file.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(
            f"{path}: damaged, no JSON ({error}). Remove this file alone and repeat the command: "
            "it is written anew; checkpoints are untouched."
        ) from None
    return tree


def _spelled(name: str) -> str:
    """Return what a path names, however it was written: `data`, `./data/` and links are one."""
    if name == "random":
        return name
    for kind in KINDS:
        with suppress(UnknownNameError):
            return whereabouts(resolve(kind, name))
    return name


def _identity(config: DistillConfig) -> dict[str, Any]:
    plain = config.model_dump(mode="json", exclude=set(_STATE), context={"spell": _spelled})
    tree: dict[str, Any] = canonical(plain)
    del tree["loader"]["num_workers"], tree["trainer"]["checkpoint_every"]
    del tree["trainer"]["log_every"]
    return tree

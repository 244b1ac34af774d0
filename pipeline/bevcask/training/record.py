"""The folder of a run: its configuration, checkpoints and results, and whether it may go on.

RUN/config.json  checkpoints/{last,last.previous,best}.ckpt  validation/step_N/  logs/  profile/
student.safetensors  metrics.json  lock
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bevcask.catalog import KINDS, resolve
from bevcask.errors import ConfigError, UnknownNameError
from bevcask.fingerprint import canonical, differences
from bevcask.paths import whereabouts, write_whole
from bevcask.ranks import num_ranks
from bevcask.verbs import DistillConfig

_log = logging.getLogger(__name__)
# What may differ between the sittings of one run: where and how fast, never what.
_STATE = {"run", "device", "resume", "dry_run"}
_STEPS = "trainer.max_steps"
_ENDLESS = ("constant", "step")  # schedules that do not ask how many steps there are
_ELSEWHERE = (
    "Choose another run=DIR, or start over in this one with resume=false, which removes its "
    "checkpoints."
)
_OURS = frozenset({"method", "student", "trainer"})  # what config.json of a run holds, among others
_SHOWN = 5
_PATIENCE_SECONDS = 1.0  # a killed run is gone at once; one that is ending may take a moment


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
        self.profile = path / "profile"
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
        lock = FileLock(self.lock)
        try:
            lock.acquire(timeout=_PATIENCE_SECONDS)
        except Timeout:
            raise ConfigError(
                f"run={self.path}: another process is training in this folder. Wait until it ends, "
                "or choose another run=DIR."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def open(self, config: DistillConfig) -> None:
        """Make the folder, or check that it holds a run of the same configuration.

        `resume=false` clears what an earlier run left. A run can be given more steps where its
        learning rates do not depend on how many there are.

        Raises:
            ConfigError: another configuration was run here, the differing keys are named; or
                something that is no run of ours would be cleared.
        """
        if not config.resume:
            self._clear()
        mine = _identity(config)
        if self.config.is_file():
            found = differences(_read(self.config), mine)
            if [key for key, _, _ in found] == [_STEPS]:
                self._raise_steps(config, *found[0][1:])
            elif found:
                lines = [f"{key}: was {was}, now {now}" for key, was, now in found[:_SHOWN]]
                more = f"\n- and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
                raise ConfigError(
                    f"run={self.path} holds a run with another configuration:\n- "
                    + "\n- ".join(lines)
                    + f"{more}\n{_ELSEWHERE}"
                )
        write_json(self.config, mine)

    def _raise_steps(self, config: DistillConfig, was: int, now: int) -> None:
        """Let a run that has ended, or was interrupted, go on for more steps."""
        schedule = config.trainer.schedule
        if schedule not in _ENDLESS or now < was:
            why = (
                "steps that were made are not unmade"
                if now < was
                else f"trainer.schedule={schedule} falls towards the last step, so the steps that "
                f"were made would have been others; {' and '.join(_ENDLESS)} allow it"
            )
            raise ConfigError(
                f"run={self.path}: {_STEPS} was {was}, now {now}: {why}. {_ELSEWHERE} "
                f"student.checkpoint={self.student} starts another run from its weights."
            )
        _log.info("run=%s goes on to step %d; it was to end at %d.", self.path, now, was)
        self.metrics.unlink(missing_ok=True)

    def finished(self) -> dict[str, Any] | None:
        """Return the result of a run that has ended, else None."""
        if not self.metrics.is_file():
            return None
        return _read(self.metrics)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Keep the result of the run."""
        write_json(self.metrics, result)

    def validation_at(self, step: int) -> Path:
        """Return the folder of the validation after a step."""
        return self.validation / f"step_{step:06d}"

    def validation_result(self, step: int) -> dict[str, Any]:
        """Return the score of the validation after a step; empty if there was none."""
        path = self.validation_at(step) / "metrics.json"
        return _read(path) if path.is_file() else {}

    def best_step(self, until: int) -> int | None:
        """Return the step with the best NDS, the first of equals; None where none is scored.

        Args:
            until: later steps do not count.
        """
        scored = {
            int(path.parent.name.removeprefix("step_")): _read(path)["NDS"]
            for path in self.validation.glob("step_*/metrics.json")
        }
        steps = sorted(step for step in scored if step <= until)
        return max(steps, key=scored.__getitem__, default=None)

    def _clear(self) -> None:
        folders = (self.checkpoints, self.validation, self.logs, self.profile)
        files = (self.student, self.metrics, self.config)
        found = [path.name for path in (*folders, *files) if path.exists()]
        if found and not self._is_ours():
            raise ConfigError(
                f"run={self.path} holds {', '.join(found)}, but no config.json that bevcask wrote: "
                "nothing was removed. Choose another run=DIR, or remove them yourself."
            )
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        for file in files:  # config.json last: a kill in between leaves a folder of ours
            file.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        try:
            return bool(json.loads(self.config.read_text()).keys() >= _OURS)
        except (OSError, ValueError, AttributeError):
            return False


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a file that is there whole or as it was before, whenever the process dies."""
    write_whole(path, (json.dumps(tree, indent=2) + "\n").encode())


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


_NO_MATTER = {
    "loader": ("num_workers", "prefetch", "local", "local_gb"),
    "trainer": ("checkpoint_every", "log_every", "pictures", "profile", "devices", "nodes"),
}


def _identity(config: DistillConfig) -> dict[str, Any]:
    """Return what makes a run what it is; the batch is that of all ranks together."""
    plain = config.model_dump(mode="json", exclude=_STATE, context={"spell": _spelled})
    for role in ("teacher", "student"):
        detector = plain[role]["detector"]
        if isinstance(detector.get("config"), str):  # a file of mmdet3d, in a plug-in's own section
            detector["config"] = _spelled(detector["config"])
    tree: dict[str, Any] = canonical(plain)
    for section, keys in _NO_MATTER.items():
        for key in keys:
            del tree[section][key]
    tree["loader"]["batch_size"] *= num_ranks()
    return tree

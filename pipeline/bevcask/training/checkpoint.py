"""Student weights in and out: starts, inherited heads, and what a run leaves behind."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bevcask.catalog import resolve
from bevcask.config import StudentConfig, build_config
from bevcask.detectors.base import Detector
from bevcask.detectors.blocks.resnet import ResNet, load_imagenet
from bevcask.detectors.weights import load_weights, read_note, read_weights, save_weights
from bevcask.errors import CheckpointError, ConfigError
from bevcask.provenance import command, git_revision

HEAD = "head.tasks."
_STUDENT = "student."
_SHOWN = 3


def make_note(
    detector: Mapping[str, Any], cache_id: str | None, teacher: str | None
) -> dict[str, str]:
    """Return what a student's files say about themselves.

    Args:
        detector: the architecture section, `{type: ..., ...}`.
        cache_id: identity of the cache it learned from (several: separated by commas); None for
            none.
        teacher: who the cache says spoke; None for none.
    """
    return {
        "detector": json.dumps(dict(detector)),
        "cache": cache_id or "none",
        "teacher": teacher or "none",
        "command": command(),
        "git": git_revision() or "unknown",
    }


def start(student: Detector, config: StudentConfig) -> dict[str, Any]:
    """Fill a student with the starts its section names: ImageNet, then a checkpoint, then a head.

    Returns:
        What was loaded, for the log and the result.

    Raises:
        ConfigError: ImageNet weights for a detector without an image backbone.
        CheckpointError: a file is missing or belongs to another architecture.
    """
    loaded: dict[str, Any] = {}
    if config.init is not None:
        backbone = getattr(student, "backbone", None)
        if not isinstance(backbone, ResNet):
            raise ConfigError(
                f"student.init={config.init}: {type(student).__name__} has no image backbone that "
                "ImageNet weights fit. Leave student.init out."
            )
        load_imagenet(backbone, Path(config.init))
        loaded["init"] = config.init
    if config.checkpoint is not None:
        load_weights(student, Path(resolve("checkpoint", config.checkpoint)))
        loaded["checkpoint"] = config.checkpoint
    if config.head is not None:
        loaded["head_tensors"] = inherit_head(student, Path(config.head))
    return loaded


def inherit_head(student: nn.Module, path: Path) -> int:
    """Copy a teacher's task branches into the student's head.

    Returns:
        The number of tensors copied: all of the student's branches.

    Raises:
        CheckpointError: the file misses branches of the student, or shapes differ; counted, the
            first few named.
    """
    given = {name: t for name, t in read_weights(path).items() if name.startswith(HEAD)}
    own = {name: t for name, t in student.state_dict().items() if name.startswith(HEAD)}
    missing = sorted(own.keys() - given.keys())
    reshaped = [
        f"{name} (student {tuple(own[name].shape)}, teacher {tuple(given[name].shape)})"
        for name in sorted(own.keys() & given.keys())
        if own[name].shape != given[name].shape
    ]
    if missing or reshaped or not own:
        raise CheckpointError(
            f"{path}: the teacher's head does not fit the student's, which has {len(own)} "
            f"tensors in {HEAD}*. {len(missing)} missing: {_few(missing)}; {len(reshaped)} of "
            f"another shape: {_few(reshaped)}. Give both detectors the same `head` section, or "
            "leave student.head out."
        )
    student.load_state_dict({name: given[name] for name in own}, strict=False)
    return len(own)


def _few(names: list[str]) -> str:
    return (", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")) or "none"


def export(checkpoint: Path, out: Path) -> dict[str, Any]:
    """Write the student in a training checkpoint, without adapters, as safetensors.

    Returns:
        The note, and the number of tensors and parameters written.

    Raises:
        CheckpointError: not a checkpoint of a bevcask training.
    """
    saved = read_checkpoint(checkpoint)
    student: dict[str, Tensor] = {
        name.removeprefix(_STUDENT): tensor
        for name, tensor in saved["state_dict"].items()
        if name.startswith(_STUDENT)
    }
    note = {**saved["bevcask"], "step": str(saved["global_step"])}
    save_weights(student, out, note)
    return {
        "out": str(out),
        "checkpoint": str(checkpoint),
        "step": saved["global_step"],
        "tensors": len(student),
        "parameters": sum(tensor.numel() for tensor in student.values()),
        "cache": note["cache"],
    }


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint of bevcask.

    Raises:
        CheckpointError: missing, unreadable, or of something else.
    """
    from pickle import UnpicklingError

    if not path.is_file():
        raise CheckpointError(f"{path}: no such training checkpoint. Give run=DIR of a training.")
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a training checkpoint ({str(error).splitlines()[0]})."
        ) from error
    if not isinstance(saved, dict) or "bevcask" not in saved:
        raise CheckpointError(f"{path}: not written by bevcask student-distill.")
    return saved


def open_detector(config: StudentConfig) -> tuple[type[Detector], Any, Detector]:
    """Build the detector of a checkpoint; its architecture comes from the file if not given.

    Returns:
        Class, validated config, and the filled network on the CPU.

    Raises:
        ConfigError: no checkpoint, or no architecture anywhere.
        CheckpointError: the file is missing or belongs to another architecture.
    """
    if config.checkpoint is None:
        raise ConfigError("no weights: give student.checkpoint=FILE.")
    path = Path(resolve("checkpoint", config.checkpoint))
    section = dict(config.detector)
    if not section:
        read_weights(path)
        section = json.loads(read_note(path).get("detector", "{}"))
    plugin, own = build_config("detector", section, "student.detector")
    detector: Detector = plugin(own)
    load_weights(detector, path)
    return plugin, own, detector

"""Student weights in and out: starts, inherited heads, and what a run leaves behind."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from bevcask.cache.files import Files
from bevcask.catalog import resolve
from bevcask.config import DetectorConfig, Inherit, StudentConfig
from bevcask.consent import require_consent
from bevcask.detectors import find_detector
from bevcask.detectors.base import Detector
from bevcask.detectors.blocks.backbone import load_imagenet
from bevcask.detectors.blocks.levels import ImageBackbone
from bevcask.detectors.weights import halve, load_weights, read_note, read_tensors, save_weights
from bevcask.detectors.wrappings import STUDENT
from bevcask.errors import CheckpointError, ConfigError
from bevcask.paths import local_path, split_url
from bevcask.provenance import command, git_revision
from bevcask.ranks import rank
from bevcask.training.saving import read_checkpoint

_log = logging.getLogger(__name__)
HEAD = "head.tasks"
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
    """Fill a student with the starts its section names: parts, then a checkpoint, then a head.

    Returns:
        What was loaded, for the log and the result.

    Raises:
        ConfigError: ImageNet weights for a detector without an image backbone, or weights of a
            detector that starts no part of it.
        CheckpointError: a file is missing or belongs to another architecture.
    """
    loaded: dict[str, Any] = {}
    random = _some_of_backbone(student)
    if config.init is not None:
        for source in config.init.split(","):
            _start_part(student, source)
        loaded["init"] = config.init
    if config.checkpoint is not None:
        load_weights(student, Path(resolve("checkpoint", config.checkpoint)), plain=True)
        loaded["checkpoint"] = config.checkpoint
    if config.head is not None:
        with _near(config.head) as head:
            loaded["head_tensors"] = inherit_head(student, head, config.inherit)
    _mention_random(student, random)
    return loaded


def _mention_random(student: Detector, random: Tensor | None) -> None:
    """Say that an image backbone begins as it was drawn, if it does."""
    backbone = getattr(student, "backbone", None)
    if random is None or rank() or not isinstance(backbone, ImageBackbone):
        return
    if not torch.equal(random, next(backbone.parameters())):
        return
    _log.warning(
        "the student's image backbone starts from random weights; published students start from "
        "ImageNet's: student.init=FILE, %s of the same network.",
        backbone.published,
    )


def _some_of_backbone(student: Detector) -> Tensor | None:
    """Return a copy of the first weights of an image backbone; None without one."""
    backbone = getattr(student, "backbone", None)
    return next(backbone.parameters()).clone() if isinstance(backbone, ImageBackbone) else None


@contextmanager
def _near(url: str) -> Iterator[Path]:
    """Give a local path of a file in any store, for as long as it is needed."""
    local = local_path(url)
    if local is not None:
        yield local
        return
    folder, name = split_url(url)
    data = Files(folder).get(name)
    if data is None:
        raise CheckpointError(f"{url}: no such checkpoint. Check the URL.")
    with TemporaryDirectory() as place:
        path = Path(place) / name
        path.write_bytes(data)
        yield path


def _start_part(student: Detector, source: str) -> None:
    """Fill the modules that a file can start: another detector's, or an ImageNet backbone."""
    path = Path(resolve("checkpoint", source))
    donor = _detector_of(path)
    if donor is None:
        tensors = read_tensors(path, plain=True)
        if (known := student.starts(tensors)) is not None:
            student.load_state_dict(known, strict=False)
            _log.info(
                "student.init=%s: %d tensors start the student, %d are of other parts",
                source,
                len(known),
                len(tensors) - len(known),
            )
            return
        backbone = getattr(student, "backbone", None)
        if not isinstance(backbone, ImageBackbone):
            raise ConfigError(
                f"student.init={source}: {type(student).__name__} has no image backbone that "
                "ImageNet weights fit. Leave student.init out."
            )
        load_imagenet(backbone, path)
        return
    donors = student.donors()
    if donor not in donors:
        raise ConfigError(
            f"student.init={source} holds a {donor}, which starts no part of "
            f"{type(student).__name__}; known: {', '.join(donors) or 'ImageNet weights'}. For "
            "weights of the whole network say student.checkpoint."
        )
    copy_modules(student, path, donors[donor], "student.init")


def _detector_of(path: Path) -> str | None:
    """Return the type of detector whose weights a file holds; None for other weights."""
    if path.suffix != ".safetensors" and not path.is_file():
        return None
    name: str | None = _noted_detector(path).get("type")
    return name


def _noted_detector(path: Path) -> dict[str, Any]:
    """Return the detector section in the note of a safetensors file; empty without one.

    Raises:
        CheckpointError: the file is missing or damaged, or the note is not a section.
    """
    read_tensors(path, plain=True)
    note = read_note(path).get("detector", "{}")
    try:
        section = json.loads(note)
    except ValueError:
        section = None
    if not isinstance(section, dict):
        raise CheckpointError(
            f"{path}: its note should hold a detector section as JSON, got {note[:60]!r}. Name the "
            "detector on the command line (student=NAME), or export the weights again."
        )
    return section


def inherit_head(student: Detector, path: Path, what: Inherit = "full_head") -> int:
    """Copy what a student inherits of a teacher's head; see `copy_modules`."""
    names = student.inherits(what)
    return copy_modules(student, path, {own: own for own in names}, "student.head") if names else 0


def copy_modules(student: nn.Module, path: Path, modules: Mapping[str, str], key: str) -> int:
    """Copy the weights of some modules; all of them fit, or nothing is copied.

    Args:
        student: takes them.
        path: safetensors of another detector, or of a part of it.
        modules: own module or parameter -> the other's.
        key: the configuration key that asked for it, for messages.

    Returns:
        The number of tensors copied: all of these modules.

    Raises:
        CheckpointError: tensors missing, unexpected or of another shape; counted, the first few
            named.
    """
    given, own = read_tensors(path, plain=True), student.state_dict()
    source = {
        name: theirs + name.removeprefix(ours)
        for ours, theirs in modules.items()
        for name in own
        if _is_in(name, ours)
    }
    missing = sorted({name for name in source.values() if name not in given})
    unexpected = sorted(
        name
        for name in given.keys() - set(source.values())
        if any(_is_in(name, theirs) for theirs in modules.values())
    )
    reshaped = [
        f"{name} (expected {tuple(own[name].shape)}, got {tuple(given[theirs].shape)})"
        for name, theirs in sorted(source.items())
        if theirs in given and own[name].shape != given[theirs].shape
    ]
    if missing or unexpected or reshaped or not source:
        raise CheckpointError(
            f"{path} does not fit {', '.join(modules)} of {type(student).__name__}, which are "
            f"{len(source)} tensors: {len(missing)} missing: {_few(missing)}; {len(unexpected)} "
            f"unexpected: {_few(unexpected)}; {len(reshaped)} of another shape: "
            f"{_few(reshaped)}. Give both detectors these sizes, or leave {key} out."
        )
    student.load_state_dict({name: given[theirs] for name, theirs in source.items()}, strict=False)
    return len(source)


def _is_in(name: str, module: str) -> bool:
    """Tell whether a tensor is a module's, or is itself the parameter that is named."""
    return name == module or name.startswith(module + ".")


def _few(names: list[str]) -> str:
    return (", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")) or "none"


def export(
    checkpoint: Path,
    out: Path,
    half: bool = False,
    official: bool = False,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Write the student in a training checkpoint, without adapters.

    Args:
        checkpoint: of a training.
        out: the file to write.
        half: in float16.
        official: under the names of its published files.
        trust_code: whether its architecture may run code that is not bevcask's.

    Returns:
        The note, and the number of tensors and of numbers in them, running statistics of norms too.

    Raises:
        CheckpointError: not a checkpoint of a bevcask training.
    """
    saved = read_checkpoint(checkpoint)
    student = student_in(saved)
    if official:
        own = DetectorConfig(checkpoint=str(checkpoint))
        student = open_detector(own, trust_code)[2].published()
    note = {**saved["bevcask"], "step": str(saved["global_step"])}
    save_weights(halve(student) if half else student, out, note)
    return {
        "out": str(out),
        "checkpoint": str(checkpoint),
        "step": saved["global_step"],
        "tensors": len(student),
        "numbers": sum(tensor.numel() for tensor in student.values()),
        "cache": note["cache"],
    }


def student_in(saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the student's weights in a training checkpoint; their average where there is one."""
    return {
        name.removeprefix(STUDENT): tensor
        for name, tensor in saved["state_dict"].items()
        if name.startswith(STUDENT)
    }


def open_detector(
    config: DetectorConfig, trust_code: bool = False
) -> tuple[type[Detector], Any, Detector]:
    """Build the detector of a checkpoint; its architecture comes from the file if not given.

    Args:
        config: the checkpoint, and the architecture where it is given.
        trust_code: whether an architecture in the file may run code that is not bevcask's.

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
        section = _noted_detector(path)
        require_consent({f"{path}: detector": section}, trust_code)
    plugin, own = find_detector(section, "student.detector")
    detector: Detector = plugin(own)
    load_weights(detector, path, plain=True)
    return plugin, own, detector

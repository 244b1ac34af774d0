"""What decides every byte a teacher writes: the identity of an extraction, and its record."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bevcask.cache.frames import FrameTable
from bevcask.catalog import resolve
from bevcask.data.augment import image_ranges
from bevcask.data.can_bus import CanBus
from bevcask.data.images import RESAMPLING
from bevcask.data.index.frames import Frames
from bevcask.errors import DataError
from bevcask.fingerprint import file_digest
from bevcask.geometry import CAMERAS, CLASSES
from bevcask.provenance import provenance
from bevcask.targets.pixels import RULE, needs_pixels
from bevcask.targets.spec import TargetSpec
from bevcask.teachers.base import Teacher
from bevcask.verbs import ExtractConfig


def frame_table(frames: Frames) -> FrameTable:
    """Return the selection as a cache keeps it."""
    return FrameTable(frames.tokens, frames.scenes, frames.timestamps, frames.lidar_to_global)


def made_by(teacher: Teacher, frames: Frames, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is recorded of this run; `machine` as `provenance.hardware` says it."""
    inputs = teacher.inputs()
    made = (
        provenance()
        | dict(machine)
        | {
            "missing_sweeps": frames.missing_sweeps(inputs.num_sweeps),
            "pose_precision": frames.index.precision,
        }
        | _checkpoint(teacher)
    )
    if inputs.can_bus:
        made["frames_without_can_bus"] = CanBus(frames.index).without(frames.rows)
    return made


def _checkpoint(teacher: Teacher) -> dict[str, Any]:
    """Return which file the weights come from, and its digest; nothing where they are no file."""
    name = getattr(teacher.config, "checkpoint", "random")
    if name == "random":
        return {}
    path = resolve("checkpoint", name)
    try:
        sha256 = file_digest(path)
    except DataError:  # of a teacher that means something else by it
        return {}
    return {"checkpoint": {"file": str(Path(path).absolute()), "sha256": sha256}}


def fingerprint(
    config: ExtractConfig, teacher: Teacher, frames: Frames, specs: Sequence[TargetSpec]
) -> dict[str, Any]:
    """Return the identity of a cache: that of the teacher here, and of the views it is shown."""
    pixels = needs_pixels(specs)
    annotations = pixels or any(spec.region.reads_boxes for spec in specs)
    tree = identity(teacher, frames, annotations, pixels)
    if pixels:
        tree["pixels"] = {"rule": RULE}
    if any(spec.view for spec in specs):
        tree["views"] = {"seed": config.seed, "augment": image_ranges(config.augment)}
    return tree


def identity(
    teacher: Teacher, frames: Frames, annotations: bool = False, all_sensors: bool = False
) -> dict[str, Any]:
    """Return the fingerprint tree: everything that decides what this teacher says here.

    Args:
        teacher: its weights and config.
        frames: the selection.
        annotations: whether ground truth decides bytes too: a region follows it, say.
        all_sensors: whether cameras and LiDAR decide bytes that the teacher does not look at.
    """
    inputs = teacher.reads()
    sensors = (CAMERAS if inputs.image_size_HW or all_sensors else ()) + (
        ("LIDAR_TOP",) if inputs.num_sweeps or all_sensors else ()
    )
    tree = {
        "teacher": teacher.fingerprint(),
        "dataset": frames.identity(
            sensors,
            max(inputs.num_sweeps, 1),
            annotations,
            inputs.gaps,
            inputs.virtual_points,
            inputs.can_bus,
            inputs.memory,
        ),
        "classes": list(CLASSES),
        "preprocessing": {
            "image_size": list(inputs.image_size_HW) if inputs.image_size_HW else None,
            "image": RESAMPLING[frames.resampling] if inputs.image_size_HW else None,
            "num_frames": 1 + inputs.history,
            "num_sweeps": inputs.num_sweeps,
            "sweeps": "nearest previous, motion compensated",
            "pad": inputs.pad,
            "ego_points": inputs.ego_points,
        },
    }
    if inputs.memory:
        tree["memory"] = teacher.remembering()
    return tree

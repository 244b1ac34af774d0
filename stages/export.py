"""export: a trained student without its adapters, or a teacher's checkpoint, as safetensors."""

from pathlib import Path
from typing import Any

from bevcask.detectors.weights import halve, is_pickle, save_weights
from bevcask.errors import CheckpointError, ConfigError
from bevcask.outputs import output_file
from bevcask.provenance import command
from bevcask.teachers import build_teacher
from bevcask.training.checkpoint import export
from bevcask.training.record import RunFolder
from bevcask.verbs import ExportConfig


def run(config: ExportConfig) -> dict[str, Any]:
    """Write the best student of a run, or that of `student.checkpoint=FILE.ckpt`, to `out`.

    With `teacher.checkpoint=FILE`, write that teacher's weights instead: how a pickle is converted.
    `names=official` writes what the detector's own release reads, as `.pth` where `out` says so.

    Returns:
        Paths, tensors, the numbers in them (running statistics of norms too); of a student also its
        step and the cache it learned from.

    Raises:
        ConfigError: no output file, or a teacher without a checkpoint.
        CheckpointError: the run has no checkpoint, or the file is not one of ours.
    """
    if config.out is None:
        raise ConfigError("export needs a file: bevcask export OUT.safetensors run=DIR.")
    official = config.names == "official"
    pickled = config.out.endswith(".pth")
    if pickled and not official:
        raise ConfigError(
            f"out={config.out}: a .pth is what released code reads, under its own names. Add "
            "names=official, or write a file that ends with .safetensors."
        )
    out = output_file("out", config.out, ".pth" if pickled else ".safetensors")
    if config.teacher.checkpoint != "random":
        return _convert(config, out)
    if config.teacher.model_fields_set:
        raise ConfigError(
            "export writes the weights of a teacher's checkpoint, and none is given: add "
            "teacher.checkpoint=FILE or catalog:NAME. Without teacher= it writes the student of "
            "run=DIR."
        )
    folder = RunFolder(Path(config.run))
    if config.student.checkpoint is not None:
        source = Path(config.student.checkpoint)
        if source.is_file() and not is_pickle(source):
            raise CheckpointError(
                f"student.checkpoint={source}: exported already. Give run=DIR of a training, or "
                "student.checkpoint=DIR/checkpoints/best.ckpt."
            )
    elif folder.best.is_file() or folder.last.is_file():
        source = folder.best if folder.best.is_file() else folder.last
    else:
        raise CheckpointError(
            f"run={folder.path} has no checkpoint: neither {folder.best} nor {folder.last}. Train "
            "with `bevcask student-distill`, or give student.checkpoint=FILE.ckpt."
        )
    return export(source, out, config.half, official, config.trust_code)


def _convert(config: ExportConfig, out: Path) -> dict[str, Any]:
    """Write a teacher's weights, under the names its detector gives them, or published ones."""
    teacher = build_teacher(config.teacher, seed=0)
    weights = teacher.published() if config.names == "official" else teacher.weights()
    save_weights(
        halve(weights) if config.half else weights,
        out,
        {"made_by": command(), "from": config.teacher.checkpoint},
    )
    return {
        "out": str(out),
        "checkpoint": config.teacher.checkpoint,
        "tensors": len(weights),
        "numbers": sum(tensor.numel() for tensor in weights.values()),
    }

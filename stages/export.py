"""export: a trained student without its adapters, as safetensors."""

from pathlib import Path
from typing import Any

from bevcask.config import RunConfig
from bevcask.errors import CheckpointError, ConfigError
from bevcask.training.checkpoint import export
from bevcask.training.record import RunFolder


def run(config: RunConfig) -> dict[str, Any]:
    """Write the best student of a run, or that of `student.checkpoint=FILE.ckpt`, to `out`.

    Returns:
        Paths, step, tensors, parameters and the cache the student learned from.

    Raises:
        ConfigError: no output file.
        CheckpointError: the run has no checkpoint, or the file is not one of ours.
    """
    if config.out is None:
        raise ConfigError("export needs a file: bevcask export OUT.safetensors run=DIR.")
    folder = RunFolder(Path(config.run))
    if config.student.checkpoint is not None:
        source = Path(config.student.checkpoint)
    elif folder.best.is_file() or folder.last.is_file():
        source = folder.best if folder.best.is_file() else folder.last
    else:
        raise CheckpointError(
            f"run={folder.path} has no checkpoint: neither {folder.best} nor {folder.last}. Train "
            "with `bevcask student-distill`, or give student.checkpoint=FILE.ckpt."
        )
    return export(source, Path(config.out))

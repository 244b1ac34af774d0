"""Training checkpoints on disk: written whole, kept twice, read as data.

A checkpoint is written beside its place, flushed and renamed; the one before keeps its bytes under
another name. It is a zip file, so a checksum of every tensor is in it, and reading looks at them
all before anything is unpickled; what is unpickled can hold tensors and plain values only.
"""

import os
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from bevcask.errors import CheckpointError
from bevcask.paths import partial_name, sync


class WholeFiles(CheckpointIO):
    """How the trainer saves and loads: nothing of it is left to Lightning."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; what was there before becomes `previous_of(path)`.

        Raises:
            CheckpointError: no room, no permission; what was there before stays.
        """
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint, tensors and plain values only, whatever is asked for."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


def previous_of(path: Path) -> Path:
    """Return where the checkpoint before the one at `path` is kept."""
    return path.with_stem(path.stem + ".previous")


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; see `WholeFiles.save_checkpoint`."""
    partial = partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if path.is_file():
            path.replace(previous_of(path))
        partial.replace(path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        cause = error if isinstance(error, OSError) else error.__cause__ or error.__context__
        reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: cannot write the checkpoint ({reason}). {_left(path)} Make room, or make the "
            "folder writable, and repeat the command."
        ) from error
    finally:
        with suppress(OSError):  # the disk may be read-only
            partial.unlink(missing_ok=True)


def _left(path: Path) -> str:
    """Say what a failed write left."""
    found = [p.name for p in (path, previous_of(path)) if p.is_file()]
    return f"{found[0]} is intact." if found else "There is no older one."


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint of bevcask.

    Raises:
        CheckpointError: missing, damaged, or of something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such training checkpoint. Give run=DIR of a training.")
    try:
        _require_whole(path)
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged, or not a training checkpoint ({str(error).splitlines()[0]})."
        ) from error
    if not isinstance(saved, dict) or "bevcask" not in saved:
        raise CheckpointError(f"{path}: not written by bevcask student-distill.")
    return saved


def _require_whole(path: Path) -> None:
    """Look at the checksum of every member; none may hold more than the file, as torch writes them.

    Raises:
        BadZipFile: a member is damaged, or compressed.
    """
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > path.stat().st_size:
            raise zipfile.BadZipFile("its members are compressed, and torch writes them plain")
        damaged = file.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} does not fit")


def resume_point(last: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the checkpoint a run goes on from, and what is in it; None where there is none.

    Where a kill came between two renames, that is the one before the last.

    Raises:
        CheckpointError: the last one is damaged; the one before is named if it is whole.
    """
    previous = previous_of(last)
    if not last.is_file():
        return (previous, read_checkpoint(previous)) if previous.is_file() else None
    try:
        return last, read_checkpoint(last)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {_way_out(last, previous)}") from error


def _way_out(last: Path, previous: Path) -> str:
    try:
        step = read_checkpoint(previous)["global_step"]
    except CheckpointError:
        return (
            f"No older checkpoint is whole either. Remove {last.parent} and repeat the command: it "
            "begins anew, as resume=false does."
        )
    return (
        f"The one before it, {previous}, is whole and of step {step}. Remove {last.name} and "
        "repeat the command: it goes on from there."
    )


def keep(source: Path, target: Path) -> None:
    """Give a checkpoint a second name, under which it outlives its first; replaces `target`.

    Raises:
        CheckpointError: no room for a copy where the file system knows no links.
    """
    partial = partial_name(target)
    try:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
            sync(partial)
        partial.replace(target)
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot keep the best checkpoint ({error.strerror}). {source.name} is "
            "intact. Make room, or make the folder writable, and repeat the command."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)

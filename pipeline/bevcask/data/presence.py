"""Are the files there? Asked before hours of work, with one listing a folder."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from bevcask.data.index.frames import Frames
from bevcask.detectors.base import Inputs
from bevcask.errors import DataError


def require_files(frames: Frames, inputs: Inputs, section: str) -> None:
    """Refuse frames whose images or keyframe scans are missing.

    Args:
        frames: the selection.
        inputs: what is read of it.
        section: of the configuration that selects it, e.g. `val`.

    Raises:
        DataError: files are missing; counted, the first one and its frame are named.
    """
    present = cache(_names)
    missing = [
        (token, path)
        for token in frames.tokens
        for path in _files(frames, inputs, token)
        if path.name not in present(path.parent)
    ]
    if missing:
        token, path = missing[0]
        lacking = len({token for token, _ in missing})
        raise DataError(
            f"{path}: missing, of frame {token}; {len(missing)} files of {lacking} of "
            f"{len(frames)} frames are. Unpack the samples archives into {section}.root, or choose "
            f"frames that are there with {section}.scenes or {section}.limit."
        )


def _names(folder: Path) -> frozenset[str]:
    return frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()


def _files(frames: Frames, inputs: Inputs, token: str) -> Iterator[Path]:
    index, row = frames.index, frames.row(token)
    if inputs.image_size_HW is not None:
        yield from (frames.root / name.decode() for name in index["frame_image"][row])
    if inputs.num_sweeps or inputs.depth:
        scan = frames.scans(token, 1)[0]
        yield frames.root / index["scan_path"][scan].decode()

"""Are the files there? Asked before hours of work, with one listing a folder."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bevcask.data.index.frames import Frames
from bevcask.detectors.base import Inputs
from bevcask.errors import DataError

_SHOWN = 3
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Presence:
    """What of a selection is on this disk.

    Attributes:
        frames: the selection.
        missing: (token, path) of every file that is not there.
    """

    frames: Frames
    missing: list[tuple[str, Path]]

    @property
    def lacking(self) -> set[str]:
        """Tokens of the frames that cannot be read."""
        return {token for token, _ in self.missing}

    @property
    def whole_scenes(self) -> list[str]:
        """Scenes all of whose selected frames can be read, in order."""
        lacking, scenes = self.lacking, dict.fromkeys(self.frames.scenes, True)
        for token, scene in zip(self.frames.tokens, self.frames.scenes, strict=True):
            scenes[scene] &= token not in lacking
        return [scene for scene, whole in scenes.items() if whole]

    def words(self) -> str:
        """Say how many files are missing and which scenes are there."""
        token, path = self.missing[0]
        whole, number = self.whole_scenes, len(set(self.frames.scenes))
        some = f": {', '.join(whole[:_SHOWN])}{', ...' if len(whole) > _SHOWN else ''}"
        return (
            f"{path}: missing, of frame {token}; {len(self.missing)} files of "
            f"{len(self.lacking)} of {len(self.frames)} frames are. "
            f"{len(whole)} of {number} scenes are whole{some if whole else ''}"
        )


def look(frames: Frames, inputs: Inputs) -> Presence:
    """Look for every file that a detector reads of a selection."""
    read = [_files(frames, inputs, int(row)) for row in frames.rows]
    absent = _absent(frames.root, {path for paths in read for path in paths})
    if not absent:
        return Presence(frames, [])
    return Presence(
        frames,
        [
            (token, frames.root / path.decode())
            for token, paths in zip(frames.tokens, read, strict=True)
            for path in paths
            if path in absent
        ],
    )


def readable_frames(
    frames: Frames,
    inputs: Inputs,
    section: str,
    on_missing: Literal["raise", "skip"] | None = None,
) -> Frames:
    """Return the frames whose images and scans are all there.

    Args:
        frames: the selection.
        inputs: what is read of it.
        section: of the configuration that selects it, e.g. `val`.
        on_missing: `raise`, or `skip` with the count logged; None where there is no choice.

    Raises:
        DataError: files are missing and not to be skipped, or no frame has all of its own.
    """
    found = look(frames, inputs)
    if not found.missing:
        return frames
    left = frames.keep(set(frames.tokens) - found.lacking)
    if on_missing == "skip" and len(left):
        _log.warning("%s. Frames without a file are skipped.", found.words())
        return left
    others = ", or leave the others out: on_missing=skip" if on_missing and len(left) else ""
    raise DataError(
        f"{found.words()}. Unpack the archives of samples and sweeps into {section}.root, or "
        f"choose frames that are there with {section}.scenes or {section}.limit{others}."
    )


def _absent(root: Path, paths: set[bytes]) -> set[bytes]:
    """Return those of some paths below a root that are not there; lists each folder once."""
    names: dict[bytes, frozenset[bytes]] = {}
    absent = set()
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in names:
            place = os.path.join(os.fsencode(root), folder)
            names[folder] = frozenset(os.listdir(place) if os.path.isdir(place) else ())
        if name not in names[folder]:
            absent.add(path)
    return absent


def _files(frames: Frames, inputs: Inputs, row: int) -> list[bytes]:
    """Return the paths below the root of all that is read of a frame, by its row of the index."""
    index, paths = frames.index, list[bytes]()
    if inputs.image_size_HW is not None:
        shown = {row, *(frames.previous_row(row, gap) for gap in inputs.gaps)}
        paths += [name for own in sorted(shown) for name in index["frame_image"][own].tolist()]
    if inputs.num_sweeps or inputs.depth:
        scans = frames.chain(row, max(1, inputs.num_sweeps))
        paths += index["scan_path"][scans].tolist()
    return paths

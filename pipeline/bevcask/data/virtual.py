"""Virtual points: what somebody computed offline from 2D detections (MVP), joined to the sweeps.

A folder holds one `SAMPLE_TOKEN.npy` a keyframe: float32 (M, 17), columns `VIRTUAL_POINT_FIELDS`,
in the keyframe's LIDAR_TOP frame, those of earlier sweeps motion-compensated. Real points that a
detection paints may be in it again, with `virtual` 0. M may be 0.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bevcask.data.index.tables import memoised_digest
from bevcask.errors import ConfigError, DataError
from bevcask.geometry import POINT_FIELDS, VIRTUAL_POINT_FIELDS

_WIDTH, _REAL_WIDTH = len(VIRTUAL_POINT_FIELDS), len(POINT_FIELDS)
_EXPECTED = f"Expected float32 (M, {_WIDTH}): {', '.join(VIRTUAL_POINT_FIELDS)}."
Points = npt.NDArray[np.float32]


def with_virtual(points_P5: Points, folder: Path | None, token: str) -> Points:
    """Return real points, then the virtual ones of a frame, (P + M, 17); real ones have zeros.

    Raises:
        ConfigError, DataError: see `read_virtual`.
    """
    padded = np.zeros((len(points_P5), _WIDTH), np.float32)
    padded[:, :_REAL_WIDTH] = points_P5
    return np.concatenate([padded, read_virtual(folder, token)])


def read_virtual(folder: Path | None, token: str) -> Points:
    """Read the virtual points of a frame, float32 (M, 17).

    Raises:
        ConfigError: no folder.
        DataError: the frame has no file, or it is not as this module says.
    """
    path = _required(folder) / f"{token}.npy"
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise _missing(path, 1) from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot read virtual points: {error}. {_EXPECTED}") from error
    if problem := _problem(values):
        raise DataError(f"{path}: virtual points {problem}. {_EXPECTED}")
    points: Points = values
    return points


def virtual_digest(folder: Path | None, tokens: Collection[str]) -> str:
    """Return the sha256 of the virtual points of some frames, whatever their order.

    Covers every byte. Files whose size, mtime and inode are as at the last hashing of the same
    frames are not read again.

    Raises:
        ConfigError: no folder.
        DataError: frames without a file.
    """
    files = {token: _required(folder) / f"{token}.npy" for token in sorted(tokens)}
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        raise _missing(missing[0], len(missing))
    selection = hashlib.sha256("".join(files).encode()).hexdigest()
    return memoised_digest(files, _required(folder) / selection)


def _required(folder: Path | None) -> Path:
    if folder is None:
        raise ConfigError(
            f"this detector looks at real and virtual points ({_WIDTH} numbers each), and nobody "
            "says where the virtual ones are. Give dataset.virtual_points=FOLDER (validation: "
            "val.virtual_points), or use a detector with point_channels 5."
        )
    return folder


def _missing(path: Path, count: int) -> DataError:
    others = f" ({count} files of selected frames are)" if count > 1 else ""
    return DataError(
        f"{path}: missing virtual points{others}. Every keyframe needs a file SAMPLE_TOKEN.npy in "
        f"dataset.virtual_points, an empty one where nothing was detected. {_EXPECTED}"
    )


def _problem(values: object) -> str | None:
    """Say what is wrong with the content of a file, if anything."""
    if not isinstance(values, np.ndarray):
        return "are an archive of several arrays"
    if values.dtype != np.float32 or values.ndim != 2 or values.shape[1] != _WIDTH:
        return f"are {values.dtype} {values.shape}"
    if not np.isfinite(values).all():
        return "hold NaN or infinity"
    scores, flags = values[:, _REAL_WIDTH:], values[:, -1]
    if (scores < 0).any() or (scores > 1).any() or not np.isin(flags, (0, 1)).all():
        return "have a score outside 0..1, or `virtual` is neither 0 nor 1"
    return None

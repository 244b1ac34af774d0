"""The frame index: what loading a frame takes, built once, then memory-mapped.

One folder of `.npy` files per content of the tables, shared by every process that opens it.
`devkit.py` reads the tables, `infos.py` mmdet3d's info files; `checks.py` looks at what both found.
"""

import functools
import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bevcask.catalog import home
from bevcask.data.index.tables import tables_digest, unwritable
from bevcask.errors import DataError
from bevcask.geometry import CAMERAS, pose_matrix
from bevcask.paths import sync

_log = logging.getLogger(__name__)
SCHEMA = 2
SENSORS = ("LIDAR_TOP", *CAMERAS)
Arrays = dict[str, npt.NDArray[Any]]
Precision = Literal["float32", "float64"]


@dataclass(frozen=True)
class Content:
    """What an index is written from.

    Attributes:
        arrays: see `FrameIndex`.
        scenes: a name of its own for each scene, sorted.
        titles: what the tables call each of them; several may share a title.
        splits: split -> titles.
        notes: what a user should know of the data, a sentence each.
        precision: of poses and calibration, as their source has them.
    """

    arrays: Arrays
    scenes: list[str]
    titles: list[str]
    splits: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    precision: Precision = "float64"


class FrameIndex:
    """Read-only arrays over every keyframe of a dataset version.

    Rows are sorted by scene, then time. Poses are (x, y, z, qw, qx, qy, qz), metres. n frames,
    s LIDAR_TOP scans (keyframes and sweeps), m calibrations, N boxes:

    - `frame_token` (n, 16) uint8; `frame_scene` (n,) into `scenes`; `frame_time` (n,) microseconds
    - `frame_calibration` (n, 7) into `calibration_*`, `frame_ego_pose` (n, 7, 7): per `SENSORS`
    - `frame_camera_to_lidar` (n, 6, 4, 4), `frame_lidar_to_global` (n, 4, 4), float64
    - `frame_image` (n, 6) path, `frame_image_size` (n, 6, 2) height, width
    - `frame_scan` (n,) into `scan_*`; `frame_box` (n + 1,) where a frame's boxes start
    - `scan_path`, `scan_time` (s,) microseconds, `scan_calibration` (s,) into `calibration_*`,
      `scan_ego_pose` (s, 7), `scan_previous` (s,), -1 where the chain starts
    - `calibration_pose` (m, 7), `calibration_intrinsics` (m, 3, 3)
    - `box_values` (N, 9) float32 in the frame's LIDAR_TOP, `box_class`, `box_num_lidar_points`,
      `box_num_radar_points` (N,); `frame_annotations` (n, 32) sha256 of a frame's annotation
      records in the global frame, so that it depends on no calibration or pose
    """

    def __init__(self, root: Path, version: str, folder: Path, infos: Path | None = None) -> None:
        """Map the arrays of an index folder.

        Args:
            root: folder that `frame_image` and `scan_path` start from.
            version: of the dataset.
            folder: what `write_index` wrote.
            infos: the info file the index was built from; None: the tables.

        Raises:
            DataError: an array is damaged.
        """
        self.root = root
        self.version = version
        self.folder = folder
        self.infos = infos
        self._sweeps: dict[int, bool] = {}
        meta = json.loads((folder / "meta.json").read_text())
        self.digest: str = meta["digest"]
        self.scenes: list[str] = meta["scenes"]
        self.titles: list[str] = meta["titles"]
        self.notes: list[str] = meta["notes"]
        self.precision: Precision = meta["precision"]
        self.splits: dict[str, list[str]] = meta["splits"]
        try:
            self._arrays: Arrays = {
                # As plain arrays: each element of a memmap would be a memmap, slowly made.
                name: np.asarray(np.load(folder / f"{name}.npy", "r", allow_pickle=False))
                for name in meta["arrays"]
            }
        except (OSError, EOFError, ValueError) as error:
            raise DataError(
                f"{folder}: damaged frame index ({error}). Delete this folder; it is built again."
            ) from error

    @classmethod
    def open(cls, root: str | Path, version: str, rehash: bool = False) -> "FrameIndex":
        """Map the index of a dataset, building it first if these tables were never seen.

        Args:
            root: folder with samples/, maps/ and the version folder.
            version: name of the folder with the tables.
            rehash: hash the tables even if size, mtime and inode are unchanged.

        Raises:
            DataError: a table or map mask is missing or unreadable, or a keyframe lacks a sensor.
        """
        root = Path(root)
        digest = tables_digest(root, version, rehash)
        folder = home() / "index" / f"{digest[:32]}-{SCHEMA}"
        if not (folder / "meta.json").is_file():
            from bevcask.data.index.devkit import read_tables

            write_index(folder, digest, read_tables(root, version))
        return cls(root, version, folder).announced()

    def announced(self) -> "FrameIndex":
        """Log what a user should know of this data, once a process."""
        _announce(self.source, tuple(self.notes))
        return self

    @property
    def source(self) -> Path:
        """What describes the frames, for messages: the folder of the tables, or the info file."""
        return self.infos or self.root / self.version

    @functools.cached_property
    def counted(self) -> bool:
        """False where no box of the dataset has a point: then nobody counted them."""
        return bool(self["box_num_lidar_points"].any() or self["box_num_radar_points"].any())

    def seen(self, boxes: slice | npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Tell which of some boxes hold a LiDAR or radar point; all, where nobody counted them."""
        lidar, radar = self["box_num_lidar_points"][boxes], self["box_num_radar_points"][boxes]
        return np.asarray((lidar + radar > 0) | (not self.counted))

    def has_sweeps(self, scene: int) -> bool:
        """Tell whether any file of the sweeps that are listed for a scene is there.

        Copies of keyframes alone keep tables that list them all.
        """
        if scene not in self._sweeps:
            first, end = np.searchsorted(self["frame_scene"], [scene, scene + 1])
            previous = self["scan_previous"][self["frame_scan"][first:end]]
            paths = self["scan_path"][previous[previous >= 0]]
            self._sweeps[scene] = any((self.root / path.decode()).is_file() for path in paths)
        return self._sweeps[scene]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._arrays[name]

    def __len__(self) -> int:
        return len(self["frame_token"])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root, self.version, self.folder, self.infos)


@functools.cache
def _announce(source: Path, notes: tuple[str, ...]) -> None:
    for note in notes:
        _log.warning("%s: %s", source, note)


def write_index(folder: Path, digest: str, content: Content) -> None:
    """Write an index folder in one rename.

    Raises:
        DataError: the folder cannot be written.
    """
    meta = {
        "digest": digest,
        "scenes": content.scenes,
        "titles": content.titles,
        "splits": content.splits,
        "notes": content.notes,
        "precision": content.precision,
        "arrays": sorted(content.arrays),
    }
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, array in content.arrays.items():
            np.save(partial / f"{name}.npy", array)
        (partial / "meta.json").write_text(json.dumps(meta))
        for path in partial.iterdir():
            sync(path)
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not (folder / "meta.json").is_file():  # else another process built it meanwhile
            raise unwritable(folder, error) from error


def tokens_to_bytes(tokens: list[str]) -> npt.NDArray[np.uint8]:
    """Return 32-digit hexadecimal tokens as (n, 16) uint8."""
    return np.frombuffer(bytes.fromhex("".join(tokens)), np.uint8).reshape(-1, 16)


def transforms(arrays: Arrays) -> Arrays:
    """Return what follows from the poses and mountings of frames."""
    mountings = arrays["calibration_pose"][arrays["frame_calibration"]]
    to_global = np.array(
        [
            [
                pose_matrix(ego[:3], ego[3:]) @ pose_matrix(mounting[:3], mounting[3:])
                for ego, mounting in zip(egos, frame, strict=True)
            ]
            for egos, frame in zip(arrays["frame_ego_pose"], mountings, strict=True)
        ]
    )
    lidar_to_global = to_global[:, 0]
    return {
        "frame_lidar_to_global": lidar_to_global,
        "frame_camera_to_lidar": np.linalg.inv(lidar_to_global)[:, None] @ to_global[:, 1:],
    }


def pose_tolerance(*precisions: Precision | None) -> float:
    """Return how far two poses of these precisions may be apart: metres, entries of the rotation.

    Info files of mmdet3d 1.x round poses to float32, which is a tenth of a millimetre of a map.
    """
    return 1e-3 if "float32" in precisions else 1e-6

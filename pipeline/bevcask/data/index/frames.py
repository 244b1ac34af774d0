"""Which frames, and everything known about them: a selection of rows of the frame index."""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.catalog import resolve
from bevcask.config import DatasetConfig, Resampling
from bevcask.data.can_bus import CanBus
from bevcask.data.index.arrays import SENSORS, FrameIndex
from bevcask.data.virtual import virtual_digest
from bevcask.errors import BevcaskError, ConfigError, DataError
from bevcask.geometry import Matrix, pose_matrix
from bevcask.registry import suggest
from bevcask.tokens import Scenes, Tokens

_KEY = re.compile(rf"(?<![\w./-])dataset\.({'|'.join(DatasetConfig.model_fields)})\b")
MAX_SWEEP_GAP = 0.3
"""Seconds. nuScenes scans every 0.05 s; a longer link in a scan's chain of predecessors means that
the scans between were never there (keyframe-only copies), so the chain ends."""


class Frames:
    """Keyframes sorted by scene name, then time; cheap to pickle into workers.

    Attributes:
        index: the memory-mapped tables.
        rows: (n,) int64, rows of the index.
        tokens: sample token of each frame.
        scenes: scene name of each frame.
        virtual_points: folder of their virtual points, see `data.virtual`; None without.
        resampling: of their images, see `data.images.RESAMPLING`.
    """

    def __init__(
        self,
        index: FrameIndex,
        rows: npt.NDArray[np.int64],
        virtual_points: Path | None = None,
        resampling: Resampling = "fast",
    ) -> None:
        self.index = index
        self.rows = rows
        self.virtual_points = virtual_points
        self.resampling = resampling
        self.tokens = Tokens(index["frame_token"][rows])
        self.scenes = Scenes(index["frame_scene"][rows], index.scenes)

    @classmethod
    def select(cls, dataset: DatasetConfig) -> "Frames":
        """Open the index of a dataset and pick its frames.

        A split is one of the devkit's, or a name in `VERSION/splits.json`, or `all`. `scenes`
        narrows it, `limit` then keeps the first frames.

        Raises:
            ConfigError: unknown split or scene, or nothing is left; an info file without consent.
            DataError: tables or info file missing or unreadable, see `FrameIndex.open` and
                `open_infos`.
            UnknownNameError: `dataset.root=catalog:NAME` names no dataset.
        """
        root = Path(resolve("dataset", dataset.root))
        if dataset.infos is None:
            index = FrameIndex.open(root, dataset.version)
        else:
            from bevcask.data.index.infos import open_infos

            index = open_infos(
                Path(dataset.infos), root, dataset.version, trust=dataset.trust_pickle
            )
        numbers = _called(index, _split_scenes(index, dataset.split))
        if dataset.scenes is not None:
            _check_scenes(index, dataset, numbers)
            numbers &= _called(index, dataset.scenes)
        rows = np.flatnonzero(np.isin(index["frame_scene"], list(numbers)))[: dataset.limit]
        if not len(rows):
            raise ConfigError(
                f"dataset.split={dataset.split} selects none of the {len(index.scenes)} scenes in "
                f"{index.source} ({', '.join(index.scenes[:5])}, ...). "
                "Say dataset.split=NAME, of those that hold frames here: "
                f"{', '.join(_filled_splits(index))}."
            )
        virtual_points = None if dataset.virtual_points is None else Path(dataset.virtual_points)
        return cls(index, rows, virtual_points, dataset.resampling)

    @property
    def root(self) -> Path:
        return self.index.root

    @property
    def version(self) -> str:
        return self.index.version

    @property
    def timestamps(self) -> npt.NDArray[np.float64]:
        """Sample time of each frame, float64 (n,), seconds."""
        return np.asarray(self.index["frame_time"][self.rows] * 1e-6)

    @property
    def lidar_to_global(self) -> npt.NDArray[np.float64]:
        """Pose of LIDAR_TOP at each frame, float64 (n, 4, 4), metres."""
        return np.asarray(self.index["frame_lidar_to_global"][self.rows])

    @property
    def has_labels(self) -> bool:
        """False for a version without annotations (the test split)."""
        return len(self.index["box_values"]) > 0

    @property
    def scene_ranges(self) -> list[range]:
        """The frames of each scene, in the order of the selection, which is that of time."""
        codes_n = self.index["frame_scene"][self.rows]
        starts = [0, *(np.flatnonzero(np.diff(codes_n)) + 1).tolist(), len(codes_n)]
        return [range(a, b) for a, b in pairwise(starts) if b > a]

    def whole_scene(self, frames: range) -> range:
        """Return all index rows of the scene that some of the selection's frames are of."""
        codes = self.index["frame_scene"]
        first, end = np.searchsorted(codes, codes[self.rows[frames.start]] + [0, 1])
        return range(int(first), int(end))

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, token: str) -> bool:
        return token in self.tokens

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.index, self.rows, self.virtual_points, self.resampling)

    def row(self, token: str) -> int:
        """Return the index row of a token.

        Raises:
            DataError: the token is not in this selection.
        """
        return int(self._rows_of([token])[0])

    def _rows_of(self, tokens: Sequence[str]) -> npt.NDArray[np.int64]:
        places = self.tokens.positions(tokens)
        if (places < 0).any():
            raise DataError(
                f"sample {tokens[int(np.argmin(places))]!r} is not among the {len(self)} frames "
                f"selected from {self.index.source}. Check dataset.split, dataset.scenes, "
                "dataset.limit."
            )
        return self.rows[places]

    def in_order(self, tokens: Sequence[str]) -> "Frames":
        """Return the frames of these tokens, in this order of tokens; see `row`."""
        return self._with(self._rows_of(tokens))

    def keep(self, tokens: Collection[str]) -> "Frames":
        """Return only the frames with these tokens, in this order of frames."""
        places = self.tokens.positions(list(tokens))
        return self._with(self.rows[np.sort(places[places >= 0])])

    def _with(self, rows: npt.NDArray[np.int64]) -> "Frames":
        return Frames(self.index, rows, self.virtual_points, self.resampling)

    def previous_row(self, row: int, gap: int) -> int:
        """Return the index row `gap` keyframes before a row, or the first of its scene."""
        first = int(np.searchsorted(self.index["frame_scene"], self.index["frame_scene"][row]))
        return max(row - gap, first)

    def labels(
        self, token: str
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Return the ground truth of a frame.

        Returns:
            boxes (N, 9) float32 in the canonical LIDAR_TOP frame (`geometry.BOX_FIELDS`), classes
            (N,) int64 into `geometry.CLASSES`, LiDAR points per box (N,) int32.
        """
        part = self._boxes(token)
        return (
            np.array(self.index["box_values"][part]),
            np.array(self.index["box_class"][part]),
            np.array(self.index["box_num_lidar_points"][part]),
        )

    def seen(self, token: str) -> npt.NDArray[np.bool_]:
        """Tell which boxes are trained on and scored, (N,) bool; see `FrameIndex.seen`."""
        return self.index.seen(self._boxes(token))

    def _boxes(self, token: str) -> slice:
        row = self.row(token)
        start, stop = self.index["frame_box"][row : row + 2]
        return slice(int(start), int(stop))

    def scans(self, token: str, num_sweeps: int) -> list[int]:
        """Return scan rows of the keyframe and its nearest predecessors, at most `num_sweeps`.

        Fewer come back where the chain of predecessors ends (scene start, `MAX_SWEEP_GAP`), and
        none but the keyframe's in a scene of which no sweep was copied.
        """
        return self.chain(self.row(token), num_sweeps)

    def chain(self, row: int, num_sweeps: int) -> list[int]:
        """Return the same of a row of the index."""
        previous, time = self.index["scan_previous"], self.index["scan_time"]
        chain = [int(self.index["frame_scan"][row])]
        if num_sweeps > 1 and not self.index.has_sweeps(int(self.index["frame_scene"][row])):
            return chain
        while len(chain) < num_sweeps:
            scan = int(previous[chain[-1]])
            if scan < 0 or time[chain[-1]] - time[scan] > MAX_SWEEP_GAP * 1e6:
                break
            chain.append(scan)
        return chain

    def missing_sweeps(self, num_sweeps: int) -> int:
        """Return how many of the selection's sweeps the dataset does not have; 0 for 0 sweeps."""
        return sum(max(0, num_sweeps - len(self.chain(int(r), num_sweeps))) for r in self.rows)

    def sweep_to_lidar(self, token: str, scan: int) -> Matrix:
        """Return the 4x4 from a scan's sensor to the keyframe's LIDAR_TOP, by way of global."""
        lidar_to_global = self.index["frame_lidar_to_global"][self.row(token)]
        mounting = self.index["calibration_pose"][self.index["scan_calibration"][scan]]
        ego = self.index["scan_ego_pose"][scan]
        scan_to_global = pose_matrix(ego[:3], ego[3:]) @ pose_matrix(mounting[:3], mounting[3:])
        matrix: Matrix = np.linalg.inv(lidar_to_global) @ scan_to_global
        return matrix

    def identity(
        self,
        sensors: Sequence[str] = SENSORS,
        num_sweeps: int = 1,
        annotations: bool = True,
        gaps: Sequence[int] = (),
        virtual_points: bool = False,
        can_bus: bool = False,
        motion: bool = False,
    ) -> dict[str, Any]:
        """Return digests of what a reader of these frames depends on, as a tree.

        Leaves: `tokens`; `calibration.SENSOR` (mounting and intrinsics); `poses.SENSOR` (ego pose
        at exposure; for LIDAR_TOP also of its sweeps, with scan times); `poses.frames` (times and
        poses of keyframes); `annotations`; `virtual_points`, every byte of them; `can_bus.values`,
        and `can_bus.frames_without`, how many of the frames zeros stand in for. The dataset's own
        files and their names are not part of it.

        Args:
            sensors: those that are read.
            num_sweeps: LiDAR sweeps that are read.
            annotations: whether ground truth is read.
            gaps: how many keyframes back earlier ones are read with each frame.
            virtual_points: whether virtual points are read.
            can_bus: whether `data.can_bus` is read.
            motion: whether the ways between keyframes are looked at, as memory does.

        Raises:
            ConfigError, DataError: see `virtual_digest` and `CanBus.values`.
        """
        tree: dict[str, Any] = {
            "tokens": _digest(self.index["frame_token"][self.rows]),
            "calibration": {},
            "poses": {},
        }
        earlier = [self.previous_row(int(row), gap) for gap in gaps for row in self.rows]
        read = [*self.rows.tolist(), *earlier]
        for sensor in sensors:
            k = SENSORS.index(sensor)
            calibration = self.index["frame_calibration"][self.rows, k]
            tree["calibration"][sensor] = _digest(
                self.index["calibration_pose"][calibration],
                self.index["calibration_intrinsics"][calibration],
            )
            poses = [self.index["frame_ego_pose"][self.rows, k]]
            if gaps:
                poses.append(self.index["frame_ego_pose"][earlier, k])
            if sensor == "LIDAR_TOP":
                scans = [scan for row in self.rows for scan in self.chain(int(row), num_sweeps)]
                poses += [self.index["scan_time"][scans], self.index["scan_ego_pose"][scans]]
            tree["poses"][sensor] = _digest(*poses)
        if motion:
            tree["poses"]["frames"] = _digest(
                self.index["frame_time"][read], self.index["frame_lidar_to_global"][read]
            )
        if annotations:
            tree["annotations"] = _digest(self.index["frame_annotations"][self.rows])
        if virtual_points:
            tree["virtual_points"] = virtual_digest(self.virtual_points, self.tokens)
        if can_bus:
            told = CanBus(self.index)
            tree["can_bus"] = {
                "values": _digest(np.stack([told.values(row) for row in read])),
                "frames_without": told.without(self.rows),
            }
        return tree


@contextmanager
def speaking_of(section: str) -> Iterator[None]:
    """Let messages name the keys of another section that selects frames, e.g. `val`."""
    try:
        yield
    except BevcaskError as error:
        raise type(error)(_KEY.sub(rf"{section}.\1", str(error))) from error


def _digest(*arrays: npt.NDArray[Any]) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _custom_splits(index: FrameIndex) -> dict[str, list[str]]:
    path = index.root / index.version / "splits.json"
    if not path.is_file():
        return {}
    try:
        splits = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(splits, dict) or not all(isinstance(v, list) for v in splits.values()):
        raise DataError(f"{path}: expected a mapping from split name to a list of scene names.")
    return splits


def _filled_splits(index: FrameIndex) -> list[str]:
    splits = {**index.splits, **_custom_splits(index)}
    return ["all", *(name for name, members in splits.items() if set(members) & set(index.titles))]


def _split_scenes(index: FrameIndex, split: str) -> list[str]:
    if split == "all":
        return index.scenes
    custom = _custom_splits(index)
    if split in custom and split in index.splits:
        raise DataError(
            f"{index.root / index.version / 'splits.json'}: names a split {split!r}, which is one "
            "of the devkit's own; the devkit would ignore this one. Give it another name."
        )
    splits = {**index.splits, **custom}
    if split not in splits:
        raise ConfigError(
            f"dataset.split={split}: no such split.{suggest(split, ['all', *splits])} Known for "
            f"{index.source}: {', '.join(['all', *splits])}."
            + (
                " An info file names no scenes of those splits; it is a selection of its own: use "
                "dataset.split=all (dataset=infos does)."
                if index.infos
                else ""
            )
        )
    return splits[split]


def _called(index: FrameIndex, names: Collection[str]) -> set[int]:
    """Return the numbers of the scenes that names stand for, their own or those of the tables."""
    wanted = set(names)
    both = zip(index.scenes, index.titles, strict=True)
    return {number for number, own in enumerate(both) if not wanted.isdisjoint(own)}


def _check_scenes(index: FrameIndex, dataset: DatasetConfig, chosen: set[int]) -> None:
    assert dataset.scenes is not None
    problems = []
    for scene in dataset.scenes:
        found = _called(index, [scene])
        if not found:
            problems.append(f"{scene} is not in the dataset.{suggest(scene, index.scenes)}")
        elif not found & chosen:
            problems.append(f"{scene} is not in split {dataset.split}; use dataset.split=all.")
    if problems:
        raise ConfigError(
            f"dataset.scenes for {index.source}: {' '.join(problems)} "
            f"Known: {', '.join(index.scenes[:10])}{', ...' if len(index.scenes) > 10 else ''}."
        )

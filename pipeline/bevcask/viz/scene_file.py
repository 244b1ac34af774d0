"""A scene of a cache on its timeline, as an MCAP file for Foxglove and what else reads those."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb

from bevcask.cache import Cache
from bevcask.data.index.frames import Frames
from bevcask.data.lidar import read_points
from bevcask.errors import DataError, MissingDependencyError, UnknownNameError
from bevcask.geometry import CAMERAS
from bevcask.progress import progress_bar
from bevcask.registry import suggest
from bevcask.viz import foxglove
from bevcask.viz.layers import BevMap, BoxLayer
from bevcask.viz.sample import first_views, maps_from_above, teacher_boxes, true_boxes

LIDAR, GLOBAL = "LIDAR_TOP", "global"
_RANGE = (2.0, 99.5)  # percentiles of a scene's first map: what its colours span
Entry = tuple[str, str, foxglove.Message]
"""Topic, name of the message without `foxglove.`, message."""
Limits = dict[str, tuple[float, float]]


def write_scene(cache: Cache, frames: Frames, scene: str | None, path: Path) -> dict[str, Any]:
    """Write all frames of a scene that a cache holds; `path` is replaced in one step.

    Topics: `/tf` (global -> LIDAR_TOP -> cameras), `/lidar`, `/truth`, `/CAMERA/image` (the bytes
    of the file) and `/CAMERA/calibration`, `/teacher/TARGET` for boxes, maps and heatmaps. Boxes,
    points and maps are in the canonical LIDAR_TOP frame of their keyframe.

    Args:
        cache: of teacher outputs; frames that are not committed yet come without them.
        frames: of the dataset it was made from.
        scene: name; None for the first of the cache.
        path: the file.

    Returns:
        `scene`, `frames`, `topics` and `messages` (numbers of them), `mcap_bytes`.

    Raises:
        MissingDependencyError: no `mcap` package.
        UnknownNameError: the cache has no such scene.
        DataError: a file of the dataset is missing or damaged.
    """
    film = _require_writer(path)
    name = _scene(cache, scene)
    pairs = zip(cache.frames.tokens, cache.frames.scenes, strict=True)
    tokens = [token for token, own in pairs if str(own) == name]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    limits: Limits = {}
    with partial.open("wb") as file, progress_bar("mcap", len(tokens), silent_for=2.0) as bar:
        entries = _Entries(film(file))
        entries.begin({"scene": name, "cache": cache.url, "cache_id": cache.id})
        for token in tokens:
            time = int(frames.index["frame_time"][frames.row(token)]) * 1000
            for entry in _entries(cache, frames, token, time, limits):
                entries.add(time, entry)
            bar.advance()
        entries.end()
    partial.replace(path)
    return {
        "scene": name,
        "frames": len(tokens),
        "topics": len(entries.channels),
        "messages": entries.count,
        "mcap_bytes": path.stat().st_size,
    }


class _Entries:
    """What is in an MCAP file so far; each topic and schema is declared where it is first used."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._schemas: dict[str, int] = {}
        self.channels: dict[str, int] = {}
        self.count = 0

    def begin(self, about: dict[str, str]) -> None:
        self._writer.start(library="bevcask")
        self._writer.add_metadata("bevcask", about)

    def add(self, time: int, entry: Entry) -> None:
        topic, kind, message = entry
        if topic not in self.channels:
            self.channels[topic] = self._writer.register_channel(topic, "json", self._schema(kind))
        data = json.dumps(message, separators=(",", ":")).encode()
        self._writer.add_message(self.channels[topic], time, data, time, self.count)
        self.count += 1

    def end(self) -> None:
        self._writer.finish()

    def _schema(self, kind: str) -> int:
        if kind not in self._schemas:
            name = f"foxglove.{kind}"
            data = json.dumps(foxglove.SCHEMAS[name]).encode()
            self._schemas[kind] = self._writer.register_schema(name, "jsonschema", data)
        return self._schemas[kind]


def _require_writer(path: Path) -> Any:
    try:
        from mcap.writer import Writer
    except ImportError as error:
        raise MissingDependencyError(
            f"mcap={path} needs the package mcap ({error}): pip install 'bevcask[mcap]'."
        ) from error
    return Writer


def _scene(cache: Cache, wanted: str | None) -> str:
    names = list(dict.fromkeys(map(str, cache.frames.scenes)))
    if wanted is None:
        return names[0]
    if wanted not in names:
        raise UnknownNameError(
            f"scene={wanted}: none of the {len(names)} scenes of {cache.url}."
            f"{suggest(wanted, names)} It has {', '.join(names[:5])}{', ...' * (len(names) > 5)}"
        )
    return wanted


def _entries(
    cache: Cache, frames: Frames, token: str, time: int, limits: Limits
) -> Iterator[Entry]:
    index, row = frames.index, frames.row(token)
    cameras_V44 = index["frame_camera_to_lidar"][row]
    mounted = [(LIDAR, name, own) for name, own in zip(CAMERAS, cameras_V44, strict=True)]
    poses = [(GLOBAL, LIDAR, index["frame_lidar_to_global"][row]), *mounted]
    yield "/tf", "FrameTransforms", foxglove.transforms(time, poses)
    points = foxglove.points(time, LIDAR, read_points(frames, token, 1))
    yield "/lidar", "PointCloud", points
    yield _boxes("/truth", true_boxes(frames, token), time)
    yield from _cameras(frames, row, time)
    shard = cache.layout.row_of[token] // cache.layout.shard_rows
    if shard in cache.committed:
        yield from _teacher(cache, token, time, limits)


def _cameras(frames: Frames, row: int, time: int) -> Iterator[Entry]:
    index = frames.index
    for number, name in enumerate(CAMERAS):
        path = frames.root / index["frame_image"][row, number].decode()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}). Fetch the file again, or export "
                "another scene=NAME."
            ) from None
        kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
        yield f"/{name}/image", "CompressedImage", foxglove.image(time, name, data, kind)
        height, width = (int(size) for size in index["frame_image_size"][row, number])
        calibration = index["frame_calibration"][row, 1 + number]
        matrix_33 = np.asarray(index["calibration_intrinsics"][calibration])
        message = foxglove.calibration(time, name, (height, width), matrix_33)
        yield f"/{name}/calibration", "CameraCalibration", message


def _teacher(cache: Cache, token: str, time: int, limits: Limits) -> Iterator[Entry]:
    views = first_views(cache)
    targets = cache.read_float(token, list(views))
    for name, spec in views.items():
        topic = f"/teacher/{name}"
        for own in teacher_boxes(cache, {name: targets[name]}):
            yield _boxes(topic, own, time)
        for bev in maps_from_above("teacher", {name: spec}, targets):
            values_YX = bev.values_YX
            low, high = limits.setdefault(topic, _limits(bev))
            rgba_YX4 = _coloured(bev, low, high)
            yield topic, "Grid", foxglove.grid(time, LIDAR, bev.grid, values_YX, rgba_YX4)


def _limits(bev: BevMap) -> tuple[float, float]:
    low, high = bev.limits or np.percentile(bev.values_YX, _RANGE).tolist()
    return low, high


def _coloured(bev: BevMap, low: float, high: float) -> npt.NDArray[np.uint8]:
    share_YX = np.clip((bev.values_YX - low) / max(high - low, 1e-12), 0, 1)
    rgba_YX4: npt.NDArray[np.uint8] = mpl.colormaps[bev.colour_map](share_YX, bytes=True)
    return rgba_YX4


def _boxes(topic: str, own: BoxLayer, time: int) -> Entry:
    message = foxglove.boxes(time, LIDAR, topic, own.boxes_N9, own.names, to_rgb(own.colour))
    return topic, "SceneUpdate", message

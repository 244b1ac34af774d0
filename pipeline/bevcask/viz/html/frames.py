"""One frame of a cache as plain JSON data: rasters, boxes, queries, points, cameras."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from bevcask.cache.encoded import Encoded
from bevcask.data.images import read_image
from bevcask.data.index.frames import Frames
from bevcask.data.lidar import read_points
from bevcask.errors import BevcaskError
from bevcask.geometry import CAMERAS
from bevcask.targets.spec import TargetSpec
from bevcask.viz.html.matching import match
from bevcask.viz.html.rasters import Rasters, webp

MIN_SCORE = 0.3
"""Of the boxes that are shown and counted."""
POINT_STEP = 0.05
"""Metres; points are stored in such steps."""
_REFERENCES, _PLACES = "query_points", "query_places"
_MAPS = ("dense_bev", "heatmap")
_QUALITY = 60  # of JPEG
_SCORE, _CLASS = 9, 10

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Content:
    """What is shown of every frame.

    Attributes:
        specs: targets by name, one a tap.
        rasters: of their maps.
        points: LiDAR points at most.
        half_extent: metres, of the range that shares of query points and places are of.
    """

    specs: Mapping[str, TargetSpec]
    rasters: Rasters
    points: int
    half_extent: float


def shown(specs: Mapping[str, TargetSpec]) -> list[str]:
    """Return the targets that can be drawn from above."""
    kinds = (*_MAPS, "box_set", _REFERENCES, _PLACES)
    drawn = [name for name, spec in specs.items() if spec.tap.kind in kinds]
    return [
        name for name in drawn if specs[name].tap.kind != _REFERENCES or _is_reference(specs[name])
    ]


def _is_reference(spec: TargetSpec) -> bool:
    return spec.tap.shape[1] == 3  # offsets are of several points


def maps_of(specs: Mapping[str, TargetSpec]) -> list[str]:
    """Return the targets with cells."""
    return [name for name, spec in specs.items() if spec.tap.kind in _MAPS]


def record(
    content: Content, stored: Mapping[str, Encoded[Any]], frames: Frames | None, token: str
) -> dict[str, Any]:
    """Return a frame without its cameras, and how many boxes were missed and none.

    Args:
        content: what is shown.
        stored: targets of the frame.
        frames: of the dataset; None leaves ground truth and points out.
        token: of the sample.
    """
    floats = {name: own.floats() for name, own in stored.items()}
    maps = {name: floats[name] for name in maps_of(content.specs) if name in floats}
    regions = {name: own.region for name, own in stored.items() if own.region is not None}
    values, labels = content.rasters.strips(maps, regions)
    said_M11 = boxes_of(content.specs, stored, floats)
    out: dict[str, Any] = {
        "values": webp(values),
        "labels": webp(labels, exact=True),
        "teacher": None if said_M11 is None else drawn(said_M11),
        "queries": _queries(content, stored, floats),
        "truth": None,
        "points": None,
    }
    if frames is None or token not in frames:
        return out
    truth_N9, classes_N, _ = frames.labels(token)
    seen_N = frames.seen(token)
    if frames.has_labels:
        out["truth"] = drawn(np.column_stack([truth_N9, classes_N, seen_N]))
        if said_M11 is not None:
            found_N, alarm_M = match(truth_N9, classes_N, seen_N, said_M11)
            out["found"], out["alarms"] = found_N.astype(int).tolist(), alarm_M.astype(int).tolist()
    out["points"] = packed_points(frames, token, content.points)
    return out


def boxes_of(
    specs: Mapping[str, TargetSpec],
    stored: Mapping[str, Encoded[Any]],
    floats: Mapping[str, Floats],
) -> Floats | None:
    """Return boxes of enough score (M, 11), best first; None where no boxes are cached."""
    for name, spec in specs.items():
        if spec.tap.kind == "box_set" and name in stored:
            rows_M11 = floats[name][: int(stored[name].count or 0)]
            return rows_M11[rows_M11[:, _SCORE] >= MIN_SCORE]
    return None


def drawn(rows_N11: Floats) -> list[list[float]]:
    """Return boxes for the page, which draws no velocities: x, y, z, l, w, h, yaw, two more."""
    return rounded(np.delete(rows_N11, (7, 8), axis=1))


def rounded(rows: Floats) -> list[list[float]]:
    """Return numbers to the centimetre; of boxes that is more than is drawn."""
    whole: list[list[float]] = np.round(rows.astype(np.float64), 2).tolist()
    return whole


def _queries(
    content: Content, stored: Mapping[str, Encoded[Any]], floats: Mapping[str, Floats]
) -> list[list[float]] | None:
    """Return where queries are, (Q, 2) metres; None where no such target is cached."""
    for name, spec in content.specs.items():
        if name not in stored or spec.tap.kind not in (_REFERENCES, _PLACES):
            continue
        rows = floats[name][: int(stored[name].count or 0)]
        if spec.tap.kind == _PLACES:
            places = rows.reshape(len(rows), -1, 3)
            weight = places[..., 2:] / np.maximum(places[..., 2:].sum(1, keepdims=True), 1e-9)
            rows = (places[..., :2] * weight).sum(1)
        return rounded((2 * rows[:, :2] - 1) * content.half_extent)
    return None


def packed_points(frames: Frames, token: str, number: int) -> str | None:
    """Return evenly chosen points of the keyframe, base64 of int16 (P, 3) steps; None: no file."""
    try:
        points_P5 = read_points(frames, token, 1)
    except BevcaskError:
        return None
    chosen = np.linspace(0, len(points_P5) - 1, min(number, len(points_P5))).astype(int)
    steps = np.clip(points_P5[chosen, :3] / POINT_STEP, -32768, 32767).astype("<i2")
    return base64.b64encode(steps.tobytes()).decode()


def cameras(frames: Frames, token: str, width: int) -> dict[str, Any]:
    """Return the camera images of a frame, and how LiDAR points come to their pixels.

    Args:
        frames: hold the token.
        token: of the sample.
        width: of the images in pixels; narrower ones stay as they are.

    Returns:
        Camera -> `image` (base64 of JPEG), `size` (height, width), `matrix` (3 rows of 4: canonical
        LIDAR_TOP, metres -> pixels times depth). Cameras whose file cannot be read are left out.
    """
    out = {}
    for number, name in enumerate(CAMERAS):
        try:
            full_width = int(frames.index["frame_image_size"][frames.row(token), number, 1])
            image_HW3, matrix_34 = thumbnail(frames, token, number, min(width, full_width))
        except BevcaskError:
            continue
        file = io.BytesIO()
        Image.fromarray(image_HW3).save(file, "JPEG", quality=_QUALITY)
        out[name] = {
            "image": base64.b64encode(file.getvalue()).decode(),
            "size": list(image_HW3.shape[:2]),
            "matrix": np.round(matrix_34, 4).tolist(),
        }
    return out


def thumbnail(
    frames: Frames, token: str, number: int, width: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Return a camera's image (H, W, 3) at a width, and 3x4 canonical LIDAR_TOP -> its pixels.

    Raises:
        DataError: the image cannot be read.
    """
    index, row = frames.index, frames.row(token)
    full_height, full_width = (int(size) for size in index["frame_image_size"][row, number])
    times = next((n for n in (8, 4, 2) if full_width >= n * width), 1)
    path = frames.root / index["frame_image"][row, number].decode()
    image_HW3 = read_image(path, (full_height, full_width), times)
    size = (width, round(full_height * width / full_width))
    small_HW3 = np.asarray(cv2.resize(image_HW3, size, interpolation=cv2.INTER_AREA), np.uint8)
    calibration = index["frame_calibration"][row, 1 + number]
    scale = np.diag([width / full_width, width / full_width, 1.0])
    intrinsics = scale @ np.asarray(index["calibration_intrinsics"][calibration])
    lidar_to_camera = np.linalg.inv(index["frame_camera_to_lidar"][row, number])
    return small_HW3, intrinsics @ lidar_to_camera[:3]

"""Is a camera where its calibration says? Where LiDAR sees an edge, so should the camera.

Points of the keyframe before which something is much farther away lie on the border of an object;
brought into the image, they lie where it changes sideways. If they do so only after a turn, the
camera is turned. Turns up or down, or about the axis of sight, are not told: few edges lie level.
"""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from bevcask.data.index.frames import Frames
from bevcask.data.lidar import read_scan
from bevcask.errors import BevcaskError
from bevcask.evaluation.readings import DECLARED, Finding, decide
from bevcask.geometry import CAMERAS
from bevcask.progress import Ticker
from bevcask.viz.html.frames import thumbnail

Floats = npt.NDArray[np.floating[Any]]
WIDTH = 400  # pixels of the images that are looked at
TURNS = (-3.0, -2.5, -2.0, -1.5, -1.0, 0.0, 1.0, 1.5, 2.0, 2.5, 3.0)  # degrees; less is drowned
_BLUR = 0.25  # degrees
_JUMP = 1.0  # metres, from a point to what is behind it
_RANGE = (3.0, 40.0)  # metres
_FEW = 10  # points
_LOUD = 98.0  # percentile of edges that counts as much as those above
_MARGIN = 0.02  # edges of the ground and of shadows are everywhere


def judge_cameras(frames: Frames, tokens: Sequence[str], bar: Ticker) -> list[Finding]:
    """Judge where every camera looks, frame by frame.

    Args:
        frames: hold the tokens.
        tokens: frames to look at.
        bar: moved by one a frame.

    Returns:
        Of each camera, as target, a finding `calibration`. Frames whose files cannot be read count
        for nothing.
    """
    profiles: dict[str, list[Floats]] = {name: [] for name in CAMERAS}
    for token in tokens:
        bar.advance()
        try:
            edges_P3 = lidar_edges(_scan(frames, token))
        except BevcaskError:
            continue
        for number, name in enumerate(CAMERAS):
            try:
                image_HW3, matrix_34 = thumbnail(frames, token, number, WIDTH)
            except BevcaskError:
                continue
            profiles[name] += _profile(image_HW3, matrix_34, edges_P3)
    return [_judge(name, own) for name, own in profiles.items()]


def _judge(name: str, profiles: Sequence[Floats]) -> Finding:
    table_NT = np.stack(profiles) if profiles else np.zeros((0, len(TURNS)))
    errors = {
        f"turned by {turn:+g} degrees" if turn else DECLARED: -table_NT[:, place]
        for place, turn in enumerate(TURNS)
    }
    return decide(name, "calibration", errors, margin=_MARGIN, graded=True)


def _scan(frames: Frames, token: str) -> Floats:
    index, row = frames.index, frames.row(token)
    return read_scan(frames.root / index["scan_path"][index["frame_scan"][row]].decode())


def lidar_edges(points_P5: Floats) -> Floats:
    """Return the points of a scan before which the next one of their ring is much farther away.

    Args:
        points_P5: x, y, z metres, intensity, ring.
    """
    azimuth_P = np.arctan2(points_P5[:, 1], points_P5[:, 0])
    order_P = np.lexsort((azimuth_P, points_P5[:, 4]))
    ring_P = points_P5[order_P, 4]
    far_P = np.linalg.norm(points_P5[order_P, :3], axis=1)
    jump_P = np.zeros(len(far_P))
    for step in (1, -1):
        gap_P = np.roll(far_P, step) - far_P
        gap_P[np.roll(ring_P, step) != ring_P] = 0
        jump_P = np.maximum(jump_P, gap_P)
    edge_P = (jump_P > _JUMP) & (far_P > _RANGE[0]) & (far_P < _RANGE[1])
    edges: Floats = points_P5[order_P[edge_P], :3].astype(np.float64)
    return edges


def _profile(image_HW3: npt.NDArray[np.uint8], matrix_34: Floats, edges_P3: Floats) -> list[Floats]:
    """Return how much of an edge the image has at the points, at each turn; nothing of too few."""
    seen_P3 = edges_P3 @ matrix_34[:, :3].T + matrix_34[:, 3]
    seen_P3 = seen_P3[seen_P3[:, 2] > 1]
    uv_P2 = seen_P3[:, :2] / seen_P3[:, 2:]
    sight_3 = matrix_34[2, :3]
    focal = float(np.linalg.norm(matrix_34[0, :3] - sight_3 * (matrix_34[0, :3] @ sight_3)))
    pixels = focal * math.radians(1.0)
    height, width = image_HW3.shape[:2]
    border = TURNS[-1] * pixels
    inside_P = (uv_P2[:, 0] > border) & (uv_P2[:, 0] < width - 1 - border)
    inside_P &= (uv_P2[:, 1] > 0) & (uv_P2[:, 1] < height - 1)
    uv_P2 = uv_P2[inside_P]
    if len(uv_P2) < _FEW:
        return []
    grey_HW = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY).astype(np.float32)
    edge_HW = np.abs(cv2.Sobel(grey_HW, cv2.CV_32F, 1, 0))
    edge_HW = np.minimum(edge_HW, np.percentile(edge_HW, _LOUD)).astype(np.float32)
    edge_HW = cv2.GaussianBlur(edge_HW, (0, 0), _BLUR * pixels)
    rows_1P = uv_P2[None, :, 1].astype(np.float32)
    columns_1P = uv_P2[None, :, 0].astype(np.float32)
    turned = [columns_1P + np.float32(turn * pixels) for turn in TURNS]
    at_T = np.array(
        [cv2.remap(edge_HW, own_1P, rows_1P, cv2.INTER_LINEAR).mean() for own_1P in turned]
    )
    return [at_T / at_T.mean()] if at_T.mean() > 0 else []

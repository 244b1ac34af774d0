"""Boxes in images: hulls of what is before the lens, moved by the draw, where nothing is nearer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import BoxVisibility, view_points
from shapely.geometry import MultiPoint, box

from bevcask.geometry import CAMERAS, CLASSES, pose_matrix
from bevcask.targets.image_boxes import (
    IMAGE_CHANNEL,
    channels_of,
    image_boxes,
    into_network,
    seen_boxes,
    visible,
)
from detectors.golden import FOLDER, MISSING

SIZE = (450, 800)
INNER = np.array([[500.0, 0, 400], [0, 500, 225], [0, 0, 1]])
AHEAD = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # looks along +y


def box_at(*centre: float, size: float = 2.0) -> np.ndarray:
    return np.array([[*centre, size, size, size, 0, 0, 0]], dtype=np.float64)


def test_a_box_ahead_by_hand() -> None:
    corners, centres, depths, rows = seen_boxes(box_at(3, 11, 1), AHEAD, INNER, SIZE)
    near, far = 10.0, 12.0
    wanted = [400 + 500 * 2 / far, 225 - 500 * 2 / near, 400 + 500 * 4 / near, 225]
    np.testing.assert_allclose(corners, [wanted])
    np.testing.assert_allclose(centres, [[400 + 500 * 3 / 11, 225 - 500 / 11]])
    assert depths.tolist() == [11]
    assert rows.tolist() == [0]


@pytest.mark.parametrize(
    "own",
    [
        box_at(0, -10, 0),
        box_at(0, -0.5, 0),  # its front is before the lens, its centre is not
        box_at(60, 20, 0),
        box_at(0, 900, 0, size=0.5),
    ],
    ids=["behind", "around", "beside", "too small"],
)
def test_what_is_not_seen(own: np.ndarray) -> None:
    for part in seen_boxes(own, AHEAD, INNER, SIZE):
        assert len(part) == 0


def test_the_hull_is_clipped_and_not_its_border() -> None:
    """A box turned by 45 degrees at the corner of the image: its hull is narrower in view."""
    turned = box_at(9.0, 11, 4.4, size=2.0)
    turned[0, 6] = np.pi / 4
    corners, centres, _, _ = seen_boxes(turned, AHEAD, INNER, SIZE)
    left, top, right, bottom = corners[0]
    assert top == 0
    assert right == 800
    assert centres[0, 0] > 800, "a centre may lie outside"
    assert 0 < left < right
    assert bottom < 225


def test_a_mirrored_crop() -> None:
    image_aug = np.array([[-0.5, 0, 300.0], [0, 0.5, -25], [0, 0, 1]])
    corners, centres, kept = into_network(
        np.array([[100.0, 60, 300, 100], [596, 60, 800, 100], [0, 0, 50, 51]]),
        np.array([[200.0, 80], [700, 90], [10, 10]]),
        image_aug,
        (64, 250),
    )
    np.testing.assert_allclose(corners[0], [150, 5, 250, 25])
    np.testing.assert_allclose(centres[0], [200, 15])
    np.testing.assert_allclose(corners[1], [0, 5, 2, 25])
    np.testing.assert_allclose(centres[1], [0, 20])
    assert kept.tolist() == [True, True, False]


def test_nearer_boxes_hide_others() -> None:
    """Those that own a pixel, farthest first; the farthest of all owns the background."""
    corners = np.array([[10.0, 10, 30, 30], [12, 12, 20, 20], [11, 11, 29, 29], [2, 2, 8, 8]])
    depths = np.array([10.0, 40, 20, 30])
    assert visible(corners, depths, (40, 40)).tolist() == [1, 3, 0]
    assert visible(corners[:0], depths[:0], (40, 40)).tolist() == []


def test_classes_have_other_channels() -> None:
    released = ("car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle")
    released += ("pedestrian", "traffic_cone", "barrier")
    assert [released[channel] for channel in IMAGE_CHANNEL] == list(CLASSES)
    assert channels_of(torch.tensor([4, 5])).tolist() == [2, 9]


def test_each_camera_has_its_own() -> None:
    boxes = torch.from_numpy(np.concatenate([box_at(3, 11, 1), box_at(3, -11, 1)])).float()
    back = np.array([[-1.0, 0, 0, 0], [0, 0, -1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    cameras = torch.from_numpy(np.stack([AHEAD, back]))
    inner = torch.from_numpy(np.stack([INNER, INNER]))
    aug = torch.eye(3).expand(2, 3, 3)
    first, second = image_boxes(boxes, torch.tensor([4, 7]), cameras, inner, aug, (SIZE, SIZE))
    assert first.classes_N.tolist() == [4]
    assert second.classes_N.tolist() == [7]
    assert first.corners_N4.dtype == torch.float32
    assert float(second.centres_N2[0, 0]) < 400


def test_boxes_of_the_devkits_geometry(tiny_world: Path) -> None:
    """By its boxes, which stand on the ground however the car leans, and its projection."""
    devkit = NuScenes("v1.0-synthetic", str(tiny_world), verbose=False)
    checked = 0
    for sample in devkit.sample:
        lidar = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
        to_global = sensor_to_global(devkit, lidar)
        boxes = np.stack([in_frame(devkit.get_box(t), to_global) for t in sample["anns"]])
        for camera in CAMERAS:
            data = devkit.get("sample_data", sample["data"][camera])
            _, shown, inner = devkit.get_sample_data(data["token"], BoxVisibility.NONE)
            to_camera = np.linalg.inv(sensor_to_global(devkit, data)) @ to_global
            up = to_global[2, :3]
            found, _, _, rows = seen_boxes(boxes, to_camera, inner, (112, 200), up)
            hulls = [hull_of(own, inner) for own in shown]
            wanted = {n: own for n, own in enumerate(hulls) if own is not None}
            assert rows.tolist() == list(wanted)
            for row, corners in zip(rows, found, strict=True):
                np.testing.assert_allclose(corners, wanted[row], atol=1e-3)
            checked += len(rows)
    assert checked > 100


def hull_of(own: Box, inner: np.ndarray) -> tuple[float, ...] | None:
    """Return what an image of 200 x 112 shows of a box of a camera's frame, if it is a pixel."""
    if own.center[2] <= 0:
        return None
    corners = own.corners()
    front = view_points(corners[:, corners[2] > 0], inner, normalize=True)[:2].T
    hull = MultiPoint(front).convex_hull.intersection(box(0, 0, 200, 112))
    if hull.is_empty or min(np.ptp(np.reshape(hull.bounds, (2, 2)), 0)) < 1:
        return None
    return tuple(hull.bounds)


def sensor_to_global(devkit: NuScenes, data: dict[str, Any]) -> np.ndarray:
    ego = devkit.get("ego_pose", data["ego_pose_token"])
    mounted = devkit.get("calibrated_sensor", data["calibrated_sensor_token"])
    to_global, to_ego = (pose_matrix(p["translation"], p["rotation"]) for p in (ego, mounted))
    return to_global @ to_ego


def in_frame(own: Box, to_global: np.ndarray) -> np.ndarray:
    """Return a box of the devkit as ours, in a frame."""
    turn = np.linalg.inv(to_global[:3, :3]) @ own.rotation_matrix
    centre = np.linalg.inv(to_global) @ [*own.center, 1]
    width, length, height = own.wlh
    return np.array([*centre[:3], length, width, height, np.arctan2(turn[1, 0], turn[0, 0]), 0, 0])


@pytest.mark.skipif(not (FOLDER / "streampetr_a.npz").is_file(), reason=MISSING)
@pytest.mark.parametrize("case", ["plain", "flip", "flip_narrow"])
def test_boxes_of_the_released_pipeline(case: str) -> None:
    data = dict(np.load(FOLDER / "streampetr_a.npz"))
    drawn = {name: float(data[f"pipe/{case}/draw_{name}"]) for name in ("resize", "crop_x")}
    scale = drawn["resize"]
    height, width = data[f"pipe/{case}/image_bgr"].shape[:2]
    full = int(180 * scale)
    image_aug = np.array([[scale, 0, -int(drawn["crop_x"])], [0, scale, height - full], [0, 0, 1]])
    if int(data[f"pipe/{case}/draw_flip"]):
        image_aug[0] = [-scale, 0, width + int(drawn["crop_x"])]
    wanted = data[f"pipe/{case}/intrinsic"][:3, :3]
    np.testing.assert_allclose(image_aug @ data["pipe/intrinsic"][:3, :3], wanted, atol=2e-4)
    corners, centres, kept = into_network(
        data["pipe/boxes2d"].astype(float),
        data["pipe/centers2d"].astype(float),
        image_aug,
        (height, width),
    )
    order = np.flatnonzero(kept)
    order = order[visible(corners[order], data["pipe/depths2d"][order], (height, width))]
    np.testing.assert_allclose(corners[order], data[f"pipe/{case}/boxes2d"], atol=1e-4)
    np.testing.assert_allclose(centres[order], data[f"pipe/{case}/centers2d"], atol=1e-4)
    assert np.array_equal(data["pipe/labels2d"][order], data[f"pipe/{case}/labels2d"])

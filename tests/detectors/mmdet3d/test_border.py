"""What crosses the border equals what mmdet3d's own pipelines and structures say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bevcask.config import AugmentConfig, DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.data.samples import SampleReader, collate
from bevcask.detectors.base import Batch, Labels
from bevcask.detectors.mmdet3d import recipe as recipes
from bevcask.detectors.mmdet3d.border import camera_to_lidar, from_mmdet3d, to_mmdet3d
from bevcask.detectors.mmdet3d.recipe import Mmdet3dConfig, Recipe
from bevcask.geometry import CAMERAS, CLASSES, box_corners_bev
from bevcask.targets.pixels import nearest_depths
from contracts.detector import boxes_of_all_classes, labels_of
from contracts.mmdet3d_reference import lidar_info, real, theirs

pytestmark = pytest.mark.mmdet3d

CENTERPOINT = "centerpoint_voxel01_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d"
POINTPILLARS = "pointpillars_hv_fpn_sbn-all_8xb4-2x_nus-3d"
FCOS3D = "fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d"


def read(name: str, **more: Any) -> Recipe:
    return recipes.read(Mmdet3dConfig(config=name, **more))


def ours(frames: Frames, token: str, recipe: Recipe) -> Batch:
    return collate([SampleReader(frames, recipe.inputs, None, 0).read(token)])


@pytest.mark.nuscenes
@pytest.mark.parametrize("name", [CENTERPOINT, POINTPILLARS])
def test_points_of_real_keyframes_are_those_of_its_pipeline(nuscenes_root: Path, name: str) -> None:
    frames, recipe = real(nuscenes_root), read(name)
    for token in frames.tokens:
        info = lidar_info(frames, token, 1)
        expected = theirs(name, info)["inputs"]["points"]
        got = to_mmdet3d(ours(frames, token, recipe), recipe)["inputs"]["points"][0]
        if 3 in recipe.point_columns:
            assert float(got[:, 3].max()) > 100  # intensity 0..255
        assert torch.equal(got, expected)


def test_points_with_sweeps_are_those_of_its_pipeline(tiny_world: Path) -> None:
    frames = Frames.select(
        DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="all")
    )
    recipe = read(CENTERPOINT)
    found = set()
    for token in frames.tokens[:3]:
        info = lidar_info(frames, token, recipe.inputs.num_sweeps)
        found.add(len(info.get("lidar_sweeps", ())))
        expected = theirs(CENTERPOINT, info)["inputs"]["points"]
        got = to_mmdet3d(ours(frames, token, recipe), recipe)["inputs"]["points"][0]
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
    assert len(found) > 1
    assert 0 in found


@pytest.mark.nuscenes
def test_pixels_of_real_images_are_those_of_its_pipeline(nuscenes_root: Path) -> None:
    from mmdet3d.registry import MODELS

    frames, recipe = real(nuscenes_root), read(FCOS3D)
    token = frames.tokens[0]
    batch = ours(frames, token, recipe)
    data = to_mmdet3d(batch, recipe)
    preprocess = MODELS.build(recipe.model["data_preprocessor"])
    got = preprocess(data)["inputs"]["imgs"]
    row = frames.row(token)
    for view, camera in enumerate(recipe.cameras):
        index = CAMERAS.index(camera)
        path = frames.root / frames.index["frame_image"][row, index].decode()
        calibration = frames.index["frame_calibration"][row, 1 + index]
        intrinsics = frames.index["calibration_intrinsics"][calibration]
        info = {"images": {camera: {"img_path": str(path), "cam2img": intrinsics.tolist()}}}
        packed = theirs(FCOS3D, info)
        expected = preprocess(
            {"inputs": {"img": [packed["inputs"]["img"]]}, "data_samples": [packed["data_samples"]]}
        )["inputs"]["imgs"][0]
        assert expected.shape == (3, 928, 1600)  # padded to multiples of 32
        assert torch.equal(got[view], expected)
        matrix = data["data_samples"][view].cam2img
        np.testing.assert_allclose(matrix[:3, :3], intrinsics, rtol=1e-6)


def test_camera_matrices_put_points_on_their_pixels(tiny_world: Path) -> None:
    """Under augmentation, points land where depth losses draw them."""
    recipe = read(
        "imvoxelnet_8xb4_kitti-3d-car",
        classes=("car",),
        image_size_HW=(64, 112),
        extent=(-50.0, -50.0, 50.0, 50.0),
    )
    frames = Frames.select(
        DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="all")
    )
    augment = AugmentConfig(
        resize=(0.0, 0.1), crop=True, image_flip=True, image_rotation=5.0, bev_rotation=0.5,
        bev_flip_x=True,
    )  # fmt: skip
    inputs = replace(recipe.inputs, num_sweeps=1, depth=True, ego_points="drop")
    batch = collate([SampleReader(frames, inputs, augment, 1).read(frames.tokens[1], view=3)])
    assert batch.points is not None
    assert batch.pixels is not None
    assert batch.image_aug_BV33 is not None
    depth_1VHW = nearest_depths(batch.pixels, batch.image_aug_BV33, 1, (64, 112))
    meta = to_mmdet3d(batch, recipe)["data_samples"][0].metainfo
    points = np.c_[batch.points[0][:, :3].double().numpy(), np.ones(len(batch.points[0]))]
    for view, camera in enumerate(recipe.cameras):
        expected = depth_1VHW[0, CAMERAS.index(camera)].numpy()
        u, v, depth, _ = np.asarray(meta["lidar2img"][view]) @ points.T
        seen = depth > 0.1
        column, row = np.rint(u[seen] / depth[seen]), np.rint(v[seen] / depth[seen])
        inside = (column >= 0) & (column < 112) & (row >= 0) & (row < 64)
        got = np.full((64, 112), np.inf)
        cells = row[inside].astype(int), column[inside].astype(int)
        np.minimum.at(got, cells, depth[seen][inside])
        got[np.isinf(got)] = 0
        assert (expected > 0).sum() > 50
        # Points that round to a neighbour, and those that a rotation brings in from outside the
        # original image, which the loader does not draw.
        assert (np.abs(got - expected) > 3e-3).mean() < 0.015


def test_boxes_go_out_with_their_bottom_and_come_back() -> None:
    from mmengine.structures import InstanceData

    recipe = read(CENTERPOINT)
    boxes_N9, classes_N = boxes_of_all_classes()
    batch = Batch(
        ["a"],
        torch.eye(4)[None],
        points=[torch.zeros((1, 5))],
        labels=labels_of((boxes_N9, classes_N)),
    )
    sample = to_mmdet3d(batch, recipe)["data_samples"][0]
    truth = sample.gt_instances_3d
    torch.testing.assert_close(truth.bboxes_3d.tensor[:, 2], boxes_N9[:, 2] - boxes_N9[:, 5] / 2)
    torch.testing.assert_close(truth.bboxes_3d.gravity_center, boxes_N9[:, :3])
    corners = box_corners_bev(boxes_N9)
    low = truth.bboxes_3d.corners[:, :, :2]
    nearest = torch.cdist(corners, low).amin(dim=2)
    assert float(nearest.max()) < 1e-4
    scores = torch.linspace(0.1, 0.9, len(boxes_N9))
    sample.pred_instances_3d = InstanceData(
        bboxes_3d=truth.bboxes_3d, labels_3d=truth.labels_3d, scores_3d=scores
    )
    (back,) = from_mmdet3d([sample], batch, recipe)
    torch.testing.assert_close(back.boxes_N9, boxes_N9.flip(0))
    assert torch.equal(back.classes_N, classes_N.flip(0))
    assert torch.equal(back.scores_N, scores.flip(0))


def test_labels_go_by_name_and_strangers_and_the_far_stay_behind() -> None:
    kitti = read(
        "pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class",
        classes=("pedestrian", "bicycle", "car"),
    )
    boxes_N9 = torch.tensor([[10.0, 0, 0, 4, 2, 1, 0, 1, 2]]).repeat(4, 1)
    boxes_N9[3, 0] = 80.0
    classes = torch.tensor([CLASSES.index(n) for n in ("car", "bus", "pedestrian", "car")])
    batch = Batch(["a"], torch.eye(4)[None], points=[torch.zeros((1, 5))])
    batch.labels = Labels([boxes_N9], [classes], [boxes_N9])
    truth = to_mmdet3d(batch, kitti)["data_samples"][0].gt_instances_3d
    assert truth.labels_3d.tolist() == [2, 0]
    assert truth.bboxes_3d.tensor.shape == (2, 7)


def test_camera_boxes_keep_their_corners() -> None:
    from mmdet3d.structures import CameraInstance3DBoxes
    from mmdet3d.structures.bbox_3d.utils import rotation_3d_in_axis

    generator = torch.Generator().manual_seed(0)
    raw_N9 = torch.rand((12, 9), generator=generator) * 4 + 0.5
    raw_N9[:, 6] = torch.linspace(-3, 3, 12)
    camera = CameraInstance3DBoxes(raw_N9, box_dim=9)
    turn = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    spin = torch.tensor([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    matrix = torch.eye(4)
    matrix[:3, :3], matrix[:3, 3] = spin @ turn, torch.tensor([1.0, 2.0, 3.0])
    corners = camera.corners @ matrix[:3, :3].T + matrix[:3, 3]
    centred = torch.cat([camera.gravity_center, raw_N9[:, 3:7], raw_N9[:, 7:9]], dim=1)
    boxes_N9 = camera_to_lidar(centred, matrix)
    nearest = torch.cdist(box_corners_bev(boxes_N9), corners[:, :, :2]).amin(dim=2)
    assert float(nearest.max()) < 1e-4
    heights = corners[:, :, 2]
    torch.testing.assert_close(boxes_N9[:, 5], heights.amax(1) - heights.amin(1))
    torch.testing.assert_close(boxes_N9[:, 2], heights.mean(1))
    speed = torch.stack([raw_N9[:, 7], torch.zeros(12), raw_N9[:, 8]], 1) @ matrix[:3, :3].T
    torch.testing.assert_close(boxes_N9[:, 7:9], speed[:, :2])
    along = torch.tensor([[[1.0, 0.0, 0.0]]]).repeat(12, 1, 1)  # length lies along x at yaw 0
    ahead = rotation_3d_in_axis(along, raw_N9[:, 6], axis=1)[:, 0] @ matrix[:3, :3].T
    torch.testing.assert_close(boxes_N9[:, 6], torch.atan2(ahead[:, 1], ahead[:, 0]))

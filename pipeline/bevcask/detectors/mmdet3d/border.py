"""The border to mmdet3d: batches out, boxes both ways. Axes, units and class order change here.

mmdet3d's LiDAR boxes have our axes and headings, with z at the bottom. Its camera boxes have x
right, y down, z forward, y at the bottom, sizes (l, h, w), and a heading that turns from x to -z.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bevcask.detectors.base import MEAN_RGB, Batch, Detections, Labels
from bevcask.detectors.mmdet3d.families import IMAGE_AUG_APART
from bevcask.detectors.mmdet3d.recipe import Recipe
from bevcask.geometry import CAMERAS, CLASSES, constant, transform_points

MAX_BOXES = 500
# Merging the views of a monocular model, as mmdet3d's nuScenes metric does.
_MERGE_OVERLAP = 0.05
_MERGE_SCORE = 0.01


def to_mmdet3d(batch: Batch, recipe: Recipe) -> dict[str, Any]:
    """Return what a data preprocessor of mmdet3d takes, `{inputs, data_samples}`.

    Monocular models get one sample a camera, others one sample a frame.
    """
    from mmdet3d.structures import Det3DDataSample
    from mmengine.structures import InstanceData

    inputs: dict[str, list[Tensor]] = {}
    if recipe.point_columns:
        assert batch.points is not None, "the loader gave no LiDAR points"
        inputs["points"] = [_points(points, recipe) for points in batch.points]
    metas: list[dict[str, Any]] = [{} for _ in batch.tokens]
    if recipe.cameras:
        inputs["img"], metas = _images(batch, recipe)
    common = _common_meta()
    samples = [Det3DDataSample(metainfo=common | meta) for meta in metas]
    if batch.labels is not None and not recipe.monocular:
        for index, sample in enumerate(samples):
            boxes, labels = _ground_truth(batch.labels, index, recipe)
            sample.gt_instances_3d = InstanceData(bboxes_3d=boxes, labels_3d=labels)
    return {"inputs": inputs, "data_samples": samples}


def _common_meta() -> dict[str, Any]:
    from mmdet3d.structures import Box3DMode, LiDARInstance3DBoxes

    return {"box_type_3d": LiDARInstance3DBoxes, "box_mode_3d": Box3DMode.LIDAR}


def _points(points_P5: Tensor, recipe: Recipe) -> Tensor:
    """Return the columns the model takes of the points in its range."""
    if recipe.point_range is not None:
        low, high = constant(recipe.point_range, points_P5).view(2, 3)
        points_P5 = points_P5[((points_P5[:, :3] > low) & (points_P5[:, :3] < high)).all(dim=1)]
    return points_P5[:, list(recipe.point_columns)]


def _images(batch: Batch, recipe: Recipe) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Return BGR images 0..255 and their camera matrices, in the model's order of cameras."""
    assert batch.images_BVCHW is not None, "the loader gave no images"
    assert batch.intrinsics_BV33 is not None
    assert batch.image_aug_BV33 is not None
    assert batch.camera_to_lidar_BV44 is not None
    views = [CAMERAS.index(name) for name in recipe.cameras]
    pixels_BVCHW = batch.images_BVCHW[:, views].float()
    if batch.shown_BHW is not None:  # masks leave the mean colour: the model normalises
        mean_311 = constant(MEAN_RGB, pixels_BVCHW).view(3, 1, 1)
        pixels_BVCHW = torch.where(batch.shown_BHW[:, None, None], pixels_BVCHW, mean_311)
    pixels_BVCHW = pixels_BVCHW.flip(2)
    image_aug_BV44 = _square(batch.image_aug_BV33[:, views].double())
    camera_BV44 = _square(batch.intrinsics_BV33[:, views].double())
    if recipe.model["type"] not in IMAGE_AUG_APART:
        camera_BV44 = image_aug_BV44 @ camera_BV44
    to_lidar_BV44 = batch.camera_to_lidar_BV44[:, views].double()
    cam2lidar_BV44 = batch.bev_aug_B44[:, None].double() @ to_lidar_BV44
    lidar2cam_BV44 = torch.linalg.inv(cam2lidar_BV44)
    matrices = {
        "cam2img": camera_BV44,
        "cam2lidar": cam2lidar_BV44,
        "lidar2cam": lidar2cam_BV44,
        "lidar2img": camera_BV44 @ lidar2cam_BV44,
        "img_aug_matrix": image_aug_BV44,
    }
    arrays = {name: value.cpu().numpy() for name, value in matrices.items()}
    shape = (*pixels_BVCHW.shape[-2:], 3)
    if recipe.monocular or len(views) == 1:
        alone = [
            {name: array[i, v] for name, array in arrays.items()}
            | {"img_shape": shape, "scale_factor": (1.0, 1.0)}
            for i in range(len(batch.tokens))
            for v in range(len(views))
        ]
        return list(pixels_BVCHW.flatten(0, 1)), alone
    lidar_aug_B44 = batch.bev_aug_B44.cpu().numpy()
    together = [
        {name: list(array[i]) for name, array in arrays.items()}
        | {"img_shape": [shape] * len(views), "lidar_aug_matrix": lidar_aug_B44[i]}
        for i in range(len(batch.tokens))
    ]
    return list(pixels_BVCHW), together


def _square(matrix_BV33: Tensor) -> Tensor:
    """Return 4x4 matrices that act as the 3x3 ones and keep the fourth coordinate."""
    out = torch.eye(4, dtype=matrix_BV33.dtype, device=matrix_BV33.device)
    out = out.expand(*matrix_BV33.shape[:2], 4, 4).clone()
    out[..., :3, :3] = matrix_BV33
    return out


def _ground_truth(labels: Labels, index: int, recipe: Recipe) -> tuple[Any, Tensor]:
    """Return one sample's boxes of the model's classes and range, and its labels for them."""
    from mmdet3d.structures import LiDARInstance3DBoxes

    boxes_N9, classes_N = labels.boxes[index], labels.classes[index]
    known = recipe.classes
    theirs = tuple(known.index(name) if name in known else -1 for name in CLASSES)
    labels_N = constant(theirs, classes_N)[classes_N]
    kept_N = labels_N >= 0
    if recipe.extent is not None:
        low, high = constant(recipe.extent, boxes_N9).view(2, 2)
        kept_N &= ((boxes_N9[:, :2] > low) & (boxes_N9[:, :2] < high)).all(dim=1)
    columns = recipe.box_columns
    boxes = LiDARInstance3DBoxes(
        boxes_N9[kept_N, :columns], box_dim=columns, origin=(0.5, 0.5, 0.5)
    )
    return boxes, labels_N[kept_N]


def from_mmdet3d(samples: Sequence[Any], batch: Batch, recipe: Recipe) -> list[Detections]:
    """Return each frame's predicted boxes in our frame, fields and classes, best first."""
    found = [_in_lidar(sample.pred_instances_3d, recipe) for sample in samples]
    if recipe.monocular:
        found = _merge_views(found, batch, recipe)
    return [_best(own) for own in found]


def _in_lidar(predicted: Any, recipe: Recipe) -> Detections:
    """Return boxes with our fields and classes; camera boxes stay in their camera's frame."""
    boxes_NC = predicted.bboxes_3d.tensor.float()
    velocity_N2 = (
        boxes_NC[:, 7:9] if boxes_NC.shape[1] >= 9 else boxes_NC.new_zeros(len(boxes_NC), 2)
    )
    centre_N3 = predicted.bboxes_3d.gravity_center.float()
    boxes_N9 = torch.cat([centre_N3, boxes_NC[:, 3:7], velocity_N2], dim=1)
    class_N = predicted.labels_3d.long()
    ours = constant(tuple(map(CLASSES.index, recipe.classes)), class_N)
    return Detections(boxes_N9, predicted.scores_3d.float(), ours[class_N])


def _best(found: Detections) -> Detections:
    order_N = found.scores_N.argsort(descending=True, stable=True)[:MAX_BOXES]
    return Detections(found.boxes_N9[order_N], found.scores_N[order_N], found.classes_N[order_N])


def camera_to_lidar(boxes_N9: Tensor, matrix_44: Tensor) -> Tensor:
    """Return camera boxes (x, y, z centre, l, h, w, yaw, vx, vz) as boxes of the LiDAR frame.

    Args:
        boxes_N9: float32, camera frame.
        matrix_44: camera frame to LiDAR frame.
    """
    rotation_33 = matrix_44[:3, :3]
    yaw_N, zero_N = boxes_N9[:, 6], torch.zeros_like(boxes_N9[:, 6])
    heading_N3 = torch.stack([yaw_N.cos(), zero_N, -yaw_N.sin()], dim=1) @ rotation_33.T
    velocity_N3 = torch.stack([boxes_N9[:, 7], zero_N, boxes_N9[:, 8]], dim=1) @ rotation_33.T
    return torch.cat(
        [
            transform_points(boxes_N9[:, :3], matrix_44),
            boxes_N9[:, [3, 5, 4]],
            torch.atan2(heading_N3[:, 1], heading_N3[:, 0])[:, None],
            velocity_N3[:, :2],
        ],
        dim=1,
    )


def _merge_views(views: list[Detections], batch: Batch, recipe: Recipe) -> list[Detections]:
    """Bring every view's boxes into the frame's LiDAR frame and suppress what overlaps."""
    from mmcv.ops import nms_rotated

    assert batch.camera_to_lidar_BV44 is not None
    merged = []
    for sample in range(len(batch.tokens)):
        own = views[sample * len(recipe.cameras) : (sample + 1) * len(recipe.cameras)]
        to_bev_V44 = batch.bev_aug_B44[sample] @ batch.camera_to_lidar_BV44[sample]
        boxes_N9 = torch.cat(
            [
                camera_to_lidar(view.boxes_N9, to_bev_V44[CAMERAS.index(name)])
                for view, name in zip(own, recipe.cameras, strict=True)
            ]
        )
        scores_N = torch.cat([view.scores_N for view in own])
        classes_N = torch.cat([view.classes_N for view in own])
        sure_N = scores_N > _MERGE_SCORE
        boxes_N9, scores_N, classes_N = boxes_N9[sure_N], scores_N[sure_N], classes_N[sure_N]
        if len(boxes_N9):
            footprints_N5 = boxes_N9[:, [0, 1, 3, 4, 6]]
            _, keep_N = nms_rotated(footprints_N5, scores_N, _MERGE_OVERLAP, labels=classes_N)
            boxes_N9, scores_N, classes_N = boxes_N9[keep_N], scores_N[keep_N], classes_N[keep_N]
        merged.append(Detections(boxes_N9, scores_N, classes_N))
    return merged

"""Golden numbers of the released BEVFormer, and the detector and batches that they are of.

Theirs: cameras in the order FRONT, FRONT_RIGHT, FRONT_LEFT, BACK, BACK_LEFT, BACK_RIGHT.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevcask.detectors.base import Batch, Labels
from bevcask.detectors.bevformer import BEVFormerConfig
from detectors.golden import FOLDER

THEIRS = [1, 2, 0, 4, 3, 5]  # index of each of their cameras in ours
OURS = [2, 0, 1, 4, 3, 5]  # index of each of our cameras in theirs


class Golden:
    """One model of a golden file."""

    def __init__(self, data: Mapping[str, Any], name: str) -> None:
        self._data, self._name = data, name
        self.sizes = json.loads(str(data[f"{name}/config"]))

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.array(self._data[f"{self._name}/{key}"]))

    def __contains__(self, key: str) -> bool:
        return f"{self._name}/{key}" in self._data

    def names(self, key: str) -> list[str]:
        return [str(name) for name in self._data[f"{self._name}/{key}"]]

    def published(self) -> dict[str, Tensor]:
        prefix = f"{self._name}/state/"
        names = [name for name in self._data if name.startswith(prefix)]
        return {name.removeprefix(prefix): torch.from_numpy(self._data[name]) for name in names}

    def config(self, **encoder: Any) -> BEVFormerConfig:
        sizes = self.sizes
        _, _, low_z, half_extent, _, high_z = sizes["pc_range"]
        height, width = self["in/padded_hw"].tolist()
        if sizes["raw"]:
            height, width = sizes["raw"]
        return BEVFormerConfig.model_validate(
            {
                "image_size_HW": (height, width),
                "pixels": "rgb_imagenet" if sizes["to_rgb"] else "bgr_caffe",
                "backbone": {
                    "blocks": sizes["blocks"],
                    "width": sizes["base"],
                    "stride_first": sizes["caffe"],
                    "deformable": (3, 4) if sizes["dcn"] else (),
                    "levels": [f"c{level + 2}" for level in sizes["out"]],
                    "frozen_stages": sizes["frozen"],
                },
                "num_levels": sizes["levels"],
                "channels": sizes["C"],
                "heads": sizes["heads"],
                "feed_forward": sizes["ffn"],
                "half_extent": half_extent,
                "bev_size_YX": sizes["bev"],
                "encoder": {
                    "layers": sizes["enc"],
                    "spatial_points": sizes["points"],
                    "heights": sizes["pillar"],
                    "z_range": (low_z, high_z),
                    "rotation_centre": sizes["centre"],
                    "level_embeddings": len(self["state/pts_bbox_head.transformer.level_embeds"]),
                    **encoder,
                },
                "decoder_layers": sizes["dec"],
                "queries": sizes["queries"],
                "loss": {"max_boxes": sizes["max_num"], "centre_range": sizes["post"][3:]},
            }
        )

    def batch(self, frame: int) -> Batch:
        """Return a frame; geometry in float64, folded into the pose of the camera."""
        lidar_to_image = self[f"in/f{frame}/lidar2img"][OURS]
        eye = torch.eye(3, dtype=torch.float64).expand(1, 6, 3, 3)
        return Batch(
            tokens=[f"f{frame}"],
            bev_aug_B44=torch.eye(4)[None],
            images_BVCHW=self._images(frame),
            intrinsics_BV33=eye,
            image_aug_BV33=eye,
            camera_to_lidar_BV44=torch.linalg.inv(lidar_to_image)[None],
            can_bus_B18=self._can_bus(frame),
        )

    def _can_bus(self, frame: int) -> Tensor:
        """Return the absolute values; the golden file holds them before differences are taken."""
        return self[f"in/f{frame}/can_raw"][None]

    def _images(self, frame: int) -> Tensor | None:
        if f"in/f{frame}/image_bgr" not in self:
            return None
        return self[f"in/f{frame}/image_bgr"][OURS].flip(-1).movedim(-1, 1).float()[None]

    def labels(self) -> Labels:
        boxes, classes = [self["in/gt_boxes"]], [self["in/gt_labels"].long()]
        return Labels(boxes, classes, boxes)


def golden(file: str, model: str) -> Golden:
    return Golden(np.load(FOLDER / file), model)

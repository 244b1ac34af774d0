"""Golden numbers of the released StreamPETR and RayDN, the detectors and batches they are of."""

import json
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from bevcask.detectors.base import Batch, Labels
from bevcask.detectors.blocks.memory_queue import Poses
from bevcask.detectors.blocks.query_denoising import Draws
from bevcask.detectors.blocks.ray_positions import Cameras
from bevcask.detectors.raydn import RayDN
from bevcask.detectors.stream_family import StreamDetector
from bevcask.detectors.streampetr import StreamPETR
from bevcask.geometry import transform_boxes
from bevcask.targets.image_boxes import IMAGE_CHANNEL, ImageBoxes
from detectors.golden import FOLDER

DETECTORS: dict[str, type[StreamDetector]] = {"streampetr_a": StreamPETR, "raydn_a": RayDN}
QUEUE = {
    "states": "emb",
    "places": "ref",
    "poses": "pose",
    "velocities": "velo",
}
_NO_POSE = torch.zeros(0)


class Golden:
    """One golden file, and the detector with its weights."""

    def __init__(self, file: str, **config: Any) -> None:
        self._data = dict(np.load(FOLDER / f"{file}.npz"))
        self.sizes = json.loads(str(self._data.pop("config")))
        self.kind = DETECTORS[file]
        self.config = self.kind.Config.model_validate(self._config() | config)
        self.frames = range(self.sizes["T"])

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.array(self._data[key]))

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def names(self, prefix: str) -> list[str]:
        return [name.removeprefix(prefix) for name in self._data if name.startswith(prefix)]

    def published(self) -> dict[str, Tensor]:
        return {name: self[f"sd/{name}"] for name in self.names("sd/")}

    def _config(self) -> dict[str, Any]:
        sizes = self.sizes
        common = {
            "image_size_HW": (sizes["H"], sizes["W"]),
            "camera_order": range(sizes["N"]),
            "released": True,
            "backbone": {"width": sizes["base"]},
            "channels": sizes["E"],
            "heads": sizes["heads"],
            "feed_forward": sizes["ffn"],
            "dropout": 0.0,
            "layers": sizes["L"],
            "queries": sizes["Q"],
            "propagated": sizes["prop"],
            "memory": sizes["mem"],
            "kept": sizes["topk"],
            "loss": {"max_boxes": sizes["maxn"]},
            "denoising": {"groups": sizes["scalar"]},
        }
        if self.kind is StreamPETR:
            return common | {"token_share": sizes["ratio"], "depth_bins": sizes["D"]}
        return common | {"groups": sizes["groups"], "image_channels": sizes["yolo"]}

    def make(self) -> "StreamDetector":
        """Return the detector that reads this file's inputs instead of images."""
        detector = self.kind(self.config)
        detector.load_state_dict(detector.adopt(self.published()))
        given = {"_maps": self.features, "_cameras": self.cameras, "_poses": self.poses}
        for name, own in (given | {"_image_truth": self.image_truth}).items():
            setattr(detector, name, own)
        return detector

    def batch(self, frame: int) -> Batch:
        lanes, aug = range(self.sizes["B"]), self[f"in/{frame}/aug"]
        boxes = [self[f"in/{frame}/gt_boxes/{lane}"] for lane in lanes]
        classes = [self[f"in/{frame}/gt_labels/{lane}"].long() for lane in lanes]
        flat = [
            transform_boxes(own, torch.linalg.inv(aug[lane].double()))
            for lane, own in enumerate(boxes)
        ]
        return Batch(
            tokens=[f"{frame}.{lane}" for lane in lanes],
            bev_aug_B44=aug,
            after=[
                f"{frame - 1}.{lane}" if bool(self[f"in/{frame}/prev_exists"][lane]) else None
                for lane in lanes
            ],
            labels=Labels(boxes, classes, flat),
        )

    def features(self, batch: Batch) -> list[Tensor]:
        frame = self._frame(batch)
        if self.kind is StreamPETR:
            return [self[f"in/{frame}/feat"]]
        return [self[f"in/{frame}/feat{level}"] for level in range(4)]

    def _frame(self, batch: Batch) -> int:
        return int(batch.tokens[0].partition(".")[0])

    def cameras(self, batch: Batch) -> Cameras:
        said = (self[f"in/{self._frame(batch)}/{n}"] for n in ("lidar2img", "intrinsics"))
        outer = self[f"in/{self._frame(batch)}/extrinsics"]
        return Cameras(*said, outer, self.config.image_size_HW)

    def poses(self, batch: Batch) -> Poses:
        names = ("ego_pose", "ego_pose_inv", "timestamp")
        return Poses(*(self[f"in/{self._frame(batch)}/{name}"] for name in names))

    def image_truth(self, batch: Batch) -> list[list[ImageBoxes]]:
        ours = torch.tensor(IMAGE_CHANNEL).argsort()
        frame, found = self._frame(batch), []
        for lane in range(self.sizes["B"]):
            places = [f"{lane}/{view}" for view in range(self.sizes["N"])]
            found.append(
                [
                    ImageBoxes(
                        self[f"in/{frame}/box2d/{place}"],
                        self[f"in/{frame}/center2d/{place}"],
                        ours[self[f"in/{frame}/label2d/{place}"].long()],
                    )
                    for place in places
                ]
            )
        return found

    def draws(self, frame: int) -> Draws:
        key = f"train/{frame}/dn"
        plain = self[f"{key}/rand"].view(self.sizes["scalar"], -1, 3)
        if f"{key}/beta" not in self:
            none = torch.zeros((0, plain.shape[1]))
            return Draws(plain, none, none[:0, 0] if len(none) else torch.zeros(0))
        along = self[f"{key}/beta"].view(self.sizes["raydn_num"], -1)
        return Draws(plain, along, self[f"{key}/reset"])


def queue(golden: Golden, key: str, rows: int) -> dict[str, Tensor]:
    """Return a golden memory under our names, its newest rows."""
    tail = key.rpartition("/")[0], key.rpartition("/")[2]
    found = {own: golden[f"{tail[0]}/mem_{tail[1]}_{n}"][:, :rows] for own, n in QUEUE.items()}
    found["seconds"] = golden[f"{tail[0]}/mem_time_{tail[1]}"][:, :rows]
    return cast(dict[str, Tensor], found)

"""Golden numbers of the released StreamPETR and RayDN, and the detectors that they are of."""

import json

import numpy as np
import torch
from torch import Tensor

from bevcask.detectors.base import Memory
from bevcask.detectors.blocks.petr_head import Decoded
from bevcask.detectors.blocks.query_memory import Frame
from bevcask.detectors.streampetr import RayDN, RayDNConfig, StreamPETR, StreamPETRConfig
from detectors.bevformer_golden import BAR, FOLDER, gap

FRAMES = 4
MODELS = ("streampetr", "raydn")
THERE = all((FOLDER / f"{model}_a.npz").is_file() for model in MODELS)


class Golden:
    """A golden model, shown its four frames; a lane begins anew in the third."""

    def __init__(self, model: str) -> None:
        self._data = np.load(FOLDER / f"{model}_a.npz")
        self.sizes = json.loads(str(self._data["config"]))
        self.detector = self._detector(model).eval()
        self.detector.load_state_dict(self.detector.adopt(self.published()))

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.array(self._data[key]))

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self._data if key.startswith(prefix)]

    def published(self) -> dict[str, Tensor]:
        return {key.removeprefix("sd/"): self[key] for key in self.keys("sd/")}

    def _detector(self, model: str) -> StreamPETR | RayDN:
        sizes = self.sizes
        backbone = {
            "blocks": (3, 4, 6, 3),
            "width": sizes["base"],
            "stride_first": False,
            "deformable": (),
            "frozen_stages": -1,
        }
        common = {
            "image_size_HW": (sizes["H"], sizes["W"]),
            "channels": sizes["E"],
            "heads": sizes["heads"],
            "feed_forward": sizes["ffn"],
            "dropout": 0.0,
            "layers": sizes["L"],
            "queries": sizes["Q"],
            "propagated": sizes["prop"],
            "memory": sizes["mem"],
            "kept": sizes["topk"],
            "centres": sizes["pc_range"],
            "code_weights": sizes["code_weights"],
            "max_boxes": sizes["maxn"],
            "centre_range": sizes["post_center_range"][3:],
        }
        if model == "raydn":
            own = {"points": sizes["pts"], "groups": sizes["groups"]}
            backbone["levels"] = ("c3", "c4", "c5")
            return RayDN(RayDNConfig.model_validate({**common, **own, "backbone": backbone}))
        own = {
            "depth_bins": sizes["D"],
            "depth_start": sizes["depth_start"],
            "position_range": sizes["position_range"],
        }
        backbone["levels"] = ("c4", "c5")
        return StreamPETR(StreamPETRConfig.model_validate({**common, **own, "backbone": backbone}))

    def maps(self, number: int) -> list[Tensor]:
        names = [f"in/{number}/feat"] if f"in/{number}/feat" in self else []
        return [self[key] for key in names or self.keys(f"in/{number}/feat")]

    def frame(self, number: int) -> Frame:
        names = ("lidar2img", "intrinsics", "extrinsics", "ego_pose", "ego_pose_inv", "timestamp")
        return Frame(*(self[f"in/{number}/{name}"] for name in names))

    def known(self, number: int) -> Tensor:
        return self[f"in/{number}/prev_exists"] > 0

    def look(self, number: int, memory: Memory | None) -> Decoded:
        return self.detector.look(
            self.maps(number), self.frame(number), memory, self.known(number) if memory else None
        )

    def close(self, found: Tensor, key: str) -> None:
        assert gap(found.detach(), self[key]) < BAR, (key, gap(found.detach(), self[key]))

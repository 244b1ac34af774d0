"""What mmdet3d itself makes of a frame: the reference of the border and of extraction."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.detectors.mmdet3d import recipe as recipes

NAME = "centerpoint_pillar02_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d"


def theirs(
    name: str, info: dict[str, Any], options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Run the test pipeline of a shipped config as mmdet3d's dataset does."""
    from mmdet3d.registry import TRANSFORMS
    from mmdet3d.structures import Box3DMode, LiDARInstance3DBoxes
    from mmengine.config import Config
    from mmengine.dataset import Compose

    cfg = Config.fromfile(recipes.find(name))
    cfg.merge_from_dict(options or {})
    pipeline = recipes._pipeline(cfg)
    common = {"box_type_3d": LiDARInstance3DBoxes, "box_mode_3d": Box3DMode.LIDAR}
    run = Compose([TRANSFORMS.build(step) for step in pipeline])
    packed: dict[str, Any] = run(info | common)
    return packed


def untrained(name: str) -> Any:
    """Build a shipped model as mmdet3d does, norms away from their start."""
    from mmdet3d.registry import MODELS
    from mmengine.config import Config

    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(recipes.find(name)).model)
    model.init_weights()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def lidar_info(frames: Frames, token: str, num_sweeps: int) -> dict[str, Any]:
    """Describe a frame's scans as mmdet3d's info files do.

    Their loader computes `p @ lidar2sensor[:3, :3] - lidar2sensor[:3, 3]`.
    """
    scans = frames.scans(token, num_sweeps)
    path, time = frames.index["scan_path"], frames.index["scan_time"]
    sweeps = []
    for scan in scans[1:]:
        to_lidar = frames.sweep_to_lidar(token, scan)
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = to_lidar[:3, :3].T, -to_lidar[:3, 3]
        points = {"lidar_path": str(frames.root / path[scan].decode()), "lidar2sensor": matrix}
        sweeps.append({"timestamp": time[scan] * 1e-6, "lidar_points": points})
    info = {
        "lidar_points": {"lidar_path": str(frames.root / path[scans[0]].decode())},
        "timestamp": time[scans[0]] * 1e-6,
    }
    return info | ({"lidar_sweeps": sweeps} if sweeps else {})


def real(root: Path) -> Frames:
    return Frames.select(
        DatasetConfig(root=str(root), version="v1.0-mini", split="mini_val", limit=3)
    )

"""A repository of mmdet3d's own that records its model: a process that may die on the way.

python recording.py MODEL.pth NUSCENES SPOOL [DIE_AFTER]
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from bevcask.detectors.mmdet3d import recipe as recipes
from bevcask.detectors.mmdet3d.sparse import make_exact
from bevcask.spool.recorder import Recorder
from contracts.mmdet3d_reference import NAME, lidar_info, real, theirs

GRID = {"x_min": -51.2, "y_min": -51.2}


def manifest(classes: list[str]) -> dict[str, Any]:
    fine, coarse = GRID | {"cell": 0.8}, GRID | {"cell": 1.6}
    maps = {"kind": "dense_bev", "nonnegative": True}
    return {
        "taps": {
            "bev.block1": maps | {"shape": [128, 128, 128], "grid": fine},
            "bev.block2": maps | {"shape": [256, 64, 64], "grid": coarse},
            "bev.neck": maps | {"shape": [384, 128, 128], "grid": fine},
            "head.heatmap": {
                "kind": "heatmap",
                "shape": [10, 128, 128],
                "grid": fine,
                "values": "logits",
            },
            "head.boxes": {"kind": "box_set", "shape": [500, 11]},
        },
        "classes": classes,
        "boxes": {"z": "bottom"},
    }


def build(checkpoint: str) -> tuple[Any, list[str]]:
    from mmdet3d.registry import MODELS
    from mmengine.config import Config

    recipes.require()  # its parts are registered by being imported
    config = Config.fromfile(recipes.find(NAME))
    model = MODELS.build(config.model)
    model.load_state_dict(torch.load(checkpoint)["state_dict"])
    make_exact(model)  # or mmdet3d is not equal to itself
    return model.eval(), list(config.class_names)


def rows(found: Any) -> torch.Tensor:
    own = found.pred_instances_3d
    extra = own.scores_3d[:, None], own.labels_3d[:, None].float()
    return torch.cat([own.bboxes_3d.tensor, *extra], dim=1)


def main(checkpoint: str, root: str, folder: str, die_after: int) -> None:
    model, classes = build(checkpoint)
    recorder = Recorder(folder, manifest(classes), config=NAME)
    recorder.watch(
        model,
        {
            "bev.block1": "pts_backbone.blocks.1",
            "bev.block2": "pts_backbone.blocks.2",
            "bev.neck": ("pts_neck", lambda levels: levels[0]),
            "head.heatmap": (
                "pts_bbox_head",
                lambda tasks: torch.cat([levels[0]["heatmap"] for levels in tasks], dim=1),
            ),
        },
    )
    frames = real(Path(root))
    for number, token in enumerate(frames.tokens):
        if number == die_after:
            os._exit(9)
        if recorder.has([token]):
            continue
        packed = theirs(NAME, lidar_info(frames, token, 1))
        batch = {
            "inputs": {"points": [packed["inputs"]["points"]]},
            "data_samples": [packed["data_samples"]],
        }
        with torch.no_grad():
            found = model.test_step(batch)
        recorder.put([token], {"head.boxes": [rows(own) for own in found]})
        sys.stdout.write(f"recorded {token}\n")
        sys.stdout.flush()
    recorder.finish()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else -1)

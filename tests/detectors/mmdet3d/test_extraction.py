"""A cache from `teacher-extract` holds what mmdet3d itself says of its own pipeline's input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from bevcask.cache.reader import open_cache
from bevcask.cli import app
from bevcask.detectors.mmdet3d.sparse import make_exact
from bevcask.detectors.weights import read_weights
from contracts.mmdet3d_reference import NAME, lidar_info, real, theirs, untrained

pytestmark = [pytest.mark.mmdet3d, pytest.mark.nuscenes]

NAMES = {
    "pillar02": NAME,
    "voxel01": "centerpoint_voxel01_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d",
}
NUM_FRAMES = 2


def say(model: Any, packed: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Run mmdet3d's parts one by one, then its own prediction."""
    data = model.data_preprocessor(
        {"inputs": {"points": [packed["inputs"]["points"]]},
         "data_samples": [packed["data_samples"]]},
        False,
    )  # fmt: skip
    voxels = data["inputs"]["voxels"]
    encoded = model.pts_voxel_encoder(voxels["voxels"], voxels["num_points"], voxels["coors"])
    blocks = model.pts_backbone(model.pts_middle_encoder(encoded, voxels["coors"], 1))
    neck = model.pts_neck(blocks)[0]
    (heads,) = zip(*model.pts_bbox_head([neck]), strict=True)
    found = model.predict(data["inputs"], data["data_samples"])[0].pred_instances_3d
    order = found.scores_3d.argsort(descending=True, stable=True)
    boxes = torch.cat([found.bboxes_3d.gravity_center, found.bboxes_3d.tensor[:, 3:]], dim=1)
    rows = [boxes, found.scores_3d[:, None], found.labels_3d[:, None].float()]
    return {
        "bev.block1": blocks[-2][0],
        "bev.block2": blocks[-1][0],
        "bev.neck": neck[0],
        "head.heatmap": torch.cat([head["heatmap"].sigmoid() for head in heads], dim=1)[0],
        "head.boxes": torch.cat(rows, dim=1)[order],
    }


@pytest.mark.parametrize("size", sorted(NAMES))
def test_cache_holds_what_mmdet3d_says(size: str, nuscenes_root: Path, tmp_path: Path) -> None:
    model = untrained(NAMES[size])
    make_exact(model)  # or mmdet3d is not equal to itself
    model.eval()
    torch.save({"meta": {}, "state_dict": model.state_dict()}, tmp_path / "model.pth")
    url = tmp_path / "real.zarr"
    answer = CliRunner().invoke(
        app,
        [
            "teacher-extract",
            str(url),
            "--json",
            f"teacher=mmdet3d_centerpoint_{size}",
            f"teacher.checkpoint={tmp_path / 'model.pth'}",
            "teacher.trust_checkpoint=true",
            "dataset=mini",
            f"dataset.root={nuscenes_root}",
            "dataset.split=mini_val",
            f"dataset.limit={NUM_FRAMES}",
            "store.codec=float32",
            "store.shard_rows=1",
            "loader.batch_size=1",
            "loader.num_workers=0",
        ],
    )
    assert answer.exit_code == 0, answer.stderr
    assert json.loads(answer.stdout)["frames"] == NUM_FRAMES  # nothing else on stdout
    cache, frames = open_cache(str(url)), real(nuscenes_root)
    assert cache.fingerprint["preprocessing"]["ego_points"] == "keyframe"
    assert cache.fingerprint["teacher"]["config"]["versions"]["mmdet3d"] == "1.4.0"
    for token in cache.frames.tokens:
        with torch.inference_mode():
            said = say(model, theirs(NAMES[size], lidar_info(frames, token, 1)))
        stored = cache.read(token)
        for name in ("bev.block1", "bev.block2", "bev.neck"):
            np.testing.assert_array_equal(stored[name].values, said[name], err_msg=name)
            assert float(said[name].max()) > 0
        heatmap = said["head.heatmap"]
        confident = heatmap.amax(dim=0) > cache.specs["head.heatmap"].region.threshold
        np.testing.assert_array_equal(stored["head.heatmap"].region, confident)
        np.testing.assert_array_equal(stored["head.heatmap"].values, heatmap * confident)
        rows = stored["head.boxes"].values[: int(stored["head.boxes"].count or 0)]
        assert len(rows) > 100
        np.testing.assert_array_equal(rows, said["head.boxes"])
    head = read_weights(tmp_path / "real.head.safetensors")
    bias = model.pts_bbox_head.task_heads[2].heatmap[1].bias
    assert torch.equal(head["head.tasks.2.heatmap.1.bias"], bias)

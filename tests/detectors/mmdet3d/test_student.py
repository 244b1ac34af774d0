"""A camera student from mmdet3d distils from a cache like any other."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from bevcask.cli import app
from bevcask.config import build_config
from bevcask.detectors.base import Batch, Labels
from bevcask.detectors.mmdet3d.detector import Mmdet3dDetector
from bevcask.detectors.mmdet3d.recipe import Mmdet3dConfig
from bevcask.errors import ConfigError
from bevcask.groups import load_group

pytestmark = pytest.mark.mmdet3d

METHOD = """
include: method/distillbev_tiny
levels:
  - {name: neck, student: bev.neck, teacher: bev.neck, adapter: linear, false_positives: true}
"""


def call(*words: object) -> dict[str, object]:
    answer = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert answer.exit_code == 0, answer.stderr or answer.exception
    result: dict[str, object] = json.loads(answer.stdout)
    return result


def test_imvoxelnet_distils_from_an_mmdet3d_teacher(tiny_world: Path, tmp_path: Path) -> None:
    data = ["dataset=synthetic", f"dataset.root={tiny_world}", "dataset.split=synthetic_train"]
    few = ["loader.num_workers=0", "loader.batch_size=1"]
    url, run = tmp_path / "world.zarr", tmp_path / "run"
    method = tmp_path / "neck.yaml"
    method.write_text(METHOD)
    words = [f"method={method}", *data, *few]
    call("teacher-extract", url, "teacher=mmdet3d_centerpoint_tiny", "store.shard_rows=1", *words)
    result = call(
        "student-distill", url, "student=mmdet3d_imvoxelnet_tiny", f"run={run}", *words,
        "trainer=tiny", "trainer.max_steps=2", "trainer.log_every=1", "augment.bev_flip_y=true",
    )  # fmt: skip
    assert result["step"] == 2
    assert result["targets"] == ["bev.neck", "head.heatmap"]
    with next((run / "logs" / "csv").rglob("metrics.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    terms = {name: float(value) for name, value in rows[-1].items() if value}
    assert all(map(math.isfinite, terms.values()))
    assert terms["train/detection/loss_cls"] > 0
    assert any("neck" in name for name in terms)
    scores = call(
        "evaluate", "student=mmdet3d_imvoxelnet_tiny", f"student.checkpoint={result['weights']}",
        f"run={tmp_path / 'scores'}", *data, *few,
    )  # fmt: skip
    assert 0 <= float(str(scores["mAP"])) <= 1


def test_monocular_models_speak_in_the_lidar_frame_and_cannot_be_trained() -> None:
    section = load_group("detector", "mmdet3d_imvoxelnet_tiny")
    config = Mmdet3dConfig.model_validate(
        {
            "config": "fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d",
            "image_size_HW": (64, 96),
            "cameras": ("CAM_FRONT", "CAM_BACK"),
            "options": {
                "model": {
                    "backbone": {"depth": 18, "style": "pytorch", "base_channels": 16,
                                 "stage_with_dcn": (False,) * 4},
                    "neck": {"in_channels": [16, 32, 64, 128]},
                    "test_cfg": {"score_thr": 0.0, "nms_pre": 10},
                }
            },
        }
    )  # fmt: skip
    taps = Mmdet3dDetector.describe_taps(config)
    assert taps["image.fpn0"].shape == (2, 256, 8, 12)
    assert taps["image.fpn0"].kind == "image_feature"
    detector = Mmdet3dDetector(config).eval()
    torch.nn.init.zeros_(detector.network.bbox_head.conv_cls.bias)  # surer than at the start
    batch = two_cameras()
    with torch.inference_mode():
        output = detector(batch)
        (found,) = detector.decode(output)
    assert tuple(output.taps["image.fpn0"].shape) == (1, 2, 256, 8, 12)
    assert len(found.boxes_N9) > 0
    x = found.boxes_N9[:, 0]
    assert bool((x > 0).any()), "the front camera looks along x here"
    assert bool((x < 0).any()), "the back camera looks against it"
    batch.labels = Labels([torch.zeros((0, 9))], [torch.zeros(0, dtype=torch.int64)], [])
    with pytest.raises(ConfigError, match="Train it with mmdet3d; it can be a teacher here"):
        detector.train()(batch)
    assert build_config("detector", section, "student.detector")[0] is Mmdet3dDetector


def two_cameras() -> Batch:
    """Six cameras, of which CAM_FRONT looks along x and CAM_BACK against it."""
    from bevcask.geometry import CAMERAS

    ahead = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    turned = torch.diag(torch.tensor([-1.0, -1, 1, 1])) @ ahead
    poses = [turned if name == "CAM_BACK" else ahead for name in CAMERAS]
    intrinsics = torch.tensor([[60.0, 0, 48], [0, 60, 32], [0, 0, 1]])
    return Batch(
        tokens=["a"],
        bev_aug_B44=torch.eye(4)[None],
        images_BVCHW=torch.randint(256, (1, 6, 3, 64, 96), dtype=torch.uint8),
        intrinsics_BV33=intrinsics.repeat(1, 6, 1, 1),
        image_aug_BV33=torch.eye(3).repeat(1, 6, 1, 1),
        camera_to_lidar_BV44=torch.stack(poses)[None],
    )

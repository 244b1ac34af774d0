from typing import cast

import pytest
import torch

from bevcask.config import build_config
from bevcask.detectors.base import Batch, Detector, Labels, Output
from bevcask.detectors.blocks.heads import CenterHead, CenterHeadConfig
from bevcask.detectors.mmdet3d.border import from_mmdet3d, to_mmdet3d
from bevcask.detectors.mmdet3d.detector import Mmdet3dDetector, _rows
from bevcask.detectors.mmdet3d.recipe import Mmdet3dConfig
from bevcask.geometry import Grid
from bevcask.groups import load_group
from contracts.detector import CenterHeadContract

pytestmark = pytest.mark.mmdet3d


def small() -> Mmdet3dConfig:
    """Half the tiny model and a quarter of its pillars: the contract runs many forwards."""
    section = load_group("detector", "mmdet3d_centerpoint_tiny")
    model = section["options"]["model"]
    voxel, cells = [0.8, 0.8, 8.0], 128
    model["data_preprocessor"]["voxel_layer"]["voxel_size"] = voxel
    model["pts_voxel_encoder"] |= {"voxel_size": voxel, "feat_channels": [16]}
    model["pts_middle_encoder"] = {"in_channels": 16, "output_shape": [cells, cells]}
    model["pts_backbone"] |= {
        "in_channels": 16,
        "out_channels": [16, 16, 16],
        "layer_nums": [1, 1, 1],
        "layer_strides": [1, 2, 2],
    }
    model["pts_neck"] |= {"in_channels": [16, 16, 16], "out_channels": [16, 16, 16]}
    model["pts_bbox_head"] |= {"in_channels": 48, "share_conv_channel": 16}
    model["pts_bbox_head"]["separate_head"] = {"head_conv": 16}
    factor = {"out_size_factor": 1}
    model["pts_bbox_head"]["bbox_coder"] = {"voxel_size": voxel[:2], **factor}
    model["train_cfg"]["pts"] = {"grid_size": [cells, cells, 1], "voxel_size": voxel, **factor}
    model["test_cfg"]["pts"] = {"voxel_size": voxel[:2], **factor}
    _, config = build_config("detector", section, "student.detector")
    return cast(Mmdet3dConfig, config)


def scan(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.tensor([-51.0, -51.0, -3.0, 0.0, 0.0])
    span = torch.tensor([102.0, 102.0, 4.0, 255.0, 0.5])
    return low + span * torch.rand((1500 + seed % 7 * 100, 5), generator=generator)


class TestMmdet3dDetector(CenterHeadContract):
    """mmdet3d's own CenterPoint, loss and decoding, through our contract."""

    detector = Mmdet3dDetector
    copies_numbers = True

    @property
    def config(self) -> Mmdet3dConfig:  # type: ignore[override]
        return small()

    def inputs(self, num_samples: int, seed: int) -> Batch:
        batch = Batch(
            tokens=[str(seed + i) for i in range(num_samples)],
            bev_aug_B44=torch.eye(4).expand(num_samples, 4, 4),
            points=[scan(seed + i) for i in range(num_samples)],
        )
        none = [torch.zeros((0, 9))] * num_samples
        batch.labels = Labels(none, [torch.zeros(0, dtype=torch.int64)] * num_samples, none)
        return batch

    def raw(self, labels: Labels) -> tuple[CenterHead, list[list[dict[str, torch.Tensor]]]]:
        """Return what our head would want, in the form mmdet3d's head gives it."""
        head = CenterHead(CenterHeadConfig(channels=8), 8, Grid.square(51.2, 0.8))
        targets = head.targets(labels)
        num_samples, _, *shape_YX = targets.heatmap_BKYX.shape
        code = torch.zeros((num_samples, 6, 10, *shape_YX))
        rows_N, columns_N = targets.cells_N2.unbind(1)
        code[targets.sample_N, targets.task_N, :, rows_N, columns_N] = targets.code_NE
        logits = torch.where(targets.heatmap_BKYX == 1, 8.0, -12.0)
        sizes = [1, 2, 2, 1, 2, 2]
        names = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
        tasks = []
        for task, heatmap in enumerate(logits.split(sizes, dim=1)):
            parts = code[:, task].split(list(names.values()), dim=1)
            tasks.append([dict(zip(names, parts, strict=True)) | {"heatmap": heatmap}])
        return head, tasks

    def perfect(self, detector: Detector, labels: Labels) -> Output:
        """Let mmdet3d decode the codes of our head."""
        own = cast(Mmdet3dDetector, detector).eval()
        _, tasks = self.raw(labels)
        batch = self.inputs(len(labels.boxes), 0)
        samples = to_mmdet3d(batch, own.recipe)["data_samples"]
        head = own.network.pts_bbox_head
        own._reader._seen["head.heatmap"] = own._reader._heatmap("head.heatmap", tasks)
        heatmap = own._reader._seen.pop("head.heatmap")
        said = head.predict_by_feat(
            [[{k: v.clone() for k, v in t[0].items()}] for t in tasks],
            [sample.metainfo for sample in samples],
        )
        for sample, found in zip(samples, said, strict=True):
            sample.pred_instances_3d = found
        found = from_mmdet3d(samples, batch, own.recipe)
        return Output(
            {"head.heatmap": heatmap}, {str(i): _rows(one) for i, one in enumerate(found)}
        )

    def head_loss(self, detector: Detector, output: Output, labels: Labels) -> float:
        own = cast(Mmdet3dDetector, detector)
        _, tasks = self.raw(labels)
        batch = self.inputs(len(labels.boxes), 0)
        batch.labels = labels
        samples = to_mmdet3d(batch, own.recipe)["data_samples"]
        losses = own.network.pts_bbox_head.loss_by_feat(
            tasks, [sample.gt_instances_3d for sample in samples]
        )
        return sum(float(value) for value in losses.values())

    def test_bfloat16_autocast_trains_and_decodes(self) -> None:
        """mmdet3d decodes in evaluation mode."""
        detector = self.make().train()
        batch = self.batch()
        with torch.autocast("cpu", torch.bfloat16):
            total = self.total(detector, detector(batch), batch)
            total.backward()
            found = detector.eval().decode(detector(batch))
        assert bool(total.isfinite())
        assert all(own.boxes_N9.dtype == torch.float32 for own in found)


def test_heatmap_tap_survives_the_losses_sigmoid() -> None:
    detector = TestMmdet3dDetector().make().train()
    batch = TestMmdet3dDetector().batch()
    logits: list[torch.Tensor] = []

    def copy(module: object, inputs: object, output: list[list[dict[str, torch.Tensor]]]) -> None:
        logits.extend(task[0]["heatmap"].detach().clone() for task in output)

    detector.network.pts_bbox_head.register_forward_hook(copy)
    heatmap = detector(batch).taps["head.heatmap"]
    torch.testing.assert_close(heatmap.detach(), torch.cat(logits, dim=1).sigmoid())
    heatmap.sum().backward()
    assert detector.network.pts_backbone.blocks[0][0].weight.grad.abs().sum() > 0


def test_losses_are_mmdet3ds_own() -> None:
    detector = TestMmdet3dDetector().make().eval()
    batch = TestMmdet3dDetector().batch()
    got = detector.loss(detector(batch), batch)
    data = detector.network.data_preprocessor(to_mmdet3d(batch, detector.recipe), False)
    expected = detector.network.loss(data["inputs"], data["data_samples"])
    assert len(got) == 12
    for name, value in expected.items():
        torch.testing.assert_close(got[name.replace(".", "_")], value)

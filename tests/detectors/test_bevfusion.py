"""BEVFusion keeps the detector contract; its shipped configs have the stated shapes."""

import pytest
import torch

from bevcask.config import build_config
from bevcask.detectors.base import Batch, Inputs
from bevcask.detectors.bevfusion import BEVFusion, BEVFusionConfig
from bevcask.errors import ConfigError
from bevcask.geometry import Grid, bev_matrix
from bevcask.groups import load_group
from contracts.detector import CenterHeadContract
from detectors.scenes import camera_batch, scan

SMALL = BEVFusionConfig.model_validate(
    {
        "image_size_HW": (32, 64),
        "backbone": "resnet_tiny",
        "image_channels": 8,
        "lift": {
            "depth_range": (1.0, 51.0),
            "depth_bins": 10,
            "depth_channels": 8,
            "channels": 6,
            "factor": 2,
        },
        "half_extent": 51.2,
        "cell": 1.6,
        "fused_channels": 8,
        "decoder_channels": (8, 8, 16),
        "decoder_blocks": 1,
        "join_channels": 8,
        "neck_channels": 8,
        "num_sweeps": 1,
        "lidar": {
            "pillar": 1.6,
            "pillar_channels": 8,
            "channels": (8, 12, 16),
            "convs": (1, 0, 1),
            "strides": (1, 2, 2),
            "neck_channels": (4, 4, 4),
            "neck_scales": (1.0, 2.0, 4.0),
        },
        "head": {"channels": 8, "branch_convs": 2},
    }
)


class TestBEVFusion(CenterHeadContract):
    detector = BEVFusion
    config = SMALL

    def inputs(self, num_samples: int, seed: int) -> Batch:
        batch = camera_batch(num_samples, seed, SMALL.image_size_HW)
        batch.points = [scan(seed + i) for i in range(num_samples)]
        return batch


def shipped(name: str) -> BEVFusionConfig:
    plugin, config = build_config("detector", load_group("detector", name), "teacher.detector")
    assert plugin is BEVFusion
    assert isinstance(config, BEVFusionConfig)
    return config


def test_paper_config_has_the_stated_shapes() -> None:
    config = shipped("bevfusion_swint")
    taps = BEVFusion.describe_taps(config)
    assert {name: tap.shape for name, tap in taps.items()} == {
        "image.fpn0": (6, 256, 32, 88),
        "bev.camera": (80, 180, 180),
        "bev.lidar": (256, 180, 180),
        "bev.fused": (256, 180, 180),
        "bev.neck": (256, 180, 180),
        "head.heatmap": (10, 180, 180),
        "head.codes": (60, 180, 180),
        "head.boxes": (500, 11),
    }
    maps = [name for name in taps if name.startswith("bev.")]
    assert {taps[name].grid for name in maps} == {Grid.square(54.0, 0.6)}
    assert all(taps[name].nonnegative for name in maps)
    assert [name for name, tap in taps.items() if not tap.depends_on_images] == ["bev.lidar"]
    assert BEVFusion.inputs(config) == Inputs((256, 704), num_sweeps=10)


def test_the_teacher_of_tigdistill_has_its_map_sizes() -> None:
    config = shipped("bevfusion_swint_cell08")
    taps = BEVFusion.describe_taps(config)
    shapes = {name: tap.shape for name, tap in taps.items() if name.startswith("bev.")}
    assert shapes == {
        "bev.camera": (80, 128, 128),
        "bev.lidar": (256, 128, 128),
        "bev.fused": (256, 128, 128),
        "bev.neck": (512, 128, 128),
    }
    assert taps["bev.neck"].grid == Grid.square(51.2, 0.8)
    assert config.lift == shipped("bevfusion_swint").lift  # on cells of 0.4 m


def test_shipped_defaults_are_the_paper_config() -> None:
    assert shipped("bevfusion_swint") == BEVFusionConfig()


def test_paper_config_has_the_published_layers() -> None:
    with torch.device("meta"):
        detector = BEVFusion(shipped("bevfusion_swint"))
    state = {name: tuple(value.shape) for name, value in detector.state_dict().items()}
    assert state["fuser.0.weight"] == (256, 80 + 256, 3, 3)
    assert "fuser.0.bias" not in state
    assert [len(stage) for stage in detector.decoder.stages] == [2, 2, 2]
    strides = [stage[0].conv1.stride for stage in detector.decoder.stages]
    assert strides == [(2, 2), (2, 2), (1, 1)]
    assert state["neck.join.0.weight"] == (256, 128 + 512, 3, 3)
    assert detector.camera.grid == Grid.square(54.0, 0.3)
    assert [layer[0].stride for layer in detector.camera.downsample] == [(1, 1), (2, 2), (1, 1)]
    assert state["head.shared.0.0.weight"] == (64, 256, 3, 3)


def test_the_tiny_one_shares_the_grid_of_the_other_tiny_ones() -> None:
    config = shipped("bevfusion_tiny")
    taps = BEVFusion.describe_taps(config)
    assert {taps[f"bev.{name}"].grid for name in ("camera", "lidar", "fused", "neck")} == {
        Grid.square(51.2, 0.8)
    }
    assert BEVFusion.inputs(config) == Inputs((160, 288), num_sweeps=3, depth=True)


def test_a_lidar_branch_on_another_grid_is_refused() -> None:
    section = load_group("detector", "bevfusion_tiny")
    section["lidar"]["pillar"] = 0.8
    with pytest.raises(ConfigError, match=r"ends on 64 cells a side, half_extent 51\.2 and cell"):
        build_config("detector", section, "teacher.detector")


def test_the_depth_loss_comes_and_goes_with_its_weight() -> None:
    batch = TestBEVFusion().batch()
    losses = {}
    for weight in (0.0, 1.0, 2.0):
        contract = TestBEVFusion()
        contract.config = SMALL.model_copy(update={"depth_weight": weight})
        assert BEVFusion.inputs(contract.config).depth is (weight > 0)
        detector = contract.make().eval()
        losses[weight] = detector.loss(detector(batch), batch)
    assert set(losses[0.0]) == {"heatmap", "box"}
    assert set(losses[1.0]) == {"heatmap", "box", "depth"}
    torch.testing.assert_close(losses[2.0]["depth"], 2 * losses[1.0]["depth"])


def test_each_branch_sees_its_own_sensor_and_the_fuser_both() -> None:
    detector = TestBEVFusion().make().eval()
    plain, repainted, rescanned = (TestBEVFusion().inputs(1, 0) for _ in range(3))
    assert repainted.images_BVCHW is not None
    repainted.images_BVCHW += 57
    rescanned.points = [scan(5)]
    with torch.inference_mode():
        taps, painted, scanned = (detector(batch).taps for batch in (plain, repainted, rescanned))
    assert torch.equal(painted["bev.lidar"], taps["bev.lidar"])
    assert not torch.equal(painted["bev.camera"], taps["bev.camera"])
    assert torch.equal(scanned["bev.camera"], taps["bev.camera"])
    assert not torch.equal(scanned["bev.lidar"], taps["bev.lidar"])
    for other in (painted, scanned):
        assert not torch.equal(other["bev.fused"], taps["bev.fused"])
        assert not torch.equal(other["head.heatmap"], taps["head.heatmap"])


def test_the_fused_map_follows_from_the_two_others() -> None:
    """The frozen fuser says of the two stored maps what is stored of itself, to the bit."""
    detector = TestBEVFusion().make().eval()
    with torch.inference_mode():
        taps = detector(TestBEVFusion().inputs(2, 0)).taps
        said = detector.fuser(torch.cat([taps["bev.camera"], taps["bev.lidar"]], dim=1))
    assert taps["bev.fused"].any()
    assert torch.equal(said, taps["bev.fused"])


def test_the_order_of_points_changes_rounding_at_most() -> None:
    detector = TestBEVFusion().make().eval()
    plain, shuffled = TestBEVFusion().inputs(1, 0), TestBEVFusion().inputs(1, 0)
    assert shuffled.points is not None
    shuffled.points = [own[torch.randperm(len(own))] for own in shuffled.points]
    with torch.inference_mode():
        taps, other = detector(plain).taps, detector(shuffled).taps
    for name, values in taps.items():
        torch.testing.assert_close(other[name], values, atol=1e-4, rtol=1e-4)


def test_a_flipped_world_is_lifted_flipped() -> None:
    contract = TestBEVFusion()
    contract.config = SMALL.model_copy(update={"lift": SMALL.lift.model_copy(update={"factor": 1})})
    detector = contract.make().eval()
    detector.camera.downsample = torch.nn.Identity()
    for gate in (detector.camera.depth_net.depth_gate, detector.camera.depth_net.context_gate):
        gate.gate[0].weight.data[:, 10:15] = 0  # the five numbers that tell of the augmentation
    plain, flipped = contract.inputs(1, 0), contract.inputs(1, 0)
    flipped.bev_aug_B44 = torch.tensor(bev_matrix(flip_x=True), dtype=torch.float32)[None]
    with torch.inference_mode():
        one, other = (detector(batch).taps["bev.camera"] for batch in (plain, flipped))
    assert float((one != 0).float().mean()) > 0.05
    differs = ((other - one.flip(-1)).abs() > 1e-5).any(dim=1)
    assert float(differs.float().mean()) < 0.01  # cells with a frustum point on their edge


@pytest.mark.slow
def test_paper_size_runs_forward() -> None:
    config = shipped("bevfusion_swint")
    detector = BEVFusion(config).eval()
    batch = camera_batch(1, 0, config.image_size_HW)
    batch.points = [scan(0)]
    with torch.inference_mode():
        output = detector(batch)
    described = BEVFusion.describe_taps(config)
    for name, values in output.taps.items():
        assert tuple(values.shape[1:]) == described[name].shape, name
        assert bool(values.isfinite().all()), name
    assert len(detector.decode(output)) == 1

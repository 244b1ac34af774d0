"""BEVSimDet keeps the detector contract; its branches are what SimDistill says."""

import pytest
import torch

from bevcask.config import build_config
from bevcask.detectors.base import Batch, Detector, Inputs
from bevcask.detectors.bevsimdet import BEVSimDet, BEVSimDetConfig
from bevcask.errors import ConfigError
from bevcask.geometry import Grid
from bevcask.groups import load_group
from contracts.detector import CenterHeadContract
from detectors.scenes import camera_batch

SMALL = BEVSimDetConfig.model_validate(
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
        "image_attention": {"heads": 2, "points": 3},
        "bev_attention": {"heads": 2, "points": 4},
        "head": {"channels": 8, "branch_convs": 2},
    }
)


class TestBEVSimDet(CenterHeadContract):
    detector = BEVSimDet
    config = SMALL

    def make(self) -> Detector:
        """Let offsets and weights listen to the queries; at the start they do not."""
        detector = super().make()
        assert isinstance(detector, BEVSimDet)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for module in (detector.image_attention, detector.bev_attention):
                for layer in (module.attention.offsets, module.attention.weights):
                    layer.weight.normal_(std=0.1, generator=generator)
        return detector

    def inputs(self, num_samples: int, seed: int) -> Batch:
        return camera_batch(num_samples, seed, SMALL.image_size_HW)


def shipped(name: str) -> BEVSimDetConfig:
    plugin, config = build_config("detector", load_group("detector", name), "student.detector")
    assert plugin is BEVSimDet
    assert isinstance(config, BEVSimDetConfig)
    return config


def test_paper_config_has_the_stated_shapes() -> None:
    config = shipped("bevsimdet_swint")
    taps = BEVSimDet.describe_taps(config)
    assert {name: tap.shape for name, tap in taps.items()} == {
        "image.fpn0": (6, 256, 32, 88),
        "bev.simulated": (80, 180, 180),
        "bev.camera": (80, 180, 180),
        "bev.fused": (256, 180, 180),
        "bev.neck": (256, 180, 180),
        "head.heatmap": (10, 180, 180),
        "head.codes": (60, 180, 180),
        "head.boxes": (500, 11),
    }
    assert all(tap.depends_on_images for tap in taps.values())
    assert not taps["bev.simulated"].nonnegative
    assert taps["bev.camera"].grid == Grid.square(54.0, 0.6)
    assert BEVSimDet.inputs(config) == Inputs(image_size_HW=(256, 704))


def test_shipped_defaults_are_the_paper_config() -> None:
    assert shipped("bevsimdet_swint") == BEVSimDetConfig()


def test_paper_config_has_the_published_layers() -> None:
    with torch.device("meta"):
        detector = BEVSimDet(shipped("bevsimdet_swint"))
    state = {name: tuple(value.shape) for name, value in detector.state_dict().items()}
    assert state["fuser.0.weight"] == (256, 80 + 80, 3, 3)
    assert detector.image_attention.attention.shape_ALP == (8, 1, 10)
    assert detector.bev_attention.attention.shape_ALP == (8, 1, 20)
    assert state["image_attention.rows_CY1"] == (256, 32, 1)
    assert state["image_attention.columns_C1X"] == (256, 1, 88)
    assert state["bev_attention.rows_CY1"] == (80, 180, 1)


def test_the_tiny_one_reads_images_alone() -> None:
    config = shipped("bevsimdet_tiny")
    assert BEVSimDet.inputs(config) == Inputs(image_size_HW=(160, 288), depth=True)
    state = BEVSimDet(config).state_dict()
    assert sum(value.numel() * value.element_size() for value in state.values()) < 5_000_000


@pytest.mark.parametrize("name", ["image_attention", "bev_attention"])
def test_heads_that_do_not_divide_are_refused(name: str) -> None:
    section = {**load_group("detector", "bevsimdet_tiny"), name: {"heads": 5}}
    with pytest.raises(ConfigError, match=rf"{name}\.heads 5 must divide the map's"):
        build_config("detector", section, "student.detector")


def test_depth_is_a_label_never_an_input() -> None:
    contract = TestBEVSimDet()
    contract.config = SMALL.model_copy(update={"depth_weight": 3.0})
    detector = contract.make().eval()
    batch, blind = contract.batch(), contract.batch()
    blind.pixels = [torch.zeros(0, 5)] * len(batch.tokens)
    with torch.inference_mode():
        output, other = detector(batch), detector(blind)
        losses = detector.loss(output, batch)
    for name, values in output.taps.items():
        assert torch.equal(values, other.taps[name]), name
    assert set(losses) == {"heatmap", "box", "depth.simulated", "depth.camera"}


def test_attention_compensates_the_simulated_branch_alone() -> None:
    detector = TestBEVSimDet().make().eval()
    assert isinstance(detector, BEVSimDet)
    batch = TestBEVSimDet().inputs(1, 0)
    with torch.inference_mode():
        before = detector(batch).taps
        for attention in (detector.image_attention, detector.bev_attention):
            kept = attention.attention.output.bias.clone()
            attention.attention.output.bias += 1
            after = detector(batch).taps
            attention.attention.output.bias.copy_(kept)
            assert torch.equal(after["image.fpn0"], before["image.fpn0"])
            assert torch.equal(after["bev.camera"], before["bev.camera"])
            assert not torch.equal(after["bev.simulated"], before["bev.simulated"])
            assert not torch.equal(after["bev.fused"], before["bev.fused"])


def test_without_attention_and_with_equal_lifts_the_branches_agree() -> None:
    detector = TestBEVSimDet().make().eval()
    assert isinstance(detector, BEVSimDet)
    with torch.inference_mode():
        for attention in (detector.image_attention, detector.bev_attention):
            attention.attention.output.weight.zero_()
            attention.attention.output.bias.zero_()
        batch = TestBEVSimDet().inputs(1, 0)
        apart = detector(batch).taps
        assert not torch.equal(apart["bev.simulated"], apart["bev.camera"])  # a lift each
        detector.simulated.load_state_dict(detector.camera.state_dict())
        same = detector(batch).taps
    assert torch.equal(same["bev.simulated"], same["bev.camera"])
    assert float(same["bev.camera"].sum()) > 0


@pytest.mark.slow
def test_paper_size_runs_forward() -> None:
    config = shipped("bevsimdet_swint")
    detector = BEVSimDet(config).eval()
    with torch.inference_mode():
        output = detector(camera_batch(1, 0, config.image_size_HW))
    described = BEVSimDet.describe_taps(config)
    for name, values in output.taps.items():
        assert tuple(values.shape[1:]) == described[name].shape, name
        assert bool(values.isfinite().all()), name
    assert len(detector.decode(output)) == 1

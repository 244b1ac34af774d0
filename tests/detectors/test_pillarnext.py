import pytest
import torch

from bevcask.config import build_config
from bevcask.detectors.base import Batch, Inputs
from bevcask.detectors.centerpoint import CenterPoint
from bevcask.detectors.pillarnext import PillarNeXt, PillarNeXtConfig
from bevcask.errors import ConfigError
from bevcask.geometry import Grid
from bevcask.groups import load_group
from contracts.detector import CenterHeadContract
from detectors.scenes import scan

SMALL = PillarNeXtConfig.model_validate(
    {
        "pillar": 1.6,
        "num_sweeps": 1,
        "point_layers": (8,),
        "pillar_channels": 8,
        "channels": (8, 8, 12),
        "blocks": (1, 0, 1),
        "strides": (1, 1, 1),
        "neck_channels": 8,
        "dilations": (1, 3),
        "head": {"channels": 8, "branch_convs": 2},
    }
)


class TestPillarNeXt(CenterHeadContract):
    detector = PillarNeXt
    config = SMALL

    def inputs(self, num_samples: int, seed: int) -> Batch:
        return Batch(
            tokens=[str(seed + i) for i in range(num_samples)],
            bev_aug_B44=torch.eye(4).expand(num_samples, 4, 4),
            points=[scan(seed + i) for i in range(num_samples)],
        )


def shipped(name: str) -> PillarNeXtConfig:
    plugin, config = build_config("detector", load_group("detector", name), "teacher.detector")
    assert plugin is PillarNeXt
    assert isinstance(config, PillarNeXtConfig)
    return config


def test_paper_config_has_the_published_shapes() -> None:
    taps = PillarNeXt.describe_taps(shipped("pillarnext"))
    assert {name: tap.shape for name, tap in taps.items()} == {
        "bev.block0": (64, 1024, 1024),
        "bev.block1": (128, 512, 512),
        "bev.block2": (256, 256, 256),
        "bev.block3": (256, 128, 128),
        "bev.neck": (256, 128, 128),
        "head.heatmap": (10, 128, 128),
        "head.codes": (60, 128, 128),
        "head.boxes": (500, 11),
    }
    assert taps["bev.neck"].grid == Grid.square(51.2, 0.8)
    assert not any(tap.depends_on_images for tap in taps.values())
    assert PillarNeXt.inputs(shipped("pillarnext")) == Inputs(num_sweeps=10)


def test_paper_config_has_the_published_layers() -> None:
    with torch.device("meta"):
        detector = PillarNeXt(shipped("pillarnext"))
    assert [len(stage) for stage in detector.backbone.stages] == [3, 3, 3, 3]
    assert tuple(detector.encoder.hidden[0][0].weight.shape) == (32, 10)
    assert tuple(detector.encoder.linear.weight.shape) == (64, 64)
    assert tuple(detector.neck.shared.weight.shape) == (256, 256, 3, 3)
    assert tuple(detector.neck.join[0].weight.shape) == (256, 6 * 256, 1, 1)
    norms = [m for m in detector.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


def test_shipped_defaults_are_the_paper_config() -> None:
    assert shipped("pillarnext") == PillarNeXtConfig()


def test_tiny_config_fits_in_four_megabytes_and_lies_on_the_students_grid() -> None:
    config = shipped("pillarnext_tiny")
    state = PillarNeXt(config).state_dict()
    assert sum(value.numel() * value.element_size() for value in state.values()) < 4_000_000
    assert PillarNeXt.describe_taps(config)["bev.neck"].grid == Grid.square(51.2, 0.8)
    _, centerpoint = build_config("detector", load_group("detector", "centerpoint_tiny"), "x")
    with torch.device("meta"):
        donor = CenterPoint(centerpoint).head_weights()  # type: ignore[arg-type]
    own = {name: value.shape for name, value in PillarNeXt(config).head_weights().items()}
    assert own == {name: value.shape for name, value in donor.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strides": [1, 2, 2]}, "one number a stage"),
        ({"strides": [1, 2, 2, 3]}, "cannot halve 256 cells by 3"),
    ],
)
def test_sizes_that_cannot_meet_are_named(change: dict[str, object], words: str) -> None:
    section = {**load_group("detector", "pillarnext"), **change}
    with pytest.raises(ConfigError, match=words):
        build_config("detector", section, "teacher.detector")

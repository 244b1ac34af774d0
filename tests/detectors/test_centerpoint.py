import pytest
import torch

from bevcask.config import build_config
from bevcask.detectors.base import Batch, Inputs
from bevcask.detectors.centerpoint import CenterPoint, CenterPointConfig
from bevcask.errors import ConfigError
from bevcask.geometry import Grid
from bevcask.groups import load_group
from contracts.detector import CenterHeadContract
from detectors.scenes import scan

SMALL = CenterPointConfig.model_validate(
    {
        "pillar": 1.6,
        "num_sweeps": 1,
        "pillar_channels": 8,
        "channels": (8, 12, 16),
        "convs": (1, 0, 1),
        "strides": (1, 2, 2),
        "neck_channels": (8, 8, 8),
        "neck_scales": (1.0, 2.0, 4.0),
        "head": {"channels": 8, "branch_convs": 2},
    }
)


class TestCenterPoint(CenterHeadContract):
    detector = CenterPoint
    config = SMALL

    def inputs(self, num_samples: int, seed: int) -> Batch:
        return Batch(
            tokens=[str(seed + i) for i in range(num_samples)],
            bev_aug_B44=torch.eye(4).expand(num_samples, 4, 4),
            points=[scan(seed + i) for i in range(num_samples)],
        )


class TestMVP(CenterHeadContract):
    detector = CenterPoint
    config = SMALL.model_copy(update={"point_channels": 17})

    def inputs(self, num_samples: int, seed: int) -> Batch:
        batch = TestCenterPoint().inputs(num_samples, seed)
        assert batch.points is not None
        batch.points = [
            torch.cat([own, own[:, :2].sin().repeat(1, 6) ** 2], 1) for own in batch.points
        ]
        return batch


def test_virtual_points_are_asked_for_where_they_are_seen() -> None:
    assert CenterPoint.inputs(shipped("centerpoint_mvp")) == Inputs(
        num_sweeps=10, virtual_points=True
    )
    with torch.device("meta"):
        detector = CenterPoint(shipped("centerpoint_mvp"))
    assert tuple(detector.encoder.linear.weight.shape) == (64, 22)


def shipped(name: str) -> CenterPointConfig:
    plugin, config = build_config("detector", load_group("detector", name), "teacher.detector")
    assert plugin is CenterPoint
    assert isinstance(config, CenterPointConfig)
    return config


def test_paper_config_has_the_published_shapes() -> None:
    taps = CenterPoint.describe_taps(shipped("centerpoint"))
    shapes = {name: tap.shape for name, tap in taps.items()}
    assert shapes == {
        "bev.block0": (64, 256, 256),
        "bev.block1": (128, 128, 128),
        "bev.block2": (256, 64, 64),
        "bev.neck": (384, 128, 128),
        "head.heatmap": (10, 128, 128),
        "head.codes": (60, 128, 128),
        "head.boxes": (500, 11),
    }
    assert taps["bev.neck"].grid == Grid.square(51.2, 0.8)
    assert not any(tap.depends_on_images for tap in taps.values())
    assert CenterPoint.inputs(shipped("centerpoint")) == Inputs(num_sweeps=10)


def test_paper_config_has_the_published_layers() -> None:
    with torch.device("meta"):
        detector = CenterPoint(shipped("centerpoint"))
    assert [len(stage) for stage in detector.backbone.stages] == [4, 6, 6]
    assert tuple(detector.encoder.linear.weight.shape) == (64, 10)
    norms = [m for m in detector.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    kernels = [tuple(branch[0].weight.shape) for branch in detector.neck.branches]
    assert kernels == [(128, 64, 2, 2), (128, 128, 1, 1), (256, 128, 2, 2)]
    assert tuple(detector.head.tasks[1].heatmap[-1].weight.shape) == (2, 64, 3, 3)


def test_tiny_config_follows_its_batches_faster() -> None:
    detector = CenterPoint(shipped("centerpoint_tiny"))
    norms = [m for m in detector.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert {norm.momentum for norm in norms} == {0.1}


def test_shipped_defaults_are_the_paper_config() -> None:
    assert shipped("centerpoint") == CenterPointConfig()


def test_tiny_config_fits_in_four_megabytes() -> None:
    config = shipped("centerpoint_tiny")
    state = CenterPoint(config).state_dict()
    assert sum(value.numel() * value.element_size() for value in state.values()) < 4_000_000
    taps = CenterPoint.describe_taps(config)
    assert taps["bev.neck"].grid == Grid.square(51.2, 0.8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"neck_scales": (1.0, 1.0, 2.0)}, "neck_scales"),
        ({"half_extent": 50.0, "pillar": 0.4}, "strides"),
    ],
)
def test_sizes_that_cannot_meet_are_named(change: dict[str, object], words: str) -> None:
    config = CenterPointConfig(**change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=words):
        CenterPoint.describe_taps(config)


def test_a_lone_cluster_shows_in_its_own_cell() -> None:
    detector = TestCenterPoint().make().eval()
    empty = torch.tensor([[0.0, 0.0, 40.0, 0.0, 0.0]])
    cluster = torch.tensor([[21.0, -10.0, 0.0, 200.0, 0.0]]).repeat(5, 1)
    eye = torch.eye(4)[None]
    with torch.inference_mode():
        blank = detector(Batch(["a"], eye, points=[empty])).taps["bev.block0"]
        seen = detector(Batch(["a"], eye, points=[cluster])).taps["bev.block0"]
    moved = (blank - seen).abs().sum(dim=1)[0]
    centre = moved.nonzero().float().mean(dim=0)
    expected = Grid.square(51.2, 1.6).to_cells(torch.tensor([[21.0, -10.0]]))[0].flip(0)
    assert centre + 0.5 == pytest.approx(expected, abs=1.0)

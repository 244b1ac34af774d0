"""Operations of a forward pass: by hand, and as published."""

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from bevcask.config import Config, build_config
from bevcask.detectors.base import Batch, Detections, Detector, Inputs, Output
from bevcask.detectors.operations import operations, random_frame
from bevcask.geometry import CAMERAS
from bevcask.groups import load_group
from bevcask.targets.spec import TapInfo


class OneConvolution(Detector):
    """3 channels to 5 by 3 x 3 pixels; in training a linear layer behind it."""

    Config = Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.head = nn.Linear(5, 2)

    @classmethod
    def inputs(cls, config: Config) -> Inputs:
        return Inputs(image_size_HW=(4, 6))

    @classmethod
    def describe_taps(cls, config: Config) -> Mapping[str, TapInfo]:
        return {}

    def forward(self, batch: Batch) -> Output:
        seen_NCHW = self.conv(batch.normalised().flatten(0, 1))
        if self.training:
            self.head(seen_NCHW.mean((2, 3)))
        return Output({})

    def loss(self, output: Output, batch: Batch) -> dict[str, torch.Tensor]:
        return {}

    def decode(self, output: Output) -> list[Detections]:
        return []


def test_a_convolution_by_hand() -> None:
    num = len(CAMERAS)
    convolution = 2 * num * (4 * 6) * (3 * 3 * 3) * 5
    assert operations(OneConvolution, Config()) == convolution
    assert operations(OneConvolution, Config(), training=True) == convolution + 2 * num * 5 * 2


def test_counting_draws_no_number_of_anybody_elses() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    operations(OneConvolution, Config())
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", ["centerpoint_tiny", "bevdepth4d_tiny", "raydn_tiny"])
def test_frames_are_what_detectors_want(name: str) -> None:
    plugin, config = build_config("detector", load_group("detector", name), "detector")
    assert operations(plugin, config) > 1e9
    frame = random_frame(plugin.inputs(config), number=2)
    assert frame.after == ["1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "published"),
    [("raydn_r18", 57.83), ("raydn_r34", 97.78), ("raydn_r50", 110.27), ("streampetr_r50", 105.03)],
)
def test_harmodistill_says_as_many(name: str, published: float) -> None:
    """Its README counts a multiplication and addition as one, billions a frame."""
    plugin, config = build_config("detector", load_group("detector", name), "detector")
    assert operations(plugin, config) / 2e9 == pytest.approx(published, rel=0.02)

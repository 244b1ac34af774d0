"""Which validations are drawn, and that nothing they meet ends a training."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.detectors.base import Batch, Detections, Output
from bevcask.errors import ConfigError
from bevcask.geometry import Grid
from bevcask.targets.spec import TapInfo
from bevcask.training.keeper import Validation
from bevcask.training.panels import TAG, Pictures
from bevcask.viz import learning, pictures

GRID = Grid.square(51.2, 25.6)
TAPS = {
    "bev.neck": TapInfo("bev.neck", "dense_bev", (1, *GRID.shape_YX), GRID),
    "query.last": TapInfo("query.last", "query_set", (4, 8)),
}


class Writer:
    """A logger that takes images."""

    def __init__(self) -> None:
        self.experiment = self
        self.images: list[tuple[Any, ...]] = []

    def add_image(self, tag: str, image: Any, step: int, dataformats: str) -> None:
        self.images.append((tag, image.shape, step, dataformats))


@pytest.fixture
def panels(tiny_world: Path) -> Pictures:
    dataset = DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="all")
    return Pictures(2, Frames.select(dataset), TAPS, None)


def show(panels: Pictures, first: bool) -> None:
    token = panels._frames.tokens[0 if first else 3]
    batch = Batch([panels._frames.tokens[1], token], torch.eye(4).repeat(2, 1, 1))
    neck = torch.full((2, 1, *GRID.shape_YX), float(first), dtype=torch.bfloat16)
    neck[0] = 9.0  # of the other frame
    taps = {"bev.neck": neck}
    none = Detections(torch.zeros(0, 9), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    panels.watch(batch, Output(taps | {"query.last": torch.zeros(2, 4, 8)}), [none, none])


@pytest.mark.parametrize(("every", "drawn"), [(2, [4, 8, 9]), (0, [9])])
def test_every_other_validation_and_the_last(
    panels: Pictures, every: int, drawn: list[int]
) -> None:
    validation = Validation([], [], None, (), every, 9, panels)
    steps = [step for step in range(10) if validation.due(step)]
    assert [step for step in steps if validation.pictures(step)] == drawn
    assert Validation([], [], None, (), every, 9).pictures(9) is None


def test_only_the_first_frame_is_drawn(panels: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(
        pictures, "drawn_from_above", lambda own: drawn.append(own) or np.zeros((2, 3, 3), np.uint8)
    )
    writer = Writer()
    panels.log([writer], 1)
    assert not writer.images
    show(panels, first=True)
    show(panels, first=False)
    panels.log([writer, object.__new__(Quiet)], 4)
    assert writer.images == [(TAG, (2, 3, 3), 4, "HWC")]
    assert drawn[0].maps[0].values_YX.tolist() == np.ones(GRID.shape_YX).tolist()


class Quiet:
    """A logger of numbers alone."""

    experiment = None


def test_what_cannot_be_drawn_is_a_warning(
    panels: Pictures, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object) -> None:
        raise ConfigError("box.json: damaged.")

    monkeypatch.setattr(learning, "compose_learning", broken)
    show(panels, first=True)
    writer = Writer()
    with caplog.at_level(logging.WARNING):
        panels.log([writer], 4)
    assert not writer.images
    assert "no picture of step 4: box.json: damaged." in caplog.text

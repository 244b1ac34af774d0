"""The arms of the image benchmark make the same picture, and their ratios are what they say."""

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("images")


@pytest.fixture
def photograph(images: Any, tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (15, 25, 3), np.uint8)
    path = tmp_path / "smooth.jpg"
    height, width = images.CAMERA_HW
    Image.fromarray(noise).resize((width, height)).save(path, quality=95)
    return path


def test_end_to_end(images: Any, photograph: Path) -> None:
    result = images.measure([photograph], 1, "synthetic")
    json.dumps(result)
    assert len(result["ratios"]) == 8
    times = result["seconds"]
    by_name = {row["name"]: row["median"] for row in result["ratios"]}
    expected = times["opencv clean input"][0] / times["bevcask clean input"][0]
    assert by_name["opencv / bevcask, clean input"] == pytest.approx(expected)
    assert max(result["mean_absolute_difference_of_255"].values()) < 1


def test_samples_against_their_images(
    images: Any, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "CAMERA_HW", (112, 200))
    monkeypatch.setattr(images, "NUM_FRAMES", 2)
    where = DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="all")
    result = images.measure_samples(Frames.select(where), 1)
    json.dumps(result)
    assert result["frames"] == 2
    first, *_, last = result["ratios"]
    seconds = result["seconds"]
    assert first["median"] == pytest.approx(seconds["sample"][0] / seconds["six"][0])
    assert last["median"] == pytest.approx(result["bytes_a_sample"] / images.FLOATS, rel=1e-3)


@pytest.mark.parametrize("changes", [{}, {"flip": True}, {"rotation": math.radians(5)}])
def test_arms_make_the_same_picture(images: Any, photograph: Path, changes: dict[str, Any]) -> None:
    transform = replace(images.transforms(None, [photograph])[0], **changes)
    inputs = []
    for load, normalise in images.ARMS.values():
        pixels = load(photograph, transform)
        out_CHW = np.empty((3, *images.NETWORK_HW), np.float32)
        normalise(pixels, out_CHW)
        inputs.append(out_CHW[:, 40:-40, 40:-40])
    for other in inputs[:-1]:
        assert np.abs(other - inputs[-1]).mean() < 0.03  # of one standard deviation

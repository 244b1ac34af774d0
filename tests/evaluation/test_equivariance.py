"""The gap of teachers whose gap is known: it must be zero, or what was put in."""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.cache import FrameTable, encode, open_cache
from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.data.loader import ViewSource
from bevcask.data.samples import SampleReader, collate
from bevcask.detectors.base import Batch, Inputs
from bevcask.errors import ConfigError
from bevcask.evaluation.equivariance import (
    AUGMENTATIONS,
    clean_maps,
    equivariance_gap,
    equivariance_sums,
)
from bevcask.geometry import Grid
from bevcask.progress import progress_bar
from bevcask.targets.spec import Codec, TapInfo, TargetSpec
from cache.example import begin

GRID = Grid.square(48.0, 1.5)
DENSE = TargetSpec(TapInfo("map", "dense_bev", (2, *GRID.shape_YX), GRID), "float32")
PEAK = TargetSpec(
    TapInfo("peak", "heatmap", (1, *GRID.shape_YX), GRID, nonnegative=True, classes=("thing",)),
    "float32",
)
FLIPS = ("flip x", "flip y", "flip x and y")
Gap = dict[str, dict[str, dict[str, float | None]]]
Measure = Callable[..., Gap]
Says = Callable[[Tensor], Tensor]


def blob(points_P5: Tensor) -> Tensor:
    """A wide hill where the points lie on average, and another at their mean square."""
    centres_YX2 = torch.as_tensor(GRID.centres()).float()
    middle_2 = points_P5[:, :2].mean(0) * 3
    off_YX = (centres_YX2 - middle_2).square().sum(-1)
    return torch.stack([torch.exp(-off_YX / 200), torch.exp(-off_YX / 400)])


def leaning(points_P5: Tensor) -> Tensor:
    """The same, but a constant heading that does not turn with the world."""
    centres_YX2 = torch.as_tensor(GRID.centres()).float()
    return blob(points_P5) + 0.1 * centres_YX2[..., 0] / 48


class Teacher:
    """Says a map of the points, and a peak where the map is highest."""

    def __init__(self, says: Says) -> None:
        self.says = says

    def __call__(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        assert batch.points is not None
        maps = torch.stack([self.says(points) for points in batch.points])
        return {"map": maps, "peak": (maps[:, :1] >= maps[:, :1].amax((2, 3), True)).float()}


@pytest.fixture
def gap_of(tiny_world: Path, tmp_path: Path) -> Measure:
    frames = Frames.select(
        DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="all")
    )
    reader = SampleReader(frames, Inputs(num_sweeps=1), None, 0)

    def measure(says: Says, codec: Codec = "float32") -> Gap:
        dense = replace(DENSE, codec=codec)
        teacher: Any = Teacher(says)
        table = FrameTable(frames.tokens, frames.scenes, frames.timestamps, frames.lidar_to_global)
        writer = begin(tmp_path / says.__name__, specs=(dense, PEAK), frames=table)
        for shard in writer.missing():
            said = teacher(collate([reader.read(token) for token in writer.tokens(shard)]), ())
            writer.write(
                shard, {spec.name: encode(said[spec.name], spec) for spec in (dense, PEAK)}
            )
        writer.seal()
        cache = open_cache(str(tmp_path / says.__name__))
        with progress_bar("gap", 1) as bar:
            cpu, source = torch.device("cpu"), ViewSource(reader, reader)
            parts = [
                equivariance_sums(cache, teacher, source, [token], cpu, bar)
                for token in frames.tokens[:2]
            ]
        return equivariance_gap(parts)

    return measure


def test_a_teacher_that_turns_with_the_world_has_no_gap(gap_of: Measure) -> None:
    gap = gap_of(blob)
    assert set(gap) == set(AUGMENTATIONS)
    for name in ("none", *FLIPS):
        for target in ("map", "peak"):
            assert gap[name][target]["l2"] == pytest.approx(0, abs=1e-4), (name, target)
            assert gap[name][target]["cosine"] == pytest.approx(1, abs=1e-4)
    for name in ("rotate 5", "rotate 10", "rotate 22.5"):
        assert 0 < gap[name]["map"]["l2"] < 0.01, name  # type: ignore[operator]


def test_a_teacher_that_leans_has_the_gap_that_was_put_in(gap_of: Measure) -> None:
    gap = gap_of(leaning)
    assert gap["none"]["map"]["l2"] == pytest.approx(0, abs=1e-6)
    assert gap["flip y"]["map"]["l2"] == pytest.approx(0, abs=1e-3)
    assert gap["flip x"]["map"]["l2"] > 0.1  # type: ignore[operator]
    assert gap["flip x"]["map"]["cosine"] < 0.999  # type: ignore[operator]
    turned = [gap[f"rotate {angle}"]["map"]["l2"] for angle in ("5", "10", "22.5")]
    assert turned == sorted(turned)
    assert gap["flip x"]["map"]["l2_objects"] is not None


def test_faint_cells_that_a_codec_makes_zero_do_not_count_as_disagreement(gap_of: Measure) -> None:
    """Most of a hill's flank is below half a step of 7 bits."""
    clean = gap_of(blob, "int8")["none"]["map"]
    assert 0 < clean["l2"] < 0.01  # type: ignore[operator]
    assert clean["cosine"] == pytest.approx(1, abs=1e-4)


def test_a_cache_without_clean_maps_is_refused_before_anything_runs(tmp_path: Path) -> None:
    views = [replace(DENSE, alignment="replay", view=view) for view in (1, 2)]
    cache = begin(tmp_path / "c", specs=views).cache
    with pytest.raises(ConfigError, match=r"has none: map\.view1, map\.view2"):
        clean_maps(cache)

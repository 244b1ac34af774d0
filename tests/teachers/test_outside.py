"""A teacher, a method and a detector of somebody else's package, named in full."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from bevcask.cache import open_cache
from bevcask.cli import app
from bevcask.config import Config
from bevcask.detectors.base import Batch, Inputs
from bevcask.errors import TargetMismatchError
from bevcask.geometry import Grid
from bevcask.methods.base import Method, Pair
from bevcask.targets.spec import TapInfo
from bevcask.teachers.base import Teacher
from contracts.teacher import TeacherContract

HERE = "teachers.test_outside"
GRID = Grid.square(25.6, 3.2)


class Density(Teacher):
    """Says how many points lie in each cell, times a factor."""

    class Config(Config):
        factor: float = 1.0

    config: "Density.Config"

    def taps(self) -> Mapping[str, TapInfo]:
        return {"bev.density": TapInfo("bev.density", "dense_bev", (1, 16, 16), GRID, True)}

    def load(self, device: torch.device | str) -> None: ...

    def fingerprint(self) -> dict[str, Any]:
        return {"type": "density", "weights": "none", "factor": self.config.factor}

    @classmethod
    def claims(cls, config: Any) -> dict[str, Any]:
        return {"type": "density", "factor": config.factor}

    def inputs(self) -> Inputs:
        return Inputs(None, num_sweeps=1)

    def __call__(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        unknown = [name for name in names if name not in self.taps()]
        if unknown:
            raise TargetMismatchError(f"no tap {unknown[0]!r}. Known: {', '.join(self.taps())}.")
        maps = torch.zeros(len(batch.tokens), 1, 16, 16)
        for own, points in zip(maps, batch.points or [], strict=True):
            columns, rows = GRID.to_cells(points[:, :2]).floor().long().unbind(1)
            inside = (columns >= 0) & (columns < 16) & (rows >= 0) & (rows < 16)
            index = (rows * 16 + columns)[inside]
            own.view(-1).index_add_(0, index, torch.ones(len(index)))
        return dict.fromkeys(names, maps * self.config.factor)


class Wants(Method):
    """Asks for the density and teaches nothing."""

    class Config(Config):
        pass

    def __init__(self, config: Any) -> None:
        super().__init__()

    def pairs(self) -> list[Pair]:
        return [Pair("density", None, "bev.density")]

    def forward(self, *_: Any) -> dict[str, Tensor]:
        return {}


class TestDensity(TeacherContract):
    section: Mapping[str, Any] = {"type": f"{HERE}:Density", "factor": 0.5}

    def batch(self, num_samples: int) -> Batch:
        generator = torch.Generator().manual_seed(0)
        points = [40 * torch.rand((50, 5), generator=generator) - 20 for _ in range(num_samples)]
        return Batch([str(i) for i in range(num_samples)], torch.eye(4)[None], points=points)


def call(*words: str) -> tuple[int, Any]:
    answer = CliRunner().invoke(app, [*words, "--json"])
    return answer.exit_code, json.loads(answer.stdout) if not answer.exit_code else answer.stderr


def test_its_cache_is_like_any_other(tiny_world: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"type: {HERE}:Wants\n")
    words = [
        f"teacher.type={HERE}:Density",
        "teacher.factor=0.5",
        f"method={own}",
        "dataset=synthetic",
        f"dataset.root={tiny_world}",
        "dataset.split=synthetic_val",
        "loader.num_workers=0",
    ]
    url = str(tmp_path / "density.zarr")
    code, said = call("teacher-extract", url, *words)
    assert code == 2
    assert "trust_code=true" in said
    code, said = call("teacher-extract", url, *words, "trust_code=true")
    assert code == 0, said
    cache = open_cache(url)
    assert cache.fingerprint["teacher"]["factor"] == 0.5
    values = cache.read(cache.frames.tokens[0])["bev.density"].values
    assert values.any()
    code, said = call(
        "teacher-extract", url, *words[:1], "teacher.factor=0.25", *words[2:], "trust_code=true"
    )
    assert code == 2
    assert "teacher.factor: expected 0.25 (this run), got 0.5 (the cache)" in said


@pytest.mark.parametrize("name", ["bevcask.geometry:Grid", "builtins:dict"])
def test_a_class_that_is_no_plug_in_is_refused(name: str) -> None:
    code, said = call("plan", f"teacher.type={name}", "trust_code=true")
    assert code == 2
    assert "Expected a class with a nested Config" in said

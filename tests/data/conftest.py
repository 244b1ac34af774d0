"""Frames and the devkit on the same datasets."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from nuscenes.nuscenes import NuScenes

from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames

Select = Callable[..., Frames]


@pytest.fixture(scope="session")
def select() -> Select:
    """Select frames of a folder: `select(root, version, split=..., scenes=..., limit=...)`."""

    def frames(root: Path, version: str = "v1.0-synthetic", **keys: object) -> Frames:
        keys = {"split": "all", **keys}
        return Frames.select(DatasetConfig(root=str(root), version=version, **keys))

    return frames


@pytest.fixture(scope="session")
def tiny_frames(tiny_world: Path, select: Select) -> Frames:
    return select(tiny_world)


@pytest.fixture(scope="session")
def tiny_devkit(tiny_world: Path) -> NuScenes:
    return NuScenes("v1.0-synthetic", str(tiny_world), verbose=False)


@pytest.fixture
def world_copy(tiny_world: Path, tmp_path: Path) -> Path:
    """A copy of the tiny world to break."""
    return Path(shutil.copytree(tiny_world, tmp_path / "copy"))


@pytest.fixture(scope="session", params=["synthetic", "nuscenes"])
def pair(request: pytest.FixtureRequest, select: Select) -> tuple[Frames, NuScenes]:
    """The same dataset through bevcask and through the devkit."""
    if request.param == "synthetic":
        return request.getfixturevalue("tiny_frames"), request.getfixturevalue("tiny_devkit")
    root = request.getfixturevalue("nuscenes_root")
    return select(root, "v1.0-mini"), NuScenes("v1.0-mini", str(root), verbose=False)

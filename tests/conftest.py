"""Datasets on disk that several rooms test with."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_KEYFRAMES = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "nuscenes"


@pytest.fixture(scope="session", autouse=True)
def bevcask_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep indexes and the user catalog out of the user's own folder."""
    home = tmp_path_factory.mktemp("home")
    os.environ["BEVCASK_HOME"] = str(home)
    return home


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Flushing a hundred small files costs a second a cache, and no test can cut the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers, whatever ran before it."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic dataset: 2 scenes (train, val) x 3 keyframes, 200x112 images."""
    from bevcask.synthetic import synthesize
    from bevcask.verbs import SynthesizeConfig

    out = tmp_path_factory.mktemp("world") / "tiny"
    synthesize(
        SynthesizeConfig(
            out=str(out),
            seed=7,
            num_scenes=2,
            num_keyframes=3,
            val_scenes=1,
            image_width=200,
            image_height=112,
            workers=0,
        )
    )
    return out


@pytest.fixture(scope="session")
def nuscenes_root() -> Path:
    """The real keyframes: `BEVCASK_NUSCENES` or `../shared/data/nuscenes`."""
    named = os.environ.get("BEVCASK_NUSCENES")
    root = Path(named) if named else _KEYFRAMES
    if not (root / "v1.0-mini" / "sample.json").is_file():
        message = f"no nuScenes keyframes at {root}; set BEVCASK_NUSCENES to a folder that has them"
        if named:
            pytest.fail(message)
        pytest.skip(message)
    return root

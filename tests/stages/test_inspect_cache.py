"""`bevcask inspect` from the outside: text, JSON, a sample, a picture, and mistakes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bevcask.cache import FrameTable, open_cache
from bevcask.cli import app
from bevcask.compose import compose
from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.errors import ConfigError, TokenNotCachedError
from bevcask.stages import inspect_cache
from bevcask.verbs import InspectConfig
from bevcask.viz.sample import open_frames
from viz.cached import build


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(tmp_path_factory.mktemp("inspect") / "c.zarr").url


def cache_of(root: Path, version: str, url: Path, limit: int | None = None) -> Any:
    """Build a cache whose rows are the frames of a dataset."""
    dataset = {"root": str(root), "version": version, "split": "all", "limit": limit}
    frames = Frames.select(DatasetConfig.model_validate(dataset))
    table = FrameTable(frames.tokens, frames.scenes, frames.timestamps, frames.lidar_to_global)
    return build(url, table, dataset)


def invoke(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["inspect", *words])
    return result.exit_code, result.stdout, result.stderr


def test_json_holds_everything(url: str) -> None:
    code, out, _ = invoke(url, "--json", "sample=first")
    result = json.loads(out)
    assert code == 0
    assert result["sealed"]
    assert {row["name"] for row in result["targets"]} == set(result["statistics"])
    assert result["sample"]["token"] == f"{0xABC0:032x}"
    assert result["sample"]["targets"]["head.boxes"]["count"] == 2
    assert result["picture"] is None


def test_text_is_for_people(url: str) -> None:
    code, out, _ = invoke(url)
    assert code == 0
    assert "bev.neck" in out
    assert "coverage: 2 of 2 scenes complete" in out


def test_sample_is_picked_by_token(url: str) -> None:
    token = f"{0xABC3:032x}"
    result = inspect_cache.run(compose(InspectConfig, [f"cache={url}", f"sample={token}"]))
    assert result["sample"]["token"] == token
    assert result["sample"]["scene"] == "scene-1"
    assert result["sample"]["targets"]["query.last"]["count"] == 4


def test_first_sample_of_a_half_written_cache_is_a_committed_one(tmp_path: Path) -> None:
    cache = build(tmp_path / "part.zarr", num_shards=1)
    result = inspect_cache.run(compose(InspectConfig, [f"cache={cache.url}", "sample=first"]))
    assert result["sample"]["scene"] == "scene-0"
    assert not result["sealed"]


def test_unknown_token_is_refused(url: str) -> None:
    with pytest.raises(TokenNotCachedError, match="not among the 5 frames"):
        inspect_cache.run(compose(InspectConfig, [f"cache={url}", "sample=abc"]))


def test_missing_dataset_says_how_to_give_one(url: str, tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    code, out, err = invoke(url, f"picture={picture}")
    assert code == 2
    assert out == ""
    assert "gone/v1.0-synthetic (recorded in the cache) is not there" in err
    assert "dataset.root=FOLDER" in err
    code, _, err = invoke(url, f"picture={picture}", "dataset.root=nowhere")
    assert code == 2
    assert "nowhere/v1.0-synthetic (given) is not there" in err
    assert not picture.exists()


def test_no_url_and_no_cache_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inspect needs a cache URL"):
        inspect_cache.run(compose(InspectConfig, []))
    code, _, err = invoke(str(tmp_path / "nothing.zarr"))
    assert code == 2
    assert "no cache at" in err


def check_picture(path: Path) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (1460, 1860, 3)
    cameras = pixels[150:750]
    assert len(np.unique(cameras.reshape(-1, 3), axis=0)) > 5000  # photographs, not blank panels


@pytest.mark.slow
def test_picture_of_the_synthetic_world(tiny_world: Path, tmp_path: Path) -> None:
    cache = cache_of(tiny_world, "v1.0-synthetic", tmp_path / "c.zarr")
    picture = tmp_path / "pictures" / "p.png"
    result = inspect_cache.run(compose(InspectConfig, [f"cache={cache.url}", f"picture={picture}"]))
    assert result["picture"] == str(picture)
    check_picture(picture)


def test_a_moved_dataset_is_given_by_hand(tiny_world: Path, url: str) -> None:
    config = compose(InspectConfig, [f"dataset.root={tiny_world}"])
    frames = open_frames(open_cache(url), config.dataset)
    assert frames.root == tiny_world
    assert frames.version == "v1.0-synthetic"


@pytest.mark.slow
@pytest.mark.nuscenes
def test_picture_of_real_keyframes(nuscenes_root: Path, tmp_path: Path) -> None:
    cache = cache_of(nuscenes_root, "v1.0-mini", tmp_path / "c.zarr", limit=2)
    words = [f"cache={cache.url}", f"picture={tmp_path / 'p.png'}"]
    result = inspect_cache.run(compose(InspectConfig, words))
    assert result["sample"]["scene"] == cache.frames.scenes[0]
    check_picture(tmp_path / "p.png")

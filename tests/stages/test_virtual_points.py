"""A teacher that sees virtual points: cached as online, and refused once they change."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bevcask.cache.reader import open_cache
from bevcask.compose import words_for
from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.stages import teacher_extract
from bevcask.verbs import ExtractConfig, VerifyConfig
from data.virtual_files import write_virtual
from training.test_cached_equals_online import FLIPS, ONLINE, configure, gap, gradients

Call = Callable[..., tuple[int, str, str]]
MVP = ["teacher.detector.point_channels=17", "store.codec=float32"]
TURNS = ["augment.bev_rotation=0.3", "augment.bev_scale=[0.95,1.05]", *FLIPS]


@pytest.fixture(scope="module")
def folder(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="all")
    return write_virtual(tmp_path_factory.mktemp("virtual") / "points", Frames.select(dataset))


@pytest.fixture(scope="module")
def url(folder: Path, tiny_world: Path) -> str:
    url = str(folder.parent / "cache.zarr")
    words = [*MVP, f"dataset.virtual_points={folder}", f"cache={url}"]
    teacher_extract.run(configure(tiny_world, *words, verb=ExtractConfig))
    return url


@pytest.mark.parametrize("augment", [[], TURNS], ids=["clean", "turns"])
def test_cached_equals_online(augment: list[str], url: str, folder: Path, tiny_world: Path) -> None:
    words = [*MVP, f"dataset.virtual_points={folder}", *augment]
    cached = gradients(configure(tiny_world, *words, f"cache={url}"))
    online = gradients(configure(tiny_world, *words, *ONLINE))
    assert any(name.startswith("distillbev/") for name in cached[0])
    assert gap(cached[0], online[0]) < 1e-6
    assert gap(cached[1], online[1]) < 1e-6


def test_the_teacher_looks_at_them(url: str, folder: Path, tiny_world: Path) -> None:
    other = shutil.copytree(folder, folder.parent / "other")
    for path in Path(other).iterdir():
        np.save(path, np.load(path)[:0])
    online = [*MVP, *ONLINE, f"dataset.virtual_points={other}"]
    cached = gradients(configure(tiny_world, *MVP, f"cache={url}"), "distillbev/")
    changed = gradients(configure(tiny_world, *online), "distillbev/")
    assert gap(cached[0], changed[0]) > 1e-4  # a hundred times what equality allows


def test_a_teacher_in_the_loop_sees_them_augmented(folder: Path, tiny_world: Path) -> None:
    words = [*MVP, *TURNS, f"dataset.virtual_points={folder}", "targets=online"]
    terms, _ = gradients(configure(tiny_world, *words, "online.input=augmented"))
    assert all(bool(torch.isfinite(term)) for term in terms.values())


def words_of(url: str, world: Path, folder: Path | None) -> list[str]:
    shared = [
        "teacher=centerpoint_tiny",
        "dataset=synthetic",
        f"dataset.root={world}",
        "dataset.split=all",
        "loader.num_workers=0",
        "device=cpu",
    ]
    named = [] if folder is None else [f"dataset.virtual_points={folder}"]
    return [url, "teacher.detector.point_channels=17", *shared, *named]


@pytest.fixture
def own(tiny_world: Path, folder: Path, call: Call, tmp_path: Path) -> tuple[str, Path]:
    """A sealed cache and the folder it was made from."""
    mine = Path(shutil.copytree(folder, tmp_path / "mine"))
    url = str(tmp_path / "own.zarr")
    code, _, err = call("teacher-extract", *words_of(url, tiny_world, mine))
    assert code == 0, err
    return url, mine


def test_other_virtual_points_are_refused(
    own: tuple[str, Path], tiny_world: Path, call: Call, tmp_path: Path
) -> None:
    url, folder = own
    assert "virtual_points" in open_cache(url).fingerprint["dataset"]
    folder = folder.rename(tmp_path / "moved")
    again = words_of(url, tiny_world, folder)
    run = f"run={tmp_path / 'run'}"
    distil = ["student=bevdepth_tiny", "method=distillbev", run, "dry_run=true"]
    for verb, more in (("teacher-extract", []), ("student-distill", distil)):
        code, _, err = call(verb, *again, *more)
        assert code == 0, err
    path = sorted(folder.iterdir())[0]
    points = np.load(path)
    points[0, 2] += 0.5
    np.save(path, points)
    for verb, more in (("teacher-extract", []), ("student-distill", distil)):
        code, _, err = call(verb, *again, *more)
        assert code == 2
        assert "dataset.virtual_points" in err.replace("\n", "")
    code, _, err = call("student-distill", *words_of(url, tiny_world, None), *distil)
    assert code == 0, err  # a student reads none


def test_the_teacher_can_be_asked_again(
    own: tuple[str, Path], tiny_world: Path, call: Call
) -> None:
    url, _ = own
    # the folder is the extraction's
    words = words_for(VerifyConfig, words_of(url, tiny_world, None))
    code, out, err = call("verify", *words, "resample=2", "check=meaning", "--json")
    assert code == 0, err + out


def test_a_teacher_that_does_not_look_says_so(
    folder: Path, tiny_world: Path, call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = words_of(str(tmp_path / "plain.zarr"), tiny_world, folder)
    call("teacher-extract", *words, "teacher.detector.point_channels=5", "dry_run=true")
    assert "this teacher sees real points only" in caplog.text
    caplog.clear()
    call("teacher-extract", *words, "dry_run=true")
    assert "real points only" not in caplog.text


def test_what_is_missing_is_said(
    folder: Path, tiny_world: Path, call: Call, tmp_path: Path
) -> None:
    url = str(tmp_path / "none.zarr")
    code, _, err = call("teacher-extract", *words_of(url, tiny_world, None))
    assert code == 2
    assert "Give dataset.virtual_points=FOLDER" in err.replace("\n", " ")
    less = Path(shutil.copytree(folder, tmp_path / "less"))
    gone = sorted(less.iterdir())[-1]
    gone.unlink()
    code, _, err = call("teacher-extract", *words_of(url, tiny_world, less))
    assert code == 2
    assert f"{gone}: missing virtual points" in err.replace("\n", "")
    assert not Path(url).exists()

"""A fusion teacher and a camera student, from frames to an exported student."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from bevcask.cache.reader import open_cache
from bevcask.compose import words_for
from bevcask.verbs import ExtractConfig

Call = Callable[..., tuple[int, str, str]]

IMAGES = ("augment.resize=[-0.02,0.04]", "augment.crop=true", "augment.image_flip=true")
TERMS = {"intra_modal", "cross_modal", "fusion", "quality", "box"}


def words(world: Path, half_extent: float = 25.6) -> list[str]:
    small = ("image_size_HW=[64,96]", "image_channels=16", "decoder_channels=[8,12,16]")
    return [
        "method=simdistill",
        "student=bevsimdet_tiny",
        *(f"student.detector.{size}" for size in small),
        f"student.detector.half_extent={half_extent}",
        "teacher=bevfusion_tiny",
        *(f"teacher.detector.{size}" for size in small),
        "teacher.detector.half_extent=25.6",
        "dataset=synthetic",
        f"dataset.root={world}",
        "dataset.split=synthetic_train",
        "loader.num_workers=0",
        "loader.batch_size=2",
        "trainer=tiny",
        "trainer.max_steps=2",
        "trainer.log_every=1",
        "device=cpu",
        "seed=3",
    ]


@pytest.fixture(scope="module")
def cache(tiny_world: Path, call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views of every frame."""
    url = tmp_path_factory.mktemp("fusion") / "cache.zarr"
    code, _, err = call(
        "teacher-extract",
        url,
        *words_for(ExtractConfig, words(tiny_world)),
        "store.views=2",
        *IMAGES,
    )
    assert code == 0, err
    return url


def test_what_is_stored_is_sound(cache: Path, tiny_world: Path, call: Call) -> None:
    opened = open_cache(str(cache))
    found = {name: (spec.codec, str(spec.region)) for name, spec in opened.specs.items()}
    assert found["bev.lidar"] == ("uint8", "gaussians")
    assert "bev.lidar.view1" not in found
    for view in (1, 2):
        assert found[f"bev.camera.view{view}"] == found[f"bev.fused.view{view}"] == ("uint8", "all")
        assert found[f"head.codes.view{view}"] == ("float32", "centres")
    codes = opened.read(opened.frames.tokens[0])["head.codes.view1"]
    assert codes.region is not None
    assert 0 < codes.region.sum() < 100
    code, out, err = call(
        "verify", cache, "check=meaning", "dataset=synthetic", f"dataset.root={tiny_world}"
    )
    assert code == 0, out + err


def test_a_student_learns_from_replayed_views(
    cache: Path, tiny_world: Path, call: Call, tmp_path: Path
) -> None:
    run, out = tmp_path / "run", tmp_path / "student.safetensors"
    moving = (*IMAGES, "augment.bev_flip_x=true", "augment.bev_rotation=0.3")
    code, _, err = call("student-distill", cache, *words(tiny_world), f"run={run}", *moving)
    assert code == 0, err
    with (run / "logs" / "csv" / "sitting_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert len(rows) == 2
    logged = {name.rpartition("/")[2] for name in rows[0] if name.startswith("train/simdistill/")}
    assert logged == TERMS
    assert all(float(rows[0][f"train/simdistill/{term}"]) > 0 for term in TERMS)
    code, _, err = call("export", f"run={run}", f"out={out}")
    assert code == 0, err
    with safe_open(out, "pt") as weights:
        assert not [name for name in weights.keys() if "widen" in name]  # noqa: SIM118


def test_another_grid_is_refused_once_for_all_maps(
    cache: Path, tiny_world: Path, call: Call, tmp_path: Path
) -> None:
    code, _, err = call(
        "student-distill", cache, *words(tiny_world, 51.2), f"run={tmp_path / 'run'}", *IMAGES
    )
    assert code == 2
    assert err.count("must have the same cells") == len(TERMS)

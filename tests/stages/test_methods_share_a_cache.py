"""A cache made for one method is used by another, in either order, and advice is one that works."""

import csv
import json
import math
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bevcask.cache.reader import open_cache
from bevcask.cache.union import open_caches
from bevcask.detectors.weights import read_weights
from training import test_two_teachers as two_teachers

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def extract_words(teacher_words: list[str]) -> list[str]:
    return [*teacher_words, "store.shard_rows=2"]


@pytest.fixture(scope="module")
def around_boxes(
    extract_words: list[str], call: Call, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What TiGDistill reads: the cells around boxes, and the points."""
    url = tmp_path_factory.mktemp("tig") / "tig.zarr"
    code, _, err = call("teacher-extract", url, *extract_words, "method=tigdistill")
    assert code == 0, err
    return url


def distil(call: Call, cache: str, world: Path, method: str) -> tuple[int, str, str]:
    return call(
        "student-distill",
        f"cache={cache}",
        "student=bevdepth_tiny",
        f"method={method}",
        "dataset=synthetic",
        f"dataset.root={world}",
        "dataset.split=synthetic_train",
        "dry_run=true",
    )


def test_the_command_that_is_advised_adds_what_is_missing(
    extract_words: list[str],
    tiny_world: Path,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = ["teacher-extract", str(tmp_path / "world.zarr"), *extract_words]
    monkeypatch.setattr(sys, "argv", ["bin/bevcask", *given, "part=1/1", "method=distillbev"])
    code, _, err = call(*given, "part=1/1", "method=distillbev")
    assert code == 0, err
    code, _, err = distil(call, given[1], tiny_world, "tigdistill")
    assert code == 2
    assert "bevcask" in err.splitlines()[-1], err
    program, *advised = shlex.split(err.strip().splitlines()[-1])
    assert program == "bevcask"
    assert advised == [*given, "method=tigdistill"]
    code, _, err = call(*advised)
    assert code == 0, err
    assert "lidar.pixels" in open_cache(given[1]).specs


def test_a_whole_map_serves_a_method_that_reads_a_part_of_it(
    cached_world: Path, extract_words: list[str], tiny_world: Path, call: Call, tmp_path: Path
) -> None:
    url = Path(shutil.copytree(cached_world, tmp_path / "world.zarr"))
    before = {p: p.read_bytes() for p in url.glob("targets/*/*/c*")}
    code, _, err = call("teacher-extract", url, *extract_words, "method=tigdistill")
    assert code == 0, err
    cache = open_cache(str(url))
    assert cache.specs["bev.neck"].region.name == "all"
    assert "lidar.pixels" in cache.specs
    assert before == {p: p.read_bytes() for p in before}
    code, _, err = distil(call, str(url), tiny_world, "tigdistill")
    assert code == 0, err


def test_a_part_of_a_map_does_not_serve_a_method_that_reads_all(
    around_boxes: Path, extract_words: list[str], call: Call
) -> None:
    code, _, err = call("teacher-extract", around_boxes, *extract_words, "method=distillbev")
    assert code == 2
    assert "targets.bev.neck.region" in err
    assert "another URL" in err


def test_two_caches_of_one_teacher_are_read_where_they_hold_most(
    around_boxes: Path, cached_world: Path, tiny_world: Path, call: Call
) -> None:
    both = f"{around_boxes},{cached_world}"
    for method in ("distillbev", "tigdistill"):
        code, _, err = distil(call, both, tiny_world, method)
        assert code == 0, err
    assert open_caches(both).home("bev.neck").url == str(cached_world)
    assert open_caches(both).home("lidar.pixels").url == str(around_boxes)


def test_no_command_is_advised_where_none_helps(
    cached_world: Path, tiny_world: Path, call: Call
) -> None:
    code, _, err = distil(call, str(cached_world), tiny_world, "simdistill")
    assert code == 2
    assert "native/centerpoint) offers no bev.camera, bev.fused" in err
    assert "; these do: teacher=bevfusion_swint, bevfusion_swint_cell08, bevfusion_tiny:" in err
    assert "teacher-extract" not in err


def test_a_comma_in_the_name_of_a_cache_is_no_list(cached_world: Path, tmp_path: Path) -> None:
    url = shutil.copytree(cached_world, tmp_path / "a,b.zarr")
    assert [cache.url for cache in open_caches(str(url))] == [str(url)]


@pytest.mark.slow
def test_two_teachers_teach_side_by_side(
    cached_world: Path, tiny_world: Path, tmp_path: Path, call: Call
) -> None:
    other = tmp_path / "other.zarr"
    data = ["dataset=synthetic", f"dataset.root={tiny_world}"]
    code, _, err = call(
        "teacher-extract", other, "teacher=centerpoint_tiny", "seed=9", "method=tigdistill",
        *data, "dataset.split=all", "loader.num_workers=0",
    )  # fmt: skip
    assert code == 0, err
    code, out, err = call(
        "student-distill", f"cache=lidar={cached_world},other={other}", "student=bevdepth_tiny",
        "methods=distillbev,tigdistill", "method.distillbev.cache=lidar",
        "method.tigdistill.cache=other", "method.tigdistill.inner_depth=0",
        "method.distillbev.weight=0.5", *data, "dataset.split=synthetic_train",
        "trainer.max_steps=2", "trainer.log_every=1", "loader.batch_size=1", "loader.num_workers=0",
        f"run={tmp_path / 'run'}", "--json",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    assert {"lidar/bev.block1", "lidar/head.heatmap", "other/bev.neck"} <= set(result["targets"])
    (log,) = (tmp_path / "run" / "logs").rglob("metrics.csv")
    rows = list(csv.DictReader(log.read_text().splitlines()))
    terms = {key for key in rows[0] if key.startswith(("train/distillbev", "train/tigdistill"))}
    assert {key.split("/")[1] for key in terms} == {"distillbev", "tigdistill"}
    assert all(math.isfinite(float(rows[-1][key])) for key in terms)


@pytest.mark.slow
def test_a_lidar_and_a_camera_teacher_train_one_student(
    tiny_world: Path, tmp_path: Path, call: Call
) -> None:
    """From two caches as with both in the loop, to the weights that are exported."""
    data = [*two_teachers.SHARED, f"dataset.root={tiny_world}"]
    views = ["store.views=2", *two_teachers.IMAGES]
    levels = f"levels={two_teachers.LEVEL}"
    for url, teacher, sizes, words in (
        ("a.zarr", "centerpoint_tiny", two_teachers.LIDAR, ["method=distillbev"]),
        (
            "b.zarr", "bevdepth_tiny", two_teachers.CAMERA,
            ["method=focaldistiller", f"method.{levels}", "method.masked=0", *views],
        ),
    ):  # fmt: skip
        sized = [f"teacher.detector.{key}" for key in sizes]
        code, _, err = call(
            "teacher-extract", tmp_path / url, f"teacher={teacher}", *sized, *words, *data
        )
        assert code == 0, err
    trained = [
        *(word for word in data if not word.startswith("store")), "student=bevdepth_tiny",
        *(f"student.detector.{key}" for key in two_teachers.CAMERA),
        "methods=distillbev,focaldistiller", "method.distillbev.cache=lidar",
        "method.focaldistiller.cache=camera", f"method.focaldistiller.{levels}",
        "method.focaldistiller.masked=0", *two_teachers.IMAGES, *two_teachers.TURNS,
        "trainer=tiny", "trainer.max_steps=3", "trainer.warmup_steps=1", "trainer.log_every=1",
        "--json",
    ]  # fmt: skip
    caches = f"cache=lidar={tmp_path / 'a.zarr'},camera={tmp_path / 'b.zarr'}"
    online = [*two_teachers.BOTH, *two_teachers.ONLINE, "store.codec=float32"]
    weights = []
    for name, words in {"cached": [caches], "online": online}.items():
        code, out, err = call("student-distill", *trained, *words, f"run={tmp_path / name}")
        assert code == 0, err
        result = json.loads(out)
        assert result["targets"][0] == "camera/image.fpn0"
        assert result["step"] == 3
        weights.append(read_weights(Path(result["weights"])))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("", "methods=NAME method.NAME.cache=LABEL, where LABEL is one of a, b"),
        ("method.distillbev.cache=zz", "where LABEL is one of a, b"),
        ("method.distillbev.cache=a", "method=distillbev"),
    ],
)
def test_methods_and_labels_that_do_not_go_together_are_told_how_to(
    around_boxes: Path, tiny_world: Path, call: Call, tmp_path: Path, label: str, said: str
) -> None:
    other = tmp_path / "other.zarr"
    other.symlink_to(around_boxes)
    code, _, err = call(
        "student-distill", f"cache=a={around_boxes},b={other}", "student=bevdepth_tiny",
        "methods=distillbev", *([label] if label else []), "dataset=synthetic",
        f"dataset.root={tiny_world}", "dataset.split=synthetic_train", "dry_run=true",
    )  # fmt: skip
    assert code == 2
    assert said in " ".join(err.split())
    assert "method=several" not in err

import filecmp
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from bevcask.cache.quantize import dequantize
from bevcask.cache.reader import open_cache
from bevcask.cli import app
from bevcask.config import DatasetConfig, TeacherConfig
from bevcask.data.index.frames import Frames
from bevcask.data.samples import SampleReader, collate
from bevcask.errors import ConfigError
from bevcask.extraction import fill
from bevcask.groups import load_group
from bevcask.teachers import build_teacher
from command_words import last_of_each_key

TEACHER = ("teacher=centerpoint_tiny", "seed=3", "loader.num_workers=0", "loader.batch_size=2")


def words(world: Path, *more: str) -> list[str]:
    return [*TEACHER, "dataset=synthetic", f"dataset.root={world}", "dataset.split=all", *more]


def call(*arguments: str) -> tuple[int, str, str]:
    answer = CliRunner().invoke(app, last_of_each_key(*arguments))
    assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.exception
    return answer.exit_code, answer.stdout, answer.stderr


def same_but_provenance(one: Path, other: Path) -> list[str]:
    """Return what `diff -r` would report, the file that says who and when left out."""
    found: list[str] = []

    def walk(pair: "filecmp.dircmp[str]", prefix: str) -> None:
        found.extend(prefix + name for name in pair.left_only + pair.right_only)
        for name in pair.common_files:
            left, right = Path(pair.left) / name, Path(pair.right) / name
            if left.read_bytes() != right.read_bytes():
                found.append(prefix + name)
        for name, below in pair.subdirs.items():
            walk(below, f"{prefix}{name}/")

    walk(filecmp.dircmp(one, other), "")
    return [name for name in found if not name.startswith("provenance")]


@pytest.fixture(scope="module")
def extracted(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("caches") / "tiny.zarr"
    code, out, err = call(
        "teacher-extract",
        str(url),
        *words(tiny_world, "store.codec=float32", "store.shard_rows=1", "--json"),
    )
    assert code == 0, err
    assert json.loads(out)["frames"] == 6
    bar = next(line for line in err.splitlines() if line.startswith("extract 6 of 6"))
    size = sum(path.stat().st_size for path in url.rglob("*") if path.is_file())
    assert float(bar.split()[-3]) == pytest.approx(size / 1e6, rel=0.02), "not what was written"
    return url


def test_cache_holds_what_the_teacher_says(extracted: Path, tiny_world: Path) -> None:
    cache = open_cache(str(extracted))
    frames = Frames.select(
        DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="all")
    )
    teacher = build_teacher(TeacherConfig(**load_group("teacher", "centerpoint_tiny")), seed=3)
    teacher.load("cpu")
    reader = SampleReader(frames, teacher.inputs(), augment=None, seed=0)
    assert list(cache.frames.tokens) == list(frames.tokens)
    for first in (0, 1, 2, 3, 4, 5):
        token = frames.tokens[first]
        said = teacher(collate([reader.read(token)]), list(cache.specs))
        stored = cache.read(token)
        for name, spec in cache.specs.items():
            values = dequantize(torch.from_numpy(stored[name].values), None)
            expected = said[name][0]
            if spec.region.name == "confident":
                confident = expected.amax(0) > spec.region.threshold
                np.testing.assert_array_equal(stored[name].region, confident)
                expected = expected * confident
            assert torch.equal(values, expected), name


def test_same_command_again_changes_nothing(extracted: Path, tiny_world: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in extracted.rglob("*") if path.is_file()}
    code, _, err = call(
        "teacher-extract",
        str(extracted),
        *words(tiny_world, "store.codec=float32", "store.shard_rows=1"),
    )
    assert code == 0, err
    assert before == {p: p.stat().st_mtime_ns for p in extracted.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("num_cores", "own", "threads"),
    [
        (5, "loader.num_workers=0", 5),
        (5, "loader.num_workers=2", 3),
        (1, "loader.num_workers=2", 1),
        (5, "store.threads=7", 7),
    ],
)
def test_the_writer_takes_the_cores_that_the_loader_leaves(
    tiny_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_cores: int,
    own: str,
    threads: int,
) -> None:
    def queue(*arguments: object) -> None:
        raise ConfigError(f"threads: {arguments[-1]}")

    monkeypatch.setattr(fill, "cores", lambda: num_cores)
    monkeypatch.setattr(fill, "WriteQueue", queue)
    code, _, err = call("teacher-extract", str(tmp_path / "c.zarr"), *words(tiny_world, own))
    assert code == 2
    assert f"threads: {threads}" in err


def test_dry_run_touches_nothing(tiny_world: Path, tmp_path: Path) -> None:
    code, out, err = call(
        "teacher-extract", str(tmp_path / "x.zarr"), *words(tiny_world, "dry_run=true", "--json")
    )
    assert code == 0, err
    assert json.loads(out)["total_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


def test_head_branches_lie_beside_the_cache(extracted: Path) -> None:
    from bevcask.detectors.weights import read_weights

    head = read_weights(extracted.with_name("tiny.head.safetensors"))
    assert head
    assert all(name.startswith("head.tasks.") for name in head)


def test_the_catalog_keeps_a_cache_that_is_given_a_name(
    extracted: Path, tiny_world: Path, bevcask_home: Path
) -> None:
    from bevcask.catalog import load_catalog, resolve

    assert str(extracted) not in {entry.url for entry in load_catalog().caches.values()}
    own = words(tiny_world, "store.codec=float32", "store.shard_rows=1", "name=tiny")
    assert call("teacher-extract", str(extracted), *own)[0] == 0
    assert Path(resolve("cache", "catalog:tiny")) == extracted
    code, _, err = call("teacher-extract", str(extracted.with_name("other.zarr")), *own)
    assert code == 2
    assert "has a cache of that name already" in err


@pytest.mark.parametrize("store", ["file://{}", "memory://{}"])
def test_a_cache_in_any_store_has_its_head(store: str, tiny_world: Path, tmp_path: Path) -> None:
    from bevcask.cache.files import Files

    url = store.format(tmp_path / "tiny.zarr")
    code, out, err = call(
        "teacher-extract", url, *words(tiny_world, "method=none", "dataset.limit=1", "--json")
    )
    assert code == 0, err
    head = json.loads(out)["head"]
    assert head == store.format(tmp_path / "tiny.head.safetensors")
    assert Files(store.format(tmp_path)).size("tiny.head.safetensors")


@pytest.mark.slow  # killed parts of test_extract_together are the same in little
def test_killed_twenty_times_it_resumes_to_the_same_bytes(
    extracted: Path, tiny_world: Path, tmp_path: Path
) -> None:
    url = tmp_path / "killed.zarr"
    command = [
        sys.executable,
        "-m",
        "bevcask.cli",
        "teacher-extract",
        str(url),
        *words(tiny_world, "store.codec=float32", "store.shard_rows=1", "store.threads=3"),
    ]
    for round_ in range(20):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
        )
        deadline = time.monotonic() + 60
        committed = len(list(url.glob("commit/*/c.*"))) if url.exists() else 0
        while process.poll() is None and time.monotonic() < deadline:
            now = len(list(url.glob("commit/*/c.*"))) if url.exists() else 0
            if now > committed or (round_ % 2 and url.exists()):
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert same_but_provenance(extracted, url) == []
    assert open_cache(str(url)).id == open_cache(str(extracted)).id


def test_scenes_that_were_never_downloaded_are_said_before_anything_is_made(
    tiny_world: Path, tmp_path: Path
) -> None:
    world = Path(shutil.copytree(tiny_world, tmp_path / "world"))
    frames = Frames.select(DatasetConfig(root=str(world), version="v1.0-synthetic", split="all"))
    for token in frames.tokens[3:]:
        scan = frames.index["scan_path"][frames.scans(token, 1)[0]].decode()
        (world / scan).unlink()
    url = tmp_path / "c.zarr"
    for more in ([], ["dry_run=true"]):
        code, _, err = call("teacher-extract", str(url), *words(world, *more))
        assert code == 2
        assert f"1 of 2 scenes are whole: {frames.scenes[0]}." in err
        assert "on_missing=skip" in err
        assert not url.exists()
    code, out, err = call("plan", *words(world)[:1], *words(world)[4:], "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert (plan["scenes"], plan["scenes_here"]) == (2, 1)
    assert "1 of 2 scenes are whole" in plan["missing"]
    code, out, err = call("teacher-extract", str(url), *words(world, "on_missing=skip", "--json"))
    assert code == 0, err
    assert json.loads(out)["frames"] == 3
    assert open_cache(str(url)).frames.tokens == frames.tokens[:3]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("teacher.checkpoint={}/no.safetensors", "no.safetensors: no such checkpoint"),
        ("store.reuse={}/no.zarr", "no cache at"),
        ("dataset.root={}/no", "no: no such folder|no/v1.0-synthetic: no such folder"),
        ("dataset.infos={}/no.pkl", "dataset.trust_pickle=true"),
        ("repair={}/no.jsonl", "no.jsonl: cannot be read"),
    ],
)
def test_a_dry_run_looks_for_every_file(
    word: str, message: str, tiny_world: Path, tmp_path: Path
) -> None:
    given = words(tiny_world, word.format(tmp_path), "dry_run=true")
    code, _, err = call("teacher-extract", str(tmp_path / "c.zarr"), *given)
    assert code == 2
    assert re.search(message, err)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_repair_changes_nothing(extracted: Path, tiny_world: Path, tmp_path: Path) -> None:
    url = Path(shutil.copytree(extracted, tmp_path / "c.zarr"))
    repair = tmp_path / "mend.jsonl"
    repair.write_text('{"shard": 0, "target": "bev.neck", "token": null, "problem": "none"}\n')
    given = words(
        tiny_world, "store.codec=float32", "store.shard_rows=1", f"repair={repair}", "dry_run=true"
    )
    code, out, err = call("teacher-extract", str(url), *given, "--json")
    assert code == 0, err
    assert json.loads(out)["to_repair"] == 1
    assert filecmp.dircmp(url, extracted).diff_files == []
    assert same_but_provenance(url, extracted) == []


def test_a_precision_that_the_device_lacks_leaves_nothing_behind(
    teacher_words: list[str], call: Any, tmp_path: Path
) -> None:
    url = tmp_path / "cache.zarr"
    words = ["teacher-extract", str(url), *teacher_words, "device=cpu", "teacher.precision=tf32"]
    code, _, err = call(*words)
    assert code == 2
    assert "teacher.precision=tf32: cpu has none" in err
    assert not url.exists()

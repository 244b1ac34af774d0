"""`bevcask inspect html=` from the outside: a page of a real cache, and mistakes."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from bevcask.cache import open_cache
from bevcask.geometry import CAMERAS
from bevcask.viz.report import render
from viz.html.page_elements import elements

Call = Callable[..., tuple[int, str, str]]


def test_a_page_with_its_dataset(cached_world: Path, tmp_path: Path, call: Call) -> None:
    path = tmp_path / "r.html"
    code, out, err = call("inspect", cached_world, f"html={path}", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["html_frames"] == 6
    found = elements(path)
    data, frame, images = found["data"], found["frame-0"], found["images-0"]
    assert data["cameras"] == list(range(6))
    assert set(images) == set(CAMERAS)
    assert len(images["CAM_BACK"]["matrix"]) == 3
    assert {tile["role"] for tile in data["tiles"]} >= {"energy", "heatmap", "class", "component"}
    assert data["scores"]["coverage"].endswith("6 of 6 frames")
    row = data["frames"][0]
    assert row["truth"] == sum(box[8] > 0 for box in frame["truth"]) > 0
    assert row["misses"] == frame["found"].count(0)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render(result))
    assert f"report: {path}, " in capture.get()
    assert f"{len(result['warnings'])} warnings" in capture.get()


def test_a_dataset_that_is_named_must_be_there(
    cached_world: Path, tmp_path: Path, call: Call
) -> None:
    path = tmp_path / "r.html"
    code, _, err = call("inspect", cached_world, f"html={path}", "dataset.root=nowhere")
    assert code == 2
    assert "nowhere/v1.0-synthetic (given) is not there" in err
    assert not path.exists()
    code, _, err = call("inspect", cached_world, f"html={tmp_path / 'r.png'}")
    assert code == 2
    assert "expected a file that ends with .html" in err


def test_a_recorded_dataset_that_is_gone_is_told(tmp_path: Path, call: Call) -> None:
    from viz.cached import build

    cache = build(tmp_path / "c.zarr")
    code, _, err = call("inspect", cache.url, f"html={tmp_path / 'r.html'}")
    assert code == 0, err
    data = elements(tmp_path / "r.html")["data"]
    assert "gone/v1.0-synthetic (recorded in the cache) is not there" in data["lacks"][0]
    assert open_cache(cache.url).id == data["about"]["id"]


def test_a_run_that_cannot_be_shown_is_refused(
    cached_world: Path, tmp_path: Path, call: Call
) -> None:
    page, run = tmp_path / "r.html", tmp_path / "run"
    words = ("inspect", cached_world, f"run={run}")
    code, _, err = call(*words)
    assert (code, "say html=FILE too" in err) == (2, True)
    code, _, err = call(*words, f"html={page}")
    assert code == 2
    assert "expected the folder of a training that has ended" in err
    run.mkdir()
    (run / "student.safetensors").write_bytes(b"")
    (run / "metrics.json").write_text(json.dumps({"cache": "other.zarr", "cache_id": "ab" * 32}))
    code, _, err = call(*words, f"html={page}")
    assert code == 2
    assert "learned from cache other.zarr (abababababab, " in err
    assert not page.exists()
    result = {"cache": str(cached_world), "cache_id": "ab" * 32, "teacher": "another"}
    (run / "metrics.json").write_text(json.dumps(result))
    code, _, err = call(*words, f"html={page}")
    assert code == 2
    assert "teacher another), this one is" in err


def test_a_student_knows_its_cache_after_targets_were_added(
    cached_world: Path, tmp_path: Path, call: Call
) -> None:
    run, cache = tmp_path / "run", open_cache(str(cached_world))
    run.mkdir()
    (run / "student.safetensors").write_bytes(b"")
    teacher = cache.fingerprint["teacher"]
    told = f"{teacher['type']}, weights {teacher['weights'][:12]}"
    result = {"cache": str(cached_world), "cache_id": "ab" * 32, "teacher": told}
    (run / "metrics.json").write_text(json.dumps(result))
    code, _, err = call("inspect", cached_world, f"html={tmp_path / 'r.html'}", f"run={run}")
    assert code == 2
    assert "student.safetensors" in err  # the next thing that is looked at
    assert "learned from" not in err


@pytest.mark.slow
def test_a_student_stands_beside_its_teacher(
    cached_world: Path, tiny_world: Path, tmp_path: Path, call: Call
) -> None:
    page, run = tmp_path / "r.html", tmp_path / "run"
    code, _, err = call(
        "student-distill", cached_world, "student=bevdepth_tiny", "method=distillbev_tiny",
        "student.checkpoint=catalog:bevdepth_tiny_start", f"run={run}", "trainer=tiny",
        "trainer.max_steps=1", "loader.batch_size=1", "loader.num_workers=0", "dataset=synthetic",
        f"dataset.root={tiny_world}", "dataset.split=all",
    )  # fmt: skip
    assert code == 0, err
    words = ("inspect", cached_world, f"html={page}", f"run={run}")
    code, _, err = call(*words, "html_augment=flip x")
    assert code == 0, err
    found = elements(page)
    data = found["data"]
    assert data["shown_student"] == list(range(6))
    assert (data["student"]["name"], data["student"]["augmentation"]) == ("run", "flip x")
    assert 0 < data["student"]["read"] < 1
    assert all(0 < row["gap"] < 1.2 for row in data["frames"])
    tiles = {own["role"]: own for own in data["student_tiles"]}
    strip = Image.open(io.BytesIO(base64.b64decode(found["student-0"]["strip"]))).convert("L")
    cells = {
        role: np.asarray(strip, np.float64)[:, own["x"] : own["x"] + own["num_x"]]
        for role, own in tiles.items()
    }
    apart = np.abs(cells["energy"] - cells["moved"]).mean()
    assert np.abs(cells["energy"] - cells["aligned"]).mean() < 0.8 * apart
    assert all(len(box) == 9 for box in found["student-0"]["boxes"])

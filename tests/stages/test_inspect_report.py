"""`bevcask inspect html=` from the outside: a page of a real cache, and mistakes."""

import json
from collections.abc import Callable
from pathlib import Path

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
    assert row["truth"] == sum(box[10] > 0 for box in frame["truth"]) > 0
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

"""The report says what the cache says, for machines and for people."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bevcask.cache import Cache
from bevcask.viz.report import describe, render
from bevcask.viz.statistics import statistics
from viz.cached import build, frame_table


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return build(tmp_path_factory.mktemp("report") / "c.zarr")


def text_of(result: dict[str, Any]) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(render(result))
    return capture.get()


def test_description_is_plain_json(cache: Cache) -> None:
    result = describe(cache) | {"statistics": statistics(cache)}
    assert json.loads(json.dumps(result)) == result


def test_targets_carry_sizes(cache: Cache) -> None:
    rows = {row["name"]: row for row in describe(cache)["targets"]}
    neck = rows["bev.neck"]
    assert (neck["kind"], neck["shape"], neck["dtype"]) == ("dense_bev", [4, 32, 32], "float32")
    assert (neck["region"], neck["alignment"]) == ("all", "exact")
    assert neck["raw_bytes"] == 5 * 4 * 32 * 32 * 4
    assert rows["head.heatmap"]["raw_bytes"] == 5 * 10 * 32 * 32 * 4
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["raw_bytes"] / row["stored_bytes"])


def test_stored_bytes_are_those_on_disk(cache: Cache) -> None:
    for row in describe(cache)["targets"]:
        top = {"box_set": "boxes", "query_set": "queries"}.get(row["kind"], "targets")
        folder = Path(cache.url) / top / row["name"]
        arrays = [folder / name for name in ("values", "scale", "region", "count")]
        files = [file for array in arrays for file in array.rglob("c*") if file.is_file()]
        assert row["stored_bytes"] == sum(file.stat().st_size for file in files) > 0


def test_unsealed_cache_counts_committed_frames_only(tmp_path: Path) -> None:
    result = describe(build(tmp_path / "part.zarr", num_shards=1))
    assert not result["sealed"]
    assert (result["committed_frames"], result["frames"]) == (2, 5)
    assert result["coverage"] == [
        {"scene": "scene-0", "committed": 2, "frames": 3},
        {"scene": "scene-1", "committed": 0, "frames": 2},
    ]
    text = text_of(result)
    assert "not sealed: 2 of 5 frames" in text
    assert "0 of 2 scenes complete" in text
    assert "67%" in text


def test_an_empty_cache_renders(tmp_path: Path) -> None:
    cache = build(tmp_path / "none.zarr", num_shards=0)
    text = text_of(describe(cache) | {"statistics": statistics(cache)})
    assert "not sealed: 0 of 5 frames" in text


def test_text_names_who_made_it(cache: Cache) -> None:
    text = text_of(describe(cache) | {"statistics": statistics(cache)})
    for expected in (
        "sealed",
        cache.id,
        "native/centerpoint, checkpoint random, seed 3",
        "ab" * 32,
        "bevcask teacher-extract x.zarr",
        "abc1234",
        "workbench",
        "v1.0-synthetic in gone, split all",
        "1 of 4: 2",
        "20 boxes in 5 frames",
    ):
        assert expected in text


def test_many_scenes_are_cut_but_partial_ones_shown(tmp_path: Path) -> None:
    cache = build(tmp_path / "many.zarr", frame_table((1,) * 20), num_shards=18)
    text = text_of(describe(cache))
    assert "scene-18" in text
    assert "scene-19" in text
    assert "and 8 more" in text

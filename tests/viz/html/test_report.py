"""The page holds what the cache says, in elements that a browser reads."""

import re
from pathlib import Path

import numpy as np
import pytest

from bevcask.cache import Cache
from bevcask.cache.encoded import Encoded
from bevcask.evaluation.readings import DECLARED, decide
from bevcask.viz.html import notices
from bevcask.viz.html.collect import change, codec_error, extremes, line, merge, spread, thinned
from bevcask.viz.html.pages import SCRIPTS
from bevcask.viz.html.report import Asked, write_report
from viz.cached import DEAD_CHANNEL, build, frame_table
from viz.html.page_elements import elements

BUDGET = 20_000_000


def asked(cache: Cache, limit: int = 1000, budget: int = BUDGET) -> Asked:
    return Asked(cache.url, None, ["the dataset <is> not there"], limit, budget)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return build(tmp_path_factory.mktemp("html") / "</script><b>.zarr")


def test_without_a_dataset_the_page_shows_what_the_cache_holds(
    cache: Cache, tmp_path: Path
) -> None:
    path = tmp_path / "r.html"
    result = write_report(asked(cache), path)
    found = elements(path)
    data = found["data"]
    assert [row["token"] for row in data["frames"]] == list(cache.frames.tokens)
    assert result["html_bytes"] == path.stat().st_size
    assert data["lacks"] == ["the dataset <is> not there"]
    assert data["about"]["cache"].endswith("</script><b>.zarr")
    dead = [own for own in data["warnings"] if own["kind"] == "dead channels"]
    assert [own["where"] for own in dead] == [f"bev.neck, channels {DEAD_CHANNEL}"]
    assert result["warnings"] == data["warnings"]
    assert data["cameras"] == []
    assert data["colours_of"] is None  # four channels have no six components
    frame = found["frame-0"]
    assert len(frame["teacher"]) == 1  # of scores 0.9 and 0.1
    assert frame["truth"] is frame["points"] is None
    assert not list(tmp_path.glob("*.partial"))
    text = path.read_text()
    assert "{{" not in text
    assert not re.search(r"(src|href)=[\"']?https?:", text)


def test_of_many_frames_evenly_spaced_ones_are_shown(tmp_path: Path) -> None:
    cache = build(tmp_path / "many.zarr", frame_table((4, 4)), num_shards=3)
    write_report(asked(cache, limit=3), tmp_path / "r.html")
    data = elements(tmp_path / "r.html")["data"]
    shown = [list(cache.frames.tokens).index(row["token"]) for row in data["frames"]]
    assert shown == [0, 2, 5]
    kinds = ["not sealed", "random weights", "dead channels"]
    assert [own["kind"] for own in data["warnings"]] == kinds
    assert spread(["a"], 5) == ["a"]
    assert spread([], 5) == []


def test_rasters_shrink_before_a_page_outgrows_its_budget(cache: Cache, tmp_path: Path) -> None:
    sizes = {}
    for budget in (BUDGET, 150_000):
        sizes[budget] = write_report(asked(cache, budget=budget), tmp_path / "r.html")["html_bytes"]
    assert sizes[150_000] <= sizes[BUDGET]


def test_a_reading_that_is_surely_wrong_is_a_warning_where_others_fit_alike() -> None:
    errors = {DECLARED: np.ones(20), "mirrored x": np.zeros(20), "mirrored y": np.zeros(20)}
    found = decide("bev.neck", "axes", errors)
    [own] = notices.of_meaning([found])
    assert (own.severity, own.kind) == ("warning", "axes")
    assert "worse than mirrored x or mirrored y" in own.what


def test_a_frame_may_stand_in_a_script() -> None:
    assert line({"a": "</script><!--"}) == b'{"a":"\\u003c/script>\\u003c!--"}\n'


def test_change_is_of_cells_that_both_frames_store() -> None:
    values = np.ones((2, 2, 3), np.float32)
    region = np.array([[True, False, True], [False, False, False]])
    other = values.copy()
    other[:, 0, 1] = 5
    assert list(change(Encoded(values), Encoded(values))) == [0.0]
    assert next(change(Encoded(values), Encoded(other))) > 0.5
    assert list(change(Encoded(values, region=region), Encoded(other, region=region))) == [0.0]
    assert list(change(Encoded(values, region=region), Encoded(values, region=~region))) == []


def test_extremes_find_dead_channels_and_numbers_that_are_none() -> None:
    values = np.array([[[0, 2], [4, 6]], [[3, 3], [3, 3]]], np.uint8)
    whole = {"a": extremes(Encoded(values, np.array([0.5, 1], np.float32)))}
    assert whole["a"].tolist() == [[0, 3], [3, 3]]
    merge(whole, {"a": np.array([[1, 3], [9, 3]], np.float32)})
    assert whole["a"].tolist() == [[0, 3], [9, 3]]
    assert [own.where for own in notices.of_extremes(whole)] == ["a, channels 1"]
    merge(whole, {"a": np.array([[np.nan, 3], [np.nan, 3]], np.float32)})
    assert [own.kind for own in notices.of_extremes(whole)] == ["values", "dead channels"]


def test_large_maps_are_compared_at_every_fourth_cell() -> None:
    values = np.random.default_rng(0).normal(size=(2, 32, 64)).astype(np.float32)
    few = thinned(Encoded(values, region=np.ones((32, 64), bool)))
    assert few.values.shape == (2, 8, 16)
    assert few.region is not None
    assert few.region.shape == (8, 16)
    small = Encoded(values[:, :16])
    assert thinned(small) is small
    assert next(change(Encoded(values), Encoded(-values))) > 1


def test_codec_error_is_that_of_even_rounding() -> None:
    exact = np.random.default_rng(0).normal(size=(1, 100, 100)).astype(np.float32)
    scale = np.array([0.05], np.float32)
    stored = Encoded(np.round(exact / 0.05).astype(np.int8), scale)
    measured = np.sqrt(np.square(stored.floats() - exact).mean() / np.square(exact).mean())
    assert codec_error({"a": stored, "b": Encoded(exact)}) == pytest.approx(measured, rel=0.05)


def test_scripts_are_there_and_short() -> None:
    folder = Path(__file__).parents[3] / "pipeline/bevcask/viz/html/page"
    assert {path.name for path in folder.glob("*.js")} >= set(SCRIPTS)
    for path in folder.iterdir():
        assert len(path.read_text().splitlines()) <= 400, path

"""A teacher that remembers its scene: parts keep scenes whole, a resumed run begins with them."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.cache.reader import open_cache
from bevcask.compose import compose
from bevcask.config import Config
from bevcask.detectors.base import Batch, Inputs
from bevcask.errors import CacheIdentityError, DataError
from bevcask.extraction import fill
from bevcask.stages import teacher_extract
from bevcask.targets.spec import TapInfo
from bevcask.teachers.base import Teacher
from bevcask.verbs import ExtractConfig
from bevcask.viz.report import describe
from cache.test_writer import different_files
from ending import Killed


class Counting(Teacher):
    """Says of each frame how many of its scene it was shown; remembers that number alone."""

    def __init__(self) -> None:
        super().__init__(Config(), 0)
        self.seen: list[str] = []

    def taps(self) -> Mapping[str, TapInfo]:
        return {"head.boxes": TapInfo("head.boxes", "box_set", (1, 11))}

    def load(self, device: torch.device | str) -> None:
        pass

    def fingerprint(self) -> dict[str, Any]:
        return {"type": "counting", "weights": "none"}

    def inputs(self) -> Inputs:
        return Inputs(history=3, memory=True)

    def __call__(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        assert not batch.history
        old = torch.zeros(len(batch.tokens)) if batch.memory is None else batch.memory["shown"]
        boxes = torch.zeros(len(batch.tokens), 1, 11)
        boxes[:, 0, 0] = old + 1  # metres
        boxes[:, 0, 3:6] = 1
        self.seen += batch.tokens
        count = torch.ones(len(boxes), dtype=torch.int64)
        return {"head.boxes": boxes, "head.boxes.count": count, "memory/shown": old + 1}


class Looking(Counting):
    """Says of each image how bright it is, whatever it remembers."""

    def taps(self) -> Mapping[str, TapInfo]:
        shape = (6, 1, 1, 1)
        bright = TapInfo("image.level0", "image_feature", shape, depends_on_images=True)
        return {**super().taps(), bright.name: bright}

    def inputs(self) -> Inputs:
        return replace(super().inputs(), image_size_HW=(28, 50))

    def __call__(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        bright_BV = batch.normalised().mean((2, 3, 4))
        return super().__call__(batch, names) | {"image.level0": bright_BV[..., None, None, None]}


@pytest.fixture
def extract(tiny_world: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(
        url: Path, *words: str, kind: type[Counting] = Counting
    ) -> tuple[dict[str, Any], list[str]]:
        data = ["dataset=synthetic", f"dataset.root={tiny_world}", "dataset.split=all"]
        fixed = ["method=none", "store.shard_rows=1", "loader.num_workers=0"]
        config = compose(ExtractConfig, [f"cache={url}", *data, *fixed, *words])
        teacher = kind()
        monkeypatch.setattr(teacher_extract, "build_teacher", lambda *_: teacher)
        return teacher_extract.run(config), teacher.seen

    return run


def counts(url: Path) -> list[float]:
    cache = open_cache(str(url))
    return [float(cache.read(t)["head.boxes"].values[0, 0]) for t in cache.frames.tokens]


def test_a_resumed_scene_begins_with_its_first_frame(extract: Any, tmp_path: Path) -> None:
    whole, url = tmp_path / "whole.zarr", tmp_path / "resumed.zarr"
    extract(whole)
    expected = counts(whole)
    assert max(expected) > 1
    extract(url)
    cache = open_cache(str(url))
    lost = expected.index(max(expected))  # the last frame of the first of the longest scenes
    frames = cache.frames
    assert expected == [1.0, 2.0, 3.0] * 2
    unseal(url, lost)
    before = {p: p.stat().st_mtime_ns for p in url.glob("boxes/head.boxes/values/c.*")}
    _, seen = extract(url, "loader.batch_size=1")
    scene = frames.scenes[lost]
    assert seen == [t for t, own in zip(frames.tokens, frames.scenes, strict=True) if own == scene]
    after = {p: p.stat().st_mtime_ns for p in url.glob("boxes/head.boxes/values/c.*")}
    assert {p for p in after if after[p] != before.get(p)} == {
        url / f"boxes/head.boxes/values/c.{lost}.0.0"
    }
    assert different_files(whole, url) == []


def test_a_scene_that_was_killed_is_the_same_in_the_end(
    extract: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, url = tmp_path / "whole.zarr", tmp_path / "killed.zarr"
    extract(whole)
    asked = Counting.__call__

    def until_the_fifth(self: Counting, batch: Batch, names: Collection[str]) -> Any:
        if len(self.seen) == 4:
            raise Killed
        return asked(self, batch, names)

    with monkeypatch.context() as patch:
        patch.setattr(Counting, "__call__", until_the_fifth)
        with pytest.raises(Killed):
            extract(url, "loader.batch_size=1")
    left = open_cache(str(url), allow_unsealed=True)
    assert 0 < len(left.committed) < 6
    _, seen = extract(url, "loader.batch_size=1")
    assert seen[-3:] == left.frames.tokens[3:]  # the second scene from its first frame
    assert different_files(whole, url) == []


@pytest.mark.parametrize("width", [1, 2])
def test_workers_are_given_whole_scenes(
    extract: Any, scheduler: str, tmp_path: Path, width: int
) -> None:
    whole, url = tmp_path / "whole.zarr", tmp_path / "dask.zarr"
    extract(whole)
    words = [f"loader.batch_size={width}", "engine=dask", f"scheduler={scheduler}"]
    _, seen = extract(url, *words)
    assert sorted(seen) == sorted(open_cache(str(url)).frames.tokens)  # each once
    assert counts(url) == [1.0, 2.0, 3.0] * 2
    assert different_files(whole, url) == []


def test_frames_out_of_order_are_refused(
    extract: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_order = fill.steps_of
    monkeypatch.setattr(fill, "steps_of", lambda *given: in_order(*given)[::-1])
    with pytest.raises(DataError, match="which it was not shown just before"):
        extract(tmp_path / "shuffled.zarr", "loader.batch_size=1")


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2])
def test_lanes_leave_no_trace(extract: Any, tmp_path: Path, width: int, rows: int) -> None:
    whole, url = tmp_path / "whole.zarr", tmp_path / "lanes.zarr"
    for place, lanes in ((whole, 1), (url, width)):
        _, seen = extract(place, f"loader.batch_size={lanes}", f"store.shard_rows={rows}")
        assert len(seen) == len(set(seen)) == 6
    assert different_files(whole, url) == []
    assert counts(url) == [1.0, 2.0, 3.0] * 2


def test_each_frame_is_shown_as_it_is_and_then_in_its_views(
    extract: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory goes on with what the clean frames said; killed among views it ends the same."""
    whole, lanes, killed = (tmp_path / f"{name}.zarr" for name in ("whole", "lanes", "killed"))
    words = ["method=harmodistill_streampetr", "store.views=2", "augment.photometric=true"]
    for url, width in ((whole, 1), (lanes, 2)):
        _, seen = extract(url, *words, f"loader.batch_size={width}", kind=Looking)
        assert len(seen) == 3 * 6
    assert seen[:6] == 3 * seen[:2]
    assert counts(whole) == [1.0, 2.0, 3.0] * 2
    bright = {"image.level0.view1", "image.level0.view2", "image_transform.view1"}
    assert bright | {"head.boxes"} <= open_cache(str(whole)).specs.keys()
    assert different_files(whole, lanes) == []
    asked = Looking.__call__

    def until_the_second_view(self: Looking, batch: Batch, names: Collection[str]) -> Any:
        if len(self.seen) == 5:
            raise Killed
        return asked(self, batch, names)

    with monkeypatch.context() as patch:
        patch.setattr(Looking, "__call__", until_the_second_view)
        with pytest.raises(Killed):
            extract(killed, *words, "loader.batch_size=1", kind=Looking)
    left = open_cache(str(killed), allow_unsealed=True)
    assert len(left.committed) == 1
    _, seen = extract(killed, *words, "loader.batch_size=1", kind=Looking)
    assert len(seen) == 1 + 3 * 5  # the first frame again, to remember it
    assert different_files(whole, killed) == []


def unseal(url: Path, shard: int) -> None:
    """Take a shard's commit away, as if the run had been killed before it."""
    from bevcask.cache import seal

    cache = open_cache(str(url))
    chunks = cache.commit.chunks()
    del chunks[shard]
    seal.unseal(cache, chunks)


class Halving(Counting):
    """Begins anew at half scenes."""

    parts = 2


@pytest.mark.parametrize("rows", [1, 3])
def test_half_scenes_differ_behind_the_half_alone(extract: Any, tmp_path: Path, rows: int) -> None:
    """Also where a shard holds both halves, or the second one alone is made again."""
    url, words = tmp_path / "halves.zarr", (f"store.shard_rows={rows}",)
    extract(url, *words, kind=Halving)
    assert counts(url) == [1.0, 2.0, 1.0] * 2
    cache = open_cache(str(url))
    assert cache.specs["head.boxes"].tap.context == "scene in 2 parts"
    assert cache.fingerprint["memory"] == {"policy": "scene", "parts": 2}
    assert describe(cache)["targets"][0]["context"] == "scene in 2 parts"
    with pytest.raises(CacheIdentityError, match=r"memory\.parts"):
        extract(url, *words)
    short = tmp_path / "short.zarr"
    extract(short, *words, "dataset.limit=2", kind=Halving)
    assert counts(short) == [1.0, 2.0], "of the scene, not of what is selected of it"
    if rows == 1:
        unseal(url, 5)
        _, seen = extract(url, *words, kind=Halving)
        assert seen == cache.frames.tokens[5:]


def test_parts_never_cut_a_scene(extract: Any, tmp_path: Path) -> None:
    whole, url = tmp_path / "whole.zarr", tmp_path / "parts.zarr"
    extract(whole)
    seen = [extract(url, f"part={i}/4", "loader.batch_size=1")[1] for i in (4, 2, 3, 1)]
    frames = open_cache(str(whole)).frames
    scenes = dict(zip(frames.tokens, frames.scenes, strict=True))
    of_part = [{scenes[token] for token in tokens} for tokens in seen]
    assert sum(map(len, of_part)) == len(set(scenes.values()))
    assert different_files(whole, url) == []

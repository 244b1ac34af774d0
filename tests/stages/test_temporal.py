"""A teacher that remembers its scene: parts keep scenes whole, a resumed run begins with them."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from bevcask.cache.reader import open_cache
from bevcask.compose import compose
from bevcask.data.index.frames import Frames
from bevcask.detectors.base import Batch, Inputs
from bevcask.stages import teacher_extract
from bevcask.targets.spec import TapInfo
from bevcask.teachers.base import Teacher
from bevcask.verbs import ExtractConfig
from cache.test_writer import different_files


class Counting(Teacher):
    """Says of each frame how many of its scene it has seen before; starts anew with each scene."""

    temporal: Literal["none", "scene"] = "scene"

    def __init__(self, frames: Frames) -> None:
        self._scene = dict(zip(frames.tokens, frames.scenes, strict=True))
        self._last, self._count = "", 0
        self.seen: list[str] = []

    def taps(self) -> Mapping[str, TapInfo]:
        return {"head.boxes": TapInfo("head.boxes", "box_set", (1, 11))}

    def load(self, device: torch.device | str) -> None:
        pass

    def fingerprint(self) -> dict[str, Any]:
        return {"type": "counting", "weights": "none"}

    def inputs(self) -> Inputs:
        return Inputs(None, 1, depth=False)

    def __call__(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        boxes = torch.zeros(len(batch.tokens), 1, 11)
        for place, token in enumerate(batch.tokens):
            self._count = self._count + 1 if self._scene[token] == self._last else 1
            self._last = self._scene[token]
            boxes[place, 0, 0] = self._count  # metres: how many frames it has seen
            boxes[place, 0, 3:6] = 1
            self.seen.append(token)
        return {"head.boxes": boxes, "head.boxes.count": torch.ones(len(boxes), dtype=torch.int64)}


@pytest.fixture
def extract(tiny_world: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(url: Path, *words: str) -> tuple[dict[str, Any], list[str]]:
        data = ["dataset=synthetic", f"dataset.root={tiny_world}", "dataset.split=all"]
        fixed = ["method=none", "store.shard_rows=1", "loader.num_workers=0"]
        config = compose(ExtractConfig, [f"cache={url}", *data, *fixed, *words])
        teacher = Counting(Frames.select(config.dataset))
        monkeypatch.setattr(teacher_extract, "build_teacher", lambda *_: teacher)
        return teacher_extract.run(config), teacher.seen

    return run


def counts(url: Path) -> list[float]:
    cache = open_cache(str(url))
    return [float(cache.read(t)["head.boxes"].values[0, 0]) for t in cache.frames.tokens]


def test_a_resumed_scene_begins_with_its_first_frame(extract: Any, tmp_path: Path) -> None:
    whole, url = tmp_path / "whole.zarr", tmp_path / "resumed.zarr"
    _, order = extract(whole)
    expected = counts(whole)
    assert max(expected) > 1
    extract(url)
    cache = open_cache(str(url))
    lost = expected.index(max(expected))  # the last frame of the first of the longest scenes
    unseal(url, lost)
    before = {p: p.stat().st_mtime_ns for p in url.glob("boxes/head.boxes/values/c.*")}
    _, seen = extract(url, "loader.batch_size=1")
    scene = cache.frames.scenes[lost]
    assert seen == [t for t in order if cache.frames.scenes[order.index(t)] == scene]
    after = {p: p.stat().st_mtime_ns for p in url.glob("boxes/head.boxes/values/c.*")}
    assert {p for p in after if after[p] != before.get(p)} == {
        url / f"boxes/head.boxes/values/c.{lost}.0.0"
    }
    assert different_files(whole, url) == []


def unseal(url: Path, shard: int) -> None:
    """Take a shard's commit away, as if the run had been killed before it."""
    from bevcask.cache import seal

    cache = open_cache(str(url))
    chunks = cache.commit.chunks()
    del chunks[shard]
    seal.unseal(cache, chunks)


def test_parts_never_cut_a_scene(extract: Any, tmp_path: Path) -> None:
    whole, url = tmp_path / "whole.zarr", tmp_path / "parts.zarr"
    extract(whole)
    seen = [extract(url, f"part={i}/4", "loader.batch_size=1")[1] for i in (4, 2, 3, 1)]
    frames = open_cache(str(whole)).frames
    scenes = dict(zip(frames.tokens, frames.scenes, strict=True))
    of_part = [{scenes[token] for token in tokens} for tokens in seen]
    assert sum(map(len, of_part)) == len(set(scenes.values()))
    assert different_files(whole, url) == []

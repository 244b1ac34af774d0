"""Values that cannot be right are named by shard, target and token; digests are all in order."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bevcask.cache import Encoded, encode, open_cache, verify
from bevcask.cache.verify_values import Values, check_values
from bevcask.geometry import Grid
from bevcask.targets.spec import Region, TapInfo, TargetSpec
from cache.example import begin, frame_table

GRID = Grid(-4.0, -3.0, 1.0, 8, 6)
SPECS = (
    TargetSpec(TapInfo("bev.neck", "dense_bev", (6, 6, 8), GRID, nonnegative=True), "uint8"),
    TargetSpec(TapInfo("bev.exact", "dense_bev", (3, 6, 8), GRID, nonnegative=True), "float32"),
    TargetSpec(
        TapInfo("head.heatmap", "heatmap", (2, 6, 8), GRID, nonnegative=True, classes=("a", "b")),
        "uint8",
        Region("confident", 0.5),
    ),
    TargetSpec(TapInfo("head.boxes", "box_set", (5, 11)), "float32"),
    TargetSpec(TapInfo("query.last", "query_set", (4, 3)), "int8"),
    TargetSpec(TapInfo("image.fpn0", "image_feature", (2, 3, 4, 5)), "float16"),
)
SCENES = (6, 6, 6, 5)
COUNT = 3
Arrays = dict[str, Encoded[Any]]
Damage = Callable[[int, Arrays], None]


def said(spec: TargetSpec, frame: int) -> torch.Tensor:
    """Random numbers: what a sound teacher could say of a frame."""
    generator = torch.Generator().manual_seed(frame)
    values = torch.rand(spec.tap.shape, generator=generator)
    if spec.tap.kind == "box_set":
        values[:, 9] = torch.linspace(0.9, 0.1, len(values))
        values[:, 10] = torch.arange(len(values)).float()
    if spec.tap.kind.endswith("_set"):
        values[COUNT:] = 0
    return values


def build(url: Path, damage: Damage = lambda shard, arrays: None) -> str:
    """Write and seal a cache; `damage` changes what is written of a shard."""
    writer = begin(url, specs=SPECS, frames=frame_table(SCENES))
    for shard in writer.missing():
        frames = [int(token, 16) - 0xABC0 for token in writer.tokens(shard)]
        arrays = {}
        for spec in SPECS:
            count = torch.full((len(frames),), COUNT) if spec.tap.kind.endswith("_set") else None
            values = torch.stack([said(spec, frame) for frame in frames])
            arrays[spec.name] = encode(values, spec, count=count).numpy()
        damage(shard, arrays)
        writer.write(shard, arrays)
    writer.seal()
    assert verify(str(url)).ok
    return str(url)


def check(url: Path, damage: Damage) -> Values:
    return check_values(open_cache(build(url, damage)), workers=2)


def place(name: str, part: str, index: Any, value: Any) -> Damage:
    """Return a damage: one number of shard 2 is another."""

    def damage(shard: int, arrays: Arrays) -> None:
        if shard == 2:
            array = getattr(arrays[name], part).copy()
            array[index] = value
            arrays[name] = replace(arrays[name], **{part: array})

    return damage


def test_sound_values(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    cache = open_cache(build(tmp_path / "c"))
    found = check_values(cache, progress=lambda done, total: seen.append((done, total)))
    assert found.problems == []
    assert found.suspicions == []
    assert seen == [(i, 12) for i in range(1, 13)]
    assert set(found.statistics) == {spec.name for spec in SPECS} - {"head.boxes"}


def test_statistics_are_those_of_the_dequantised_values(tmp_path: Path) -> None:
    cache = open_cache(build(tmp_path / "c"))
    found = check_values(cache).statistics
    for name in ("bev.neck", "bev.exact", "image.fpn0"):
        values = cache.dask(name).compute().astype(np.float64)
        assert found[name]["mean"] == pytest.approx(values.mean())
        assert found[name]["std"] == pytest.approx(values.std(), rel=1e-6)
        assert found[name]["min"] == pytest.approx(values.min())
        assert found[name]["max"] == pytest.approx(values.max())
        assert found[name]["dead"] == []
        assert 0 <= found[name]["drift"] < 0.1


BROKEN = {
    "nan": (place("bev.exact", "values", (0, 1, 2, 3), np.nan), "bev.exact", "not finite"),
    "infinite": (place("image.fpn0", "values", (0, 1, 2, 3, 4), np.inf), "image.fpn0", "finite"),
    "negative": (place("bev.exact", "values", (0, 1, 2, 3), -0.5), "bev.exact", "non-negative"),
    "scale": (place("bev.neck", "scale", (0, 1), -1.0), "bev.neck", "scale is negative"),
    "nan scale": (place("query.last", "scale", (0, 1), np.nan), "query.last", "not finite"),
    "above one": (place("head.heatmap", "scale", (0, 1), 0.1), "head.heatmap", "exceed 1"),
    "region": (
        place("head.heatmap", "region", (0, slice(None)), False),
        "head.heatmap",
        "outside the stored region are not zero",
    ),
    "count above": (place("head.boxes", "count", 0, 6), "head.boxes", "expected 0 to 5, got 6"),
    "count below": (place("query.last", "count", 0, -1), "query.last", "expected 0 to 4, got -1"),
    "count short": (
        place("head.boxes", "count", 0, 1),
        "head.boxes",
        "2 entries behind the count of 1",
    ),
    "score": (place("head.boxes", "values", (0, 2, 9), 0.95), "head.boxes", "sorted by score"),
    "class": (place("head.boxes", "values", (0, 1, 10), 1.5), "head.boxes", "whole numbers"),
    "size": (place("head.boxes", "values", (0, 1, 4), -2.0), "head.boxes", "sizes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_a_promise_is_a_problem(name: str, tmp_path: Path) -> None:
    damage, target, words = BROKEN[name]
    (problem,) = check(tmp_path / "c", damage).problems
    token = open_cache(str(tmp_path / "c")).frames.tokens[4]
    assert (problem.shard, problem.target, problem.token) == (2, target, token)
    assert words in problem.what


def test_a_dead_channel_is_suspicious(tmp_path: Path) -> None:
    def damage(shard: int, arrays: Arrays) -> None:
        arrays["bev.neck"].values[:, 4] = 0

    found = check(tmp_path / "c", damage)
    assert found.problems == []
    (suspicion,) = found.suspicions
    assert (suspicion.target, suspicion.shard) == ("bev.neck", None)
    assert suspicion.what == "1 of 6 channels have one value everywhere: 4"
    assert found.statistics["bev.neck"]["dead"] == [4]


def test_a_channel_that_is_silent_in_one_shard_is_suspicious(tmp_path: Path) -> None:
    def damage(shard: int, arrays: Arrays) -> None:
        if shard == 3:
            arrays["bev.neck"].values[:, 4] = 0

    suspicions = check(tmp_path / "c", damage).suspicions
    assert any(s.shard == 3 and "one value here" in s.what and "4" in s.what for s in suspicions)


def test_a_shard_on_another_scale_is_suspicious(tmp_path: Path) -> None:
    def damage(shard: int, arrays: Arrays) -> None:
        if shard == 7:
            arrays["bev.neck"] = replace(
                arrays["bev.neck"], scale=arrays["bev.neck"].scale * np.float32(3)
            )

    (suspicion,) = check(tmp_path / "c", damage).suspicions
    assert (suspicion.shard, suspicion.target) == (7, "bev.neck")
    assert "unlike the other shards" in suspicion.what


def test_scenes_that_differ_show_as_drift(tmp_path: Path) -> None:
    def damage(shard: int, arrays: Arrays) -> None:
        arrays["bev.neck"].scale[:, 2] *= 1 + shard // 3

    found = check(tmp_path / "c", damage)
    assert found.statistics["bev.neck"]["drift_channel"] == 2
    plain = check_values(open_cache(build(tmp_path / "d"))).statistics["bev.neck"]
    assert found.statistics["bev.neck"]["drift"] > 2 * plain["drift"]


def test_rows_that_cannot_be_read_are_left_to_the_digests(tmp_path: Path) -> None:
    url = Path(build(tmp_path / "c"))
    values = url / "targets/bev.exact/values/c.1.0.0.0"
    data = bytearray(values.read_bytes())
    data[len(data) // 2] ^= 1
    values.write_bytes(data)
    assert check_values(open_cache(str(url))).problems == []
    assert not verify(str(url)).ok

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bevcask.cache import encode, open_cache
from bevcask.cache.quantize import dequantize, encode_targets
from bevcask.cache.verify_bytes import Problem
from bevcask.evaluation import agreement
from bevcask.evaluation.agreement import ARITHMETIC, error_bound, spread_tokens
from bevcask.targets.spec import Codec, TapInfo, TargetSpec
from cache.example import begin, build, frame_table

MAP = TapInfo("map", "dense_bev", (3, 6, 8))
BOXES = TapInfo("boxes", "box_set", (8, 11))


def units(values: Tensor, exact: Tensor, scale: Tensor | None, codec: Codec) -> float:
    bound = error_bound(exact, scale, TargetSpec(MAP, codec))
    return agreement._gap(values, exact, bound, TargetSpec(MAP, codec))[0].largest


@pytest.mark.parametrize("codec", ["uint8", "uint4", "int8", "int4", "float16", "float32"])
def test_a_codec_stays_within_its_bound_and_a_step_more_does_not(codec: Codec) -> None:
    exact = 10.0 ** torch.arange(-3.0, 3, 2)[:, None, None] * torch.rand(3, 6, 8)
    tap = replace(MAP, nonnegative=codec.startswith("u"))
    exact = exact if tap.nonnegative else exact - exact.mean()
    stored = encode(exact[None], TargetSpec(tap, codec))
    scale = None if stored.scale is None else stored.scale[0]
    values = dequantize(stored.values[0], scale)
    assert units(values, exact, scale, codec) <= 1
    peak = exact.abs().amax((1, 2), keepdim=True)
    noise = peak * ARITHMETIC / 2 * torch.sign(torch.randn(3, 6, 8))
    assert units(values, exact + noise, scale, codec) <= 1.01
    step = (
        scale[1]
        if scale is not None
        else exact[1].abs().max() * (2**-9 if codec == "float16" else 2**-12)
    )
    moved = values.clone()
    moved[1, 2, 3] += step if moved[1, 2, 3] >= exact[1, 2, 3] else -step
    assert units(moved, exact, scale, codec) > 1


def test_an_error_in_a_quiet_channel_is_not_hidden_by_a_loud_one() -> None:
    exact = torch.rand(3, 6, 8) * torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
    values = exact.clone()
    values[0, 2, 3] += 1e-5
    assert units(values, exact, None, "float32") > 1


def test_a_number_where_the_teacher_is_silent_is_an_error() -> None:
    exact = torch.zeros(3, 6, 8)
    values = exact.clone()
    assert units(values, exact, None, "float32") == 0
    values[0, 0, 0] = 1e-12
    assert units(values, exact, None, "float32") > 1


@pytest.mark.parametrize("side", ["stored", "said"])
def test_what_is_not_a_number_agrees_with_nothing(side: str) -> None:
    exact = torch.rand(3, 6, 8)
    values = exact.clone()
    (values if side == "stored" else exact)[1, 2, 3] = math.nan
    assert units(values, exact, None, "float32") > 1e5


def boxes(count: int) -> Tensor:
    values = torch.rand(count, 11) * 10
    values[:, 6] = torch.linspace(-math.pi, math.pi, count)
    values[:, 10] = torch.arange(count) % 3
    return values


def furthest(values: Tensor, exact: Tensor) -> float:
    bound = error_bound(boxes(8), None, TargetSpec(BOXES, "float32"))
    return agreement._furthest_boxes(values, exact, bound[0])[0].largest


def test_boxes_agree_in_any_order_and_across_the_seam_of_yaw() -> None:
    exact = boxes(8)
    assert furthest(exact.flip(0), exact) == 0
    turned = exact.clone()
    turned[0, 6] += 2 * math.pi - 1e-6
    assert furthest(turned, exact) < 1


@pytest.mark.parametrize("column", [0, 5, 6, 8, 9, 10])
def test_a_box_that_moved_is_found(column: int) -> None:
    exact = boxes(8)
    moved = exact.clone()
    moved[3, column] += 0.5
    assert furthest(moved, exact) > 10


def test_a_box_too_many_or_too_few_is_found() -> None:
    exact = boxes(8)
    assert furthest(exact[:-1], exact) > 10
    assert furthest(exact, exact[1:]) > 10
    assert furthest(exact[:0], exact) > 10
    assert furthest(exact, exact[:0]) > 10
    assert furthest(exact[:0], exact[:0]) == 0


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(tmp_path_factory.mktemp("agreement") / "c", frames=frame_table((5, 4, 3)))


def test_frames_to_look_at_are_seeded_and_spread_over_shards(url: str) -> None:
    cache = open_cache(url)

    def shards(tokens: list[str]) -> list[int]:
        return [cache.layout.row_of[token] // cache.layout.shard_rows for token in tokens]

    some = spread_tokens(cache, 5, seed=1)
    assert some == spread_tokens(cache, 5, seed=1) != spread_tokens(cache, 5, seed=2)
    assert len(set(shards(some))) == 5
    assert sorted(spread_tokens(cache, 100, seed=1)) == sorted(cache.frames.tokens)
    first = cache.frames.tokens[7]
    suspect = spread_tokens(cache, 3, seed=1, first=[first, first])
    assert suspect[0] == first
    assert len(set(suspect)) == 3


def test_poses_and_times_are_compared(url: str) -> None:
    cache = open_cache(url)

    class Dataset:
        tokens = list(cache.frames.tokens)[::-1]
        timestamps = cache.frames.timestamps[::-1].copy()
        lidar_to_global = cache.frames.lidar_to_global[::-1].copy()
        index = SimpleNamespace(precision="float64")

    dataset = Dataset()
    find = agreement.frame_problems
    assert find(cache, dataset) == []  # type: ignore[arg-type]
    dataset.timestamps[0] += 0.01
    dataset.lidar_to_global[1, 0, 3] = np.nan
    found = find(cache, dataset)  # type: ignore[arg-type]
    assert [(p.key, p.token) for p in found] == [
        ("frames/lidar_to_global", dataset.tokens[1]),
        ("frames/timestamp", dataset.tokens[0]),
    ]
    dataset.timestamps[0] -= 0.01
    dataset.lidar_to_global[1] = cache.frames.lidar_to_global[::-1][1] + 1e-4
    assert [p.key for p in find(cache, dataset)] == ["frames/lidar_to_global"]  # type: ignore[arg-type]
    dataset.index.precision = "float32"  # of an info file that rounds
    assert find(cache, dataset) == []  # type: ignore[arg-type]
    assert Path(url).is_dir()


def test_a_map_is_asked_for_at_the_size_it_was_said_and_compared_as_stored(tmp_path: Path) -> None:
    """Eight columns are brought to two; the teacher still says eight."""
    tap = TapInfo("image.level0", "image_feature", (2, 3, 1, 2), depends_on_images=True)
    spec = TargetSpec(tap, "float32", said_HW=(1, 8))
    frames = frame_table((2,))
    said = {t: torch.rand(1, 2, 3, 1, 8) for t in frames.tokens}
    with begin(tmp_path / "c", specs=[spec], frames=frames) as writer:
        shown = torch.cat([said[token] for token in writer.tokens(0)])
        writer.write(0, encode_targets({tap.name: shown}, [spec], None, ()))
    writer.seal()

    def asked(factor: float) -> list[Problem]:
        teacher: Any = SimpleNamespace(targets=lambda batch, _: {tap.name: factor * said[batch]})
        batches = {token: SimpleNamespace(labels=None, to=lambda _, t=token: t) for token in said}
        source: Any = SimpleNamespace(
            read=lambda token, _: token, collate=lambda tokens: batches[tokens[0]]
        )
        bar: Any = SimpleNamespace(advance=lambda: None)
        found = agreement.resample(
            open_cache(str(tmp_path / "c")),
            teacher,
            source,
            frames.tokens,
            torch.device("cpu"),
            bar,
        )
        return found[1]

    assert asked(1.0) == []
    assert len(asked(1.5)) == 2

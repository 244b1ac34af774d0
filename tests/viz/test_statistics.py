"""Statistics equal what numpy says about the same values, however they are split into shards."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bevcask.cache import Cache, create, encode, open_cache
from bevcask.targets.spec import TapInfo, TargetSpec
from bevcask.viz.statistics import statistics
from viz.cached import DEAD_CHANNEL, SPECS, build, frame_table, truth

MADE_BY = {"teacher": {"weights": "none"}}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return build(tmp_path_factory.mktemp("statistics") / "c.zarr")


@pytest.fixture(scope="module")
def found(cache: Cache) -> dict[str, dict[str, Any]]:
    return statistics(cache)


def expected(values: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Statistics of (channel, everything else), in one go."""
    exact = values.astype(np.float64)
    return {
        "mean": exact.mean(1),
        "std": exact.std(1),
        "min": exact.min(1),
        "max": exact.max(1),
        "zeros": (exact == 0).mean(1),
    }


def test_dense_channels_equal_numpy(found: dict[str, dict[str, Any]]) -> None:
    values = np.stack([truth(frame)["bev.neck"][0].numpy() for frame in range(5)], axis=1)
    for key, column in expected(values.reshape(4, -1)).items():
        assert found["bev.neck"]["per_channel"][key] == pytest.approx(column, rel=1e-9), key


def test_summary_equals_numpy_over_everything(found: dict[str, dict[str, Any]]) -> None:
    values = np.stack([truth(frame)["bev.neck"][0].numpy() for frame in range(5)])
    for key, column in expected(values.reshape(1, -1)).items():
        assert found["bev.neck"][key] == pytest.approx(column[0], rel=1e-6), key


def test_dead_channel_is_named(found: dict[str, dict[str, Any]]) -> None:
    assert found["bev.neck"]["dead"] == [DEAD_CHANNEL]
    assert found["bev.neck"]["num_channels"] == 4
    assert found["head.heatmap"]["dead"] == []


def test_quantised_values_are_dequantised(found: dict[str, dict[str, Any]]) -> None:
    values = np.stack([truth(frame)["head.heatmap"][0].numpy() for frame in range(5)], axis=1)
    columns = expected(values.reshape(10, -1))
    assert found["head.heatmap"]["per_channel"]["max"] == pytest.approx(columns["max"], rel=1e-6)
    assert found["head.heatmap"]["per_channel"]["mean"] == pytest.approx(columns["mean"], abs=1e-3)


def test_padding_of_sets_does_not_count(found: dict[str, dict[str, Any]]) -> None:
    valid = [truth(frame)["query.last"][0].numpy()[: 1 + frame] for frame in range(5)]
    columns = expected(np.concatenate(valid).T)
    for key in ("mean", "std", "zeros"):
        assert found["query.last"]["per_channel"][key] == pytest.approx(columns[key], abs=2e-3)


def test_boxes_are_counted(found: dict[str, dict[str, Any]]) -> None:
    row = found["head.boxes"]
    classes = np.concatenate([np.arange(2 + frame) % 3 for frame in range(5)])
    assert (row["frames"], row["boxes"], row["most"]) == (5, 20, 6)
    assert [row["per_class"][name] for name in ("car", "truck", "construction_vehicle", "bus")] == [
        *np.bincount(classes),
        0,
    ]
    assert row["max_score"] == pytest.approx(0.9)
    assert row["mean_score"] == pytest.approx(0.5)


def test_uncommitted_shards_are_left_out(tmp_path: Path) -> None:
    found = statistics(build(tmp_path / "part.zarr", num_shards=1))
    values = np.stack([truth(frame)["bev.neck"][0].numpy() for frame in range(2)])
    assert found["bev.neck"]["mean"] == pytest.approx(values.mean(dtype=np.float64), rel=1e-6)
    assert found["head.boxes"]["frames"] == 2


def test_an_empty_cache_has_no_statistics(tmp_path: Path) -> None:
    found = statistics(build(tmp_path / "none.zarr", num_shards=0))
    assert found == {spec.name: {} for spec in SPECS}


def test_image_features_are_summarised_per_channel(tmp_path: Path) -> None:
    import torch

    spec = TargetSpec(TapInfo("image.fpn0", "image_feature", (2, 3, 4, 5)), "float32")
    values = torch.randn((2, 2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    url = str(tmp_path / "image.zarr")
    writer = create(
        url,
        [spec],
        frame_table((2,)),
        shard_rows=2,
        fingerprint={"teacher": {"weights": "none"}},
        plan={},
        provenance={},
    )
    writer.write(0, {spec.name: encode(values, spec)})
    writer.seal()
    found = statistics(open_cache(url))["image.fpn0"]
    columns = expected(values.numpy().transpose(2, 0, 1, 3, 4).reshape(3, -1))
    assert found["per_channel"]["mean"] == pytest.approx(columns["mean"], rel=1e-6)
    assert found["per_channel"]["std"] == pytest.approx(columns["std"], rel=1e-6)


def test_progress_is_not_redrawn_into_a_log_file(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bevcask.viz.statistics._SILENT_SECONDS", 0.0)
    statistics(cache)
    told = capsys.readouterr().err
    assert "\r" not in told
    assert re.fullmatch(r"statistics (\d+) of \1, .*\n", told)

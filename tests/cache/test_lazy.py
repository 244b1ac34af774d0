"""Lazy views: dequantised, without pad rows, with metres and names."""

import warnings

import dask
import numpy as np
import pytest
import torch

from bevcask.cache import dequantize, open_cache
from cache.example import SPECS, TargetSpec


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_dask_equals_dequantised_reads(sealed: str, spec: TargetSpec) -> None:
    cache = open_cache(sealed)
    array = cache.dask(spec.name)
    assert array.chunks[0] == (2, 1, 2, 1)
    assert (array.shape, array.dtype) == ((6, *spec.tap.shape), np.float32)
    with dask.config.set(scheduler="threads", num_workers=2):
        values = array.compute()
    for frame, token in enumerate(cache.frames.tokens):
        sample = cache.read(token, [spec.name])[spec.name]
        scale = None if sample.scale is None else torch.from_numpy(sample.scale)
        expected = dequantize(torch.from_numpy(sample.values), scale)
        np.testing.assert_array_equal(values[frame], expected.numpy())


def test_pad_rows_reach_no_statistic(sealed: str) -> None:
    cache = open_cache(sealed)
    by_read = np.stack(
        [cache.read(token, ["image.fpn0"])["image.fpn0"].values for token in cache.frames.tokens]
    )
    array = cache.dask("image.fpn0")
    assert array.min().compute() == by_read.min() < 0
    assert array.astype(float).var().compute() == pytest.approx(by_read.astype(float).var())
    assert array.shape[0] == 6 < cache.layout.num_rows


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_chunks_may_be_smaller_than_a_shard(sealed: str, frames: int) -> None:
    cache = open_cache(sealed)
    whole, parts = cache.xarray("head.heatmap"), cache.xarray("head.heatmap", frames=frames)
    assert parts["values"].chunksizes["frame"] == ((1,) * 6 if frames == 1 else (2, 1, 2, 1))
    assert parts.identical(whole)
    both = cache.dask("bev.neck", frames=1) - cache.dask("bev.neck")
    assert not both.any().compute()


def test_names_of_two_targets_differ(sealed: str) -> None:
    cache = open_cache(sealed)
    both = cache.dask("bev.neck") + cache.dask("bev.signed")
    assert both.sum().compute() != 2 * cache.dask("bev.neck").sum().compute()


def test_dask_runs_in_other_processes(sealed: str) -> None:
    cache = open_cache(sealed)
    here = cache.dask("bev.neck").sum().compute()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with dask.config.set(scheduler="processes", num_workers=1):
            there = cache.dask("bev.neck").sum().compute()
    assert here == there


def test_xarray_has_coordinates(sealed: str) -> None:
    cache = open_cache(sealed)
    data = cache.xarray("head.heatmap")
    assert data["values"].dims == ("frame", "channel", "y", "x")
    assert data["sample_token"].values.tolist() == list(cache.frames.tokens)
    assert data["scene"].values.tolist() == list(cache.frames.scenes)
    assert data["timestamp"].values.tolist() == cache.frames.timestamps.tolist()
    assert data["x"].values.tolist() == [-3.5 + i for i in range(8)]
    assert data["y"].values.tolist() == [-2.5 + i for i in range(6)]
    assert data["x"].attrs["units"] == "m"
    spec = cache.specs["head.heatmap"]
    said = {
        "target": spec.key,
        "region": str(spec.region),
        "weights": cache.fingerprint["teacher"]["weights"],
    }
    assert said.items() <= data.attrs.items()
    here = data["values"].isel(frame=2).sel(x=1.5, y=-0.5).values
    sample = cache.read(cache.frames.tokens[2])["head.heatmap"]
    np.testing.assert_array_equal(here, sample.values[:, 2, 5] * sample.scale)
    regions = [cache.read(token)["head.heatmap"].region for token in cache.frames.tokens]
    np.testing.assert_array_equal(data["region"].values, np.stack(regions))


def test_xarray_of_sets_and_images(sealed: str) -> None:
    cache = open_cache(sealed)
    boxes = cache.xarray("head.boxes")
    assert boxes["values"].dims == ("frame", "box", "field")
    assert boxes["count"].values.tolist() == [1, 2, 3, 4, 1, 2]
    assert boxes["field"].values.tolist()[-3:] == ["vy", "score", "class"]
    assert cache.xarray("query.last")["values"].dims == ("frame", "query", "channel")
    image = cache.xarray("image.fpn0")
    assert image["values"].dims == ("frame", "camera", "channel", "v", "u")
    assert "x" not in image.coords

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from bevcask.cache import FrameTable, open_cache
from bevcask.config import AugmentConfig, LoaderConfig
from bevcask.data.index.frames import Frames
from bevcask.data.join import JoinedDataset, TrainBatch, cached_frames
from bevcask.data.loader import build_loader
from bevcask.data.samples import Key, SampleReader
from bevcask.data.sampling import Epochs, StepSampler
from bevcask.detectors.base import Inputs
from bevcask.errors import CacheIncompleteError, TokenNotCachedError
from cache.example import SPECS, begin, build, count_of, encoded, truth

AUGMENT = AugmentConfig(bev_rotation=0.3, bev_flip_x=True)
NAMES = [spec.name for spec in SPECS]


def _table(frames: Frames) -> FrameTable:
    return FrameTable(frames.tokens, frames.scenes, frames.timestamps, frames.lidar_to_global)


@pytest.fixture(scope="module")
def cache_url(tiny_frames: Frames, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The example targets for the frames of the tiny world."""
    return build(tmp_path_factory.mktemp("join") / "cache.zarr", frames=_table(tiny_frames))


def _dataset(frames: Frames, url: str | None, teacher: SampleReader | None = None) -> JoinedDataset:
    student = SampleReader(frames, Inputs(num_sweeps=1), AUGMENT, 0)
    return JoinedDataset(frames, student, url, NAMES, teacher)


def _batches(dataset: JoinedDataset, num_workers: int) -> list[TrainBatch]:
    sampler = StepSampler(Epochs(np.ones(len(dataset), np.int64), seed=0), 4, max_steps=3)
    return list(build_loader(dataset, sampler, LoaderConfig(num_workers=num_workers)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_sample_meets_its_own_targets(
    tiny_frames: Frames, cache_url: str, num_workers: int
) -> None:
    for batch in _batches(_dataset(tiny_frames, cache_url), num_workers):
        targets = batch.dequantised()
        assert set(targets) == set(NAMES)
        for i, token in enumerate(batch.batch.tokens):
            number = tiny_frames.tokens.index(token)
            for spec in SPECS:
                target = targets[spec.name]
                expected = truth(spec, number)
                assert target.values.dtype == torch.float32
                if target.region_BYX is not None:
                    kept = expected.amax(0) > spec.region.threshold
                    assert torch.equal(target.region_BYX[i], kept)
                    expected = torch.where(kept, expected, 0.0)
                if target.count_B is not None:
                    assert target.count_B[i] == count_of(number)
                step = expected.abs().max().item() / 127
                torch.testing.assert_close(target.values[i], expected, atol=step, rtol=1e-3)


def test_workers_hand_over_stored_bytes(tiny_frames: Frames, cache_url: str) -> None:
    (batch, *_) = _batches(_dataset(tiny_frames, cache_url), 0)
    moved = batch.to("cpu")
    dtypes = {name: target.values.dtype for name, target in moved.targets.items()}
    assert dtypes["bev.neck"] == torch.uint8
    assert dtypes["bev.signed"] == torch.int8
    assert dtypes["image.fpn0"] == torch.float16
    assert dtypes["head.boxes"] == torch.float32
    assert moved.batch.tokens == batch.batch.tokens


def test_workers_hand_over_only_the_cells_of_a_region(tiny_frames: Frames, cache_url: str) -> None:
    (batch, *_) = _batches(_dataset(tiny_frames, cache_url), 0)
    for spec in SPECS:
        target = batch.targets[spec.name]
        if target.region is not None:
            cells = int(target.region.sum())
            assert 0 < cells < target.region.numel()
            assert target.values.shape == (spec.tap.shape[0], cells)


def test_the_cache_is_opened_where_it_is_read(tiny_frames: Frames, cache_url: str) -> None:
    dataset = _dataset(tiny_frames, cache_url)
    fresh = len(pickle.dumps(dataset))
    dataset[Key(0)]
    assert len(pickle.dumps(dataset)) == fresh < 4000


def test_an_online_teacher_sees_the_students_frame_or_the_clean_one(tiny_frames: Frames) -> None:
    inputs = Inputs(num_sweeps=1)
    student = SampleReader(tiny_frames, Inputs(image_size_HW=(56, 96)), AUGMENT, 0)
    for augment in (AUGMENT, None):
        teacher = SampleReader(tiny_frames, inputs, augment, 0)
        dataset = JoinedDataset(tiny_frames, student, teachers={"": teacher})
        for batch in _batches(dataset, 0):
            shown = batch.teacher_batches[""]
            assert batch.targets == {}
            assert shown.tokens == batch.batch.tokens
            expected = batch.batch.bev_aug_B44 if augment else torch.eye(4).expand(4, 4, 4)
            assert torch.equal(shown.bev_aug_B44, expected)
            assert shown.points is not None


def test_without_targets_there_is_only_the_student(tiny_frames: Frames) -> None:
    (batch, *_) = _batches(_dataset(tiny_frames, None), 0)
    assert batch.targets == {}
    assert not batch.teacher_batches


def test_frames_without_a_row_are_refused_or_skipped(
    tiny_frames: Frames, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = tiny_frames.keep(tiny_frames.tokens[:4])
    cache = open_cache(build(tmp_path / "half.zarr", frames=_table(half)))
    with pytest.raises(TokenNotCachedError) as caught:
        cached_frames(tiny_frames, cache)
    missing = tiny_frames.tokens[4:]
    assert str(caught.value).startswith(
        f"2 of 6 selected frames have no row in the cache of 4 frames: {', '.join(missing)}. "
    )
    assert "on_missing=skip" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        kept = cached_frames(tiny_frames, cache, "skip")
    assert kept.tokens == half.tokens
    assert "2 of 6 selected frames have no row" in caplog.text
    assert cached_frames(half, cache) is half
    with pytest.raises(TokenNotCachedError, match="2 of 2"):
        cached_frames(tiny_frames.keep(missing), cache, "skip")


def test_an_unsealed_cache_is_refused_from_a_worker(tiny_frames: Frames, tmp_path: Path) -> None:
    writer = begin(tmp_path / "open.zarr", frames=_table(tiny_frames))
    writer.write(0, encoded(writer, 0))
    with pytest.raises(CacheIncompleteError) as caught:
        _batches(_dataset(tiny_frames, str(tmp_path / "open.zarr")), 1)
    assert "Traceback" not in str(caught.value)


def test_stacking_keeps_values_bit_for_bit(tiny_frames: Frames, cache_url: str) -> None:
    dataset = _dataset(tiny_frames, cache_url)
    samples = [dataset[Key(i)] for i in (2, 0, 1)]
    stacked = dataset.collate(samples).targets["bev.signed"]
    cache = open_cache(cache_url)
    for i, sample in enumerate(samples):
        stored = cache.read(sample.student.token)["bev.signed"]
        np.testing.assert_array_equal(stacked.values[i], stored.values)
        assert stacked.scale is not None
        np.testing.assert_array_equal(stacked.scale[i], stored.scale)

"""What is read of one frame: draws for all cameras, trained frames of a window, resampling."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bevcask.config import AugmentConfig
from bevcask.data.augment import images_only
from bevcask.data.index.frames import Frames
from bevcask.data.lidar import read_scan
from bevcask.data.samples import Replay, SampleReader, collate
from bevcask.data.workers import tensors_of
from bevcask.detectors.base import Inputs
from bevcask.errors import ConfigError

AUGMENT = AugmentConfig(resize=(-0.02, 0.1), crop=True, image_flip=True, image_rotation=5.0)


def test_cameras_alike_replay_one_draw_by_view(tiny_frames: Frames) -> None:
    """What a student replays is to the bit the view that its teacher was shown, in six cameras."""
    augment = AUGMENT.model_copy(update={"cameras_alike": True, "image_rotation": 0.0})
    inputs, token = Inputs(image_size_HW=(56, 96)), tiny_frames.tokens[0]
    student = SampleReader(tiny_frames, inputs, augment, 5, Replay(9, 2))
    teacher = SampleReader(tiny_frames, inputs, images_only(augment), 9)
    views = set()
    for epoch in range(4):
        seen = student.read(token, epoch)
        shown = teacher.read(token, seen.view)
        assert seen.image_aug_V33 is not None
        np.testing.assert_array_equal(seen.images_VCHW, shown.images_VCHW)
        np.testing.assert_array_equal(seen.image_aug_V33, shown.image_aug_V33)
        assert len(np.unique(seen.image_aug_V33, axis=0)) == 1
        views.add((seen.view, float(seen.image_aug_V33[0, 0, 0])))
    assert len(views) == 2


def test_trained_frames_of_a_window_are_read_as_if_alone(tiny_frames: Frames) -> None:
    """Their own draws, stripes and labels; frames before them have draws, and neither of those."""
    augment = AugmentConfig(
        bev_rotation=0.3, image_flip=True, resize=(0.0, 0.1), grid_mask=1.0, cameras_alike=True
    )
    inputs = Inputs(image_size_HW=(56, 96), memory=True)
    alone = SampleReader(tiny_frames, inputs, augment, 4)
    windows = {
        trained: SampleReader(
            tiny_frames, replace(inputs, history=2, trained=trained), augment, 4
        ).read(tiny_frames.tokens[2], 1)
        for trained in (1, 2)
    }
    first, second = windows[2].history
    for token, own in zip(tiny_frames.tokens[:3], (first, second, windows[2]), strict=False):
        wanted = alone.read(token, 1)
        assert own.token == token
        np.testing.assert_array_equal(own.bev_aug_44, wanted.bev_aug_44)
        np.testing.assert_array_equal(own.image_aug_V33, wanted.image_aug_V33)
        assert (own.shown_HW is not None) == (own is not first)
        if own is not first:
            np.testing.assert_array_equal(own.images_VCHW, wanted.images_VCHW)
            np.testing.assert_array_equal(own.shown_HW, wanted.shown_HW)
            np.testing.assert_array_equal(own.boxes_N9, wanted.boxes_N9)
    assert first.boxes_N9 is None
    batch = collate([windows[2]])
    assert [earlier.labels is not None for earlier in batch.history] == [False, True]
    for own in windows[1].history:
        np.testing.assert_array_equal(own.bev_aug_44, windows[1].bev_aug_44)
        np.testing.assert_array_equal(own.image_aug_V33, windows[1].image_aug_V33)
        assert own.boxes_N9 is None
        assert own.shown_HW is None
    np.testing.assert_array_equal(windows[1].images_VCHW, windows[2].images_VCHW)


def test_how_images_are_made_smaller_goes_with_the_frames(tiny_frames: Frames) -> None:
    """Also to workers, and to parts of the selection; what Pillow is not asked for is refused."""
    pillow = Frames(tiny_frames.index, tiny_frames.rows, resampling="pillow")
    inputs, token = Inputs(image_size_HW=(56, 96)), tiny_frames.tokens[0]
    fast = SampleReader(tiny_frames, inputs, None, 0).read(token).images_VCHW
    same = [pillow, pillow.keep([token]), pillow.in_order([token])]
    same.append(pickle.loads(pickle.dumps(pillow)))
    found = [SampleReader(own, inputs, None, 0).read(token).images_VCHW for own in same]
    assert fast is not None
    assert found[0] is not None
    assert 0 < np.abs(found[0].astype(float) - fast).mean() < 11
    for own in found[1:]:
        np.testing.assert_array_equal(own, found[0])
    with pytest.raises(ConfigError, match=r"image_rotation=5\.0: dataset\.resampling=pillow"):
        SampleReader(pillow, inputs, AUGMENT, 0)


def test_a_sample_reads_its_scan_once(tiny_frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs(image_size_HW=(56, 96), num_sweeps=3, depth=True)
    read: list[Path] = []
    monkeypatch.setattr(
        "bevcask.data.lidar.read_scan", lambda path: read.append(path) or read_scan(path)
    )
    sample = SampleReader(tiny_frames, inputs, AUGMENT, 0, pixels=True).read(tiny_frames.tokens[2])
    assert sample.points_P5 is not None
    assert sample.pixels_P5 is not None
    assert len(read) == len(set(read)) == 3


def test_a_samples_bytes_are_few(nuscenes_root: Path, select: Callable[..., Frames]) -> None:
    """Float32 images and depth maps of every pixel were 17.3 MB a frame at this size."""
    frames = select(nuscenes_root, "v1.0-mini")
    reader = SampleReader(frames, Inputs(image_size_HW=(256, 704), depth=True), AUGMENT, 0)
    batch = collate([reader.read(token) for token in frames.tokens[:2]])
    assert batch.images_BVCHW is not None
    assert batch.images_BVCHW.shape == (2, 6, 3, 256, 704)
    assert batch.pixels is not None
    assert min(map(len, batch.pixels)) > 15_000
    size = sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(batch))
    assert size <= 0.3 * 2 * 6 * (3 + 1) * 256 * 704 * 4

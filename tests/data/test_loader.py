import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bevcask.config import AugmentConfig, LoaderConfig
from bevcask.data import workers
from bevcask.data.augment import draw
from bevcask.data.images import load_image
from bevcask.data.index.frames import Frames
from bevcask.data.loader import FrameSource, Loader, build_loader, in_order, workers_for
from bevcask.data.samples import Key, SampleReader, collate
from bevcask.data.sampling import Epochs, StepSampler
from bevcask.data.workers import Loaded, Room, tensors_of
from bevcask.detectors.base import Batch, Inputs
from bevcask.errors import DataError, LoaderError
from bevcask.geometry import inside_footprints, transform_boxes, transform_points
from bevcask.targets.pixels import nearest_depths

Select = Callable[..., Frames]
INPUTS = Inputs(image_size_HW=(56, 96), num_sweeps=3, depth=True)
AUGMENT = AugmentConfig(
    resize=(-0.02, 0.1),
    crop=True,
    image_flip=True,
    image_rotation=5.0,
    bev_rotation=0.3,
    bev_scale=(0.9, 1.1),
    bev_flip_x=True,
    bev_flip_y=True,
)


def test_a_sample_has_the_shapes_and_types_it_promises(tiny_frames: Frames) -> None:
    sample = SampleReader(tiny_frames, INPUTS, None, 0).read(tiny_frames.tokens[1])
    shapes = {
        "images_VCHW": (6, 3, 56, 96),
        "intrinsics_V33": (6, 3, 3),
        "image_aug_V33": (6, 3, 3),
        "camera_to_lidar_V44": (6, 4, 4),
        "bev_aug_44": (4, 4),
    }
    for name, shape in shapes.items():
        array = getattr(sample, name)
        assert array.shape == shape, name
        assert array.dtype == (np.uint8 if name == "images_VCHW" else np.float32), name
    for points in (sample.points_P5, sample.pixels_P5):
        assert points is not None
        assert points.shape[1] == 5
        assert points.dtype == np.float32
    assert sample.classes_N is not None
    assert sample.classes_N.dtype == np.int64


def test_only_what_a_detector_wants_is_read(
    tiny_frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tiny_frames.tokens[0]
    lidar = SampleReader(tiny_frames, Inputs(num_sweeps=1), None, 0).read(token)
    assert lidar.images_VCHW is lidar.intrinsics_V33 is lidar.pixels_P5 is None
    monkeypatch.setattr("bevcask.data.lidar.read_scan", lambda path: pytest.fail(f"{path} is read"))
    camera = SampleReader(tiny_frames, Inputs(image_size_HW=(56, 96)), None, 0).read(token)
    assert camera.points_P5 is camera.pixels_P5 is None


def test_points_and_boxes_move_by_the_bev_matrix(tiny_frames: Frames) -> None:
    token = tiny_frames.tokens[2]
    clean = SampleReader(tiny_frames, INPUTS, None, 0).read(token)
    moved = SampleReader(tiny_frames, INPUTS, AUGMENT, 0).read(token, 3)
    assert not np.array_equal(moved.bev_aug_44, np.eye(4))
    assert clean.points_P5 is not None
    expected = transform_points(clean.points_P5, moved.bev_aug_44)
    np.testing.assert_allclose(moved.points_P5, expected, atol=1e-4)
    np.testing.assert_array_equal(moved.canonical_boxes_N9, clean.boxes_N9)
    np.testing.assert_array_equal(clean.canonical_boxes_N9, clean.boxes_N9)
    expected = transform_boxes(clean.boxes_N9, moved.bev_aug_44)
    np.testing.assert_allclose(moved.boxes_N9, expected, atol=1e-4)
    np.testing.assert_allclose(moved.camera_to_lidar_V44, clean.camera_to_lidar_V44)


def test_boxes_keep_their_points_under_augmentation(tiny_frames: Frames) -> None:
    reader = SampleReader(tiny_frames, Inputs(num_sweeps=1), AUGMENT, 0)
    clean = SampleReader(tiny_frames, Inputs(num_sweeps=1), None, 0)

    def counts(sample_reader: SampleReader, view: int) -> np.ndarray:
        sample = sample_reader.read(tiny_frames.tokens[1], view)
        assert sample.points_P5 is not None
        assert sample.boxes_N9 is not None
        boxes = sample.boxes_N9.astype(np.float64)
        boxes[:, 3:5] += 1e-3  # points on a face stay inside after rounding
        inside: np.ndarray = inside_footprints(sample.points_P5[:, :2].astype(np.float64), boxes)
        return inside.sum(0)

    before = counts(clean, 0)
    assert before.sum() > 50
    for view in range(4):
        assert np.abs(counts(reader, view) - before).sum() <= 0.01 * before.sum()


def test_boxes_without_a_point_are_no_labels(tiny_frames: Frames) -> None:
    reader = SampleReader(tiny_frames, Inputs(num_sweeps=1), None, 0)
    dropped = 0
    for token in tiny_frames.tokens:
        boxes, classes, points = tiny_frames.labels(token)
        sample = reader.read(token)
        np.testing.assert_array_equal(sample.boxes_N9, boxes[points > 0])
        np.testing.assert_array_equal(sample.classes_N, classes[points > 0])
        dropped += int((points == 0).sum())
    assert dropped > 0


TWO_FRAMES = Inputs(image_size_HW=(56, 96), history=1)


def test_an_earlier_frame_comes_from_the_same_scene(tiny_frames: Frames) -> None:
    reader = SampleReader(tiny_frames, TWO_FRAMES, None, 0)
    alone = SampleReader(tiny_frames, Inputs(image_size_HW=(56, 96)), None, 0)
    for number, token in enumerate(tiny_frames.tokens):
        scene = tiny_frames.scenes[number]
        earlier = tiny_frames.tokens[max(number - 3, tiny_frames.scenes.index(scene))]
        sample = reader.read(token)
        (before,) = sample.history
        assert before.token == earlier
        np.testing.assert_array_equal(before.images_VCHW, alone.read(earlier).images_VCHW)
        assert before.points_P5 is before.boxes_N9 is None
        np.testing.assert_array_equal(sample.images_VCHW, alone.read(token).images_VCHW)


@pytest.mark.parametrize("augment", [None, AUGMENT])
def test_a_two_frame_student_is_shown_to_the_bit_what_it_was_before_memory(
    tiny_frames: Frames, augment: AugmentConfig | None
) -> None:
    """One earlier frame under the draw of this one; its matrix holds augmentation and motion."""
    reader = SampleReader(tiny_frames, TWO_FRAMES, augment, 0)
    token, index = tiny_frames.tokens[2], tiny_frames.index
    sizes = [(int(h), int(w)) for h, w in index["frame_image_size"][2]]
    drawn = draw(augment, 0, token, 1, sizes, TWO_FRAMES.image_size_HW)
    (earlier,) = collate([reader.read(token, 1)]).history
    row = tiny_frames.previous_row(2, drawn.frame_gap)
    to_global = index["frame_lidar_to_global"]
    motion = np.linalg.inv(to_global[2]) @ to_global[row]
    assert earlier.images_BVCHW is not None
    for camera, transform in enumerate(drawn.images):
        path = tiny_frames.root / index["frame_image"][row, camera].decode()
        pixels = load_image(path, sizes[camera], transform)
        np.testing.assert_array_equal(earlier.images_BVCHW[0, camera], pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(
        earlier.bev_aug_B44[0], (drawn.bev_aug @ motion).astype(np.float32)
    )
    assert earlier.points is earlier.labels is earlier.memory is None
    assert earlier.history == ()


@pytest.mark.parametrize("augment", [None, AUGMENT])
def test_what_stands_still_stays_put_between_frames(
    tiny_frames: Frames, augment: AugmentConfig | None
) -> None:
    reader = SampleReader(tiny_frames, TWO_FRAMES, augment, 0)
    met = drove = 0
    for token in tiny_frames.tokens:
        sample = reader.read(token)
        (before,) = sample.history
        boxes, classes, _ = tiny_frames.labels(before.token)
        still = np.linalg.norm(boxes[:, 7:9], axis=1) < 1e-3
        found = transform_boxes(boxes[still], before.bev_aug_44)
        now, now_classes, _ = tiny_frames.labels(token)
        now = transform_boxes(now, sample.bev_aug_44)
        for box, cls in zip(found, classes[still], strict=True):
            same = now[now_classes == cls]
            distance = np.linalg.norm(same[:, :3] - box[:3], axis=1)
            if len(same) and distance.min() < 0.05:
                met += 1
                np.testing.assert_allclose(
                    np.cos(same[distance.argmin(), 6] - box[6]), 1, atol=1e-4
                )
        own = np.linalg.inv(sample.bev_aug_44) @ before.bev_aug_44
        drove += bool(np.linalg.norm(own[:2, 3]) > 1)
    assert met > 20
    assert drove > 0


def test_how_far_back_is_drawn_within_its_range(tiny_frames: Frames) -> None:
    augment = AugmentConfig(frame_gap=(1, 2))
    reader = SampleReader(tiny_frames, TWO_FRAMES, augment, 0)
    last = max(
        range(len(tiny_frames)),
        key=lambda n: tiny_frames.scenes[: n + 1].count(tiny_frames.scenes[n]),
    )
    gaps = []
    for view in range(12):
        sample = reader.read(tiny_frames.tokens[last], view)
        (before,) = sample.history
        gaps.append(last - tiny_frames.tokens.index(before.token))
        again = reader.read(tiny_frames.tokens[last], view).history[0]
        assert again is not None
        assert again.token == before.token
    assert set(gaps) == {1, 2}


@pytest.mark.parametrize("view", [0, 1, 2])
def test_depth_follows_the_pixels(tiny_frames: Frames, view: int) -> None:
    """Every depth pixel, taken back through the matrices, is a LiDAR point, to 1/32 and 1/256."""
    token = tiny_frames.tokens[0]
    sample = SampleReader(tiny_frames, INPUTS, AUGMENT, 0).read(token, view)
    canonical = SampleReader(tiny_frames, Inputs(num_sweeps=1), None, 0).read(token).points_P5
    assert canonical is not None
    assert sample.pixels_P5 is not None
    assert sample.image_aug_V33 is not None
    assert sample.intrinsics_V33 is not None
    assert sample.camera_to_lidar_V44 is not None
    points, image_aug = torch.from_numpy(sample.pixels_P5), torch.from_numpy(sample.image_aug_V33)
    depth_VHW = nearest_depths([points], image_aug[None], 1, (56, 96))[0].numpy()
    assert (depth_VHW > 0).sum() > 200
    for camera in range(6):
        to_camera = np.linalg.inv(sample.camera_to_lidar_V44[camera].astype(np.float64))
        to_pixel = sample.image_aug_V33[camera] @ sample.intrinsics_V33[camera]
        seen = transform_points(canonical[:, :3].astype(np.float64), to_camera)
        seen = seen[seen[:, 2] > 0.1]
        pixels = seen @ to_pixel.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        shown = seen @ sample.intrinsics_V33[camera].T
        shown = (np.abs(shown[:, :2] / shown[:, 2:] - [99.5, 55.5]) <= [99.98, 55.98]).all(1)
        for row, column in np.argwhere(depth_VHW[camera])[::20]:
            offset = np.abs(pixels - (column, row)).max(axis=1)
            depth = depth_VHW[camera, row, column]
            assert np.abs(seen[offset <= 0.52, 2] - depth).min() < 3e-3
            assert (seen[shown & (offset <= 0.48), 2] >= depth - 3e-3).all()


def test_collate_stacks_and_keeps_ragged_lists(tiny_frames: Frames) -> None:
    reader = SampleReader(tiny_frames, INPUTS, AUGMENT, 0, pixels=True)
    samples = [reader.read(token) for token in tiny_frames.tokens[:2]]
    batch = collate(samples)
    assert batch.tokens == tiny_frames.tokens[:2]
    assert batch.images_BVCHW is not None
    assert batch.images_BVCHW.shape == (2, 6, 3, 56, 96)
    assert batch.points is not None
    assert batch.labels is not None
    assert batch.pixels is not None
    moved = batch.to("meta")
    assert moved.pixels is not None
    assert all(own.is_meta for own in moved.pixels)
    for i, sample in enumerate(samples):
        np.testing.assert_array_equal(batch.pixels[i], sample.pixels_P5)
        np.testing.assert_array_equal(batch.points[i], sample.points_P5)
        np.testing.assert_array_equal(batch.labels.canonical_boxes[i], sample.canonical_boxes_N9)
        np.testing.assert_array_equal(batch.bev_aug_B44[i], sample.bev_aug_44)
    assert collate([SampleReader(tiny_frames, Inputs(), None, 0).read(batch.tokens[0])]).points is (
        None
    )


def _fields(batches: Sequence[Batch]) -> list[torch.Tensor]:
    tensors: list[torch.Tensor] = []
    for batch in batches:
        assert batch.images_BVCHW is not None
        assert batch.pixels is not None
        assert batch.points is not None
        assert batch.labels is not None
        tensors += [batch.images_BVCHW, batch.bev_aug_B44]
        tensors += [*batch.points, *batch.pixels, *batch.labels.boxes]
    return tensors


def test_workers_and_restarts_change_nothing(tiny_frames: Frames) -> None:
    source = FrameSource(SampleReader(tiny_frames, INPUTS, AUGMENT, 5))

    def steps(start: int, num_workers: int) -> list[Batch]:
        sampler = StepSampler(Epochs(np.ones(len(tiny_frames), np.int64), 5), 4, start, 4)
        return list(build_loader(source, sampler, LoaderConfig(num_workers=num_workers)))

    alone = steps(0, 0)
    for others in ([*alone[:2], *steps(2, 0)], steps(0, 2)):
        assert [b.tokens for b in others] == [b.tokens for b in alone]
        for a, b in zip(_fields(alone), _fields(others), strict=True):
            assert torch.equal(a, b)


def test_a_single_pass_reads_every_frame_once_in_order(tiny_frames: Frames) -> None:
    source = FrameSource(SampleReader(tiny_frames, Inputs(num_sweeps=1), None, 0))
    batches = list(build_loader(source, in_order(len(source), 4), LoaderConfig(num_workers=0)))
    assert [len(batch.tokens) for batch in batches] == [4, 2]
    assert [token for batch in batches for token in batch.tokens] == tiny_frames.tokens


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_vanished_is_one_clear_message(
    world_copy: Path, select: Select, num_workers: int
) -> None:
    frames = select(world_copy)
    lost = next((world_copy / "samples" / "CAM_BACK").iterdir())
    lost.unlink()
    source = FrameSource(SampleReader(frames, INPUTS, None, 0))
    with pytest.raises(DataError) as caught:
        list(build_loader(source, in_order(len(frames), 2), LoaderConfig(num_workers=num_workers)))
    assert str(caught.value).startswith(f"{lost}: missing image")
    assert "Traceback" not in str(caught.value)


def test_a_killed_worker_is_one_message(
    tiny_frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    source = FrameSource(SampleReader(tiny_frames, Inputs(num_sweeps=1), None, 0))
    loader = build_loader(source, in_order(len(source), 1) * 9, LoaderConfig(num_workers=1))
    batches = iter(loader)
    next(batches)
    assert loader._iterator is not None
    (worker,) = loader._iterator._workers
    os.kill(worker.pid, signal.SIGINT)  # Ctrl-C reaches the whole group, and is not its business
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(LoaderError) as caught:
        list(batches)
    told = str(caught.value)
    assert f"loader worker 0 of 1 (process {worker.pid}) was killed by SIGKILL" in told
    assert re.search(r"memory runs out\. It had used up to [1-9]\d*\.\d MB", told)
    assert "Lower loader.num_workers or loader.batch_size" in told
    assert "the same command goes on" in told


def test_too_small_a_shared_memory_is_found_at_the_first_batch(
    tiny_frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container has 64 MB unless asked for more; a full one makes workers die or hang."""
    source = FrameSource(SampleReader(tiny_frames, INPUTS, None, 0))
    size = sum(tensor.nbytes for tensor in tensors_of(source.collate([source[Key(0)]])))
    monkeypatch.setattr(workers, "free_shared", lambda: int(size * 3.5))
    batches = in_order(len(source), 1)
    with pytest.raises(LoaderError) as caught:
        list(build_loader(source, batches, LoaderConfig(num_workers=2)))
    told = str(caught.value)
    assert "4 of them are kept ready" in told
    assert "docker run --shm-size=1g" in told
    assert "loader.num_workers=0" in told
    assert len(list(build_loader(source, batches, LoaderConfig(num_workers=1)))) == len(batches)
    assert len(list(build_loader(source, batches, LoaderConfig(num_workers=0)))) == len(batches)


def test_shared_memory_that_others_have_filled_is_told_and_never_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(workers, "get_worker_info", lambda: SimpleNamespace(id=1))
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    loaded = Room(10**9, 4).hand_over(collate_of_nothing())
    assert isinstance(loaded.batch, LoaderError)
    assert "No space left on device" in str(loaded.batch)
    assert "--shm-size" in str(loaded.batch)


def collate_of_nothing() -> Batch:
    return Batch(tokens=["a"], bev_aug_B44=torch.eye(4)[None])


def test_every_tensor_of_a_batch_is_found(tiny_frames: Frames) -> None:
    """Those that are not counted would be handed over by the queue, which does not tell."""
    batch = collate([SampleReader(tiny_frames, INPUTS, AUGMENT, 0).read(tiny_frames.tokens[0])])
    known = {id(tensor) for tensor in tensors_of({"a": [batch]})}
    assert {id(t) for t in _fields([batch])} <= known
    assert batch.labels is not None
    assert {id(t) for t in batch.labels.canonical_boxes + batch.labels.classes} <= known


def test_workers_never_outlive_the_process_they_serve(
    tiny_frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each calls `end_with_parent`; `tests/test_processes.py` shows what that is worth."""
    called = []
    monkeypatch.setattr(workers, "end_with_parent", lambda: called.append("end"))
    monkeypatch.setattr(workers, "keep_freed_memory", lambda: called.append("memory"))
    threads = torch.get_num_threads()
    workers.begin(0)
    torch.set_num_threads(threads)
    assert sorted(called) == ["end", "memory"]
    source = FrameSource(SampleReader(tiny_frames, Inputs(num_sweeps=1), None, 0))
    loader = build_loader(source, in_order(1, 1), LoaderConfig(num_workers=1))
    assert isinstance(loader, Loader)
    assert loader.worker_init_fn is workers.begin


@pytest.mark.parametrize("worth", [0.0, 1e9])
def test_measuring_changes_no_batch_in_any_pass(
    tiny_frames: Frames,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    worth: float,
) -> None:
    monkeypatch.setattr("bevcask.data.loader._WORTH_STARTING", worth)
    monkeypatch.setattr("bevcask.data.loader.cores", lambda: 2)
    source = FrameSource(SampleReader(tiny_frames, Inputs(num_sweeps=1), AUGMENT, 0))
    batches = in_order(len(source), 1)
    measured = build_loader(source, batches, LoaderConfig())
    expected = [
        batch.tokens for batch in build_loader(source, batches, LoaderConfig(num_workers=0))
    ]
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert [batch.tokens for batch in measured] == expected
    workers_said = [r.message for r in caplog.records if "num_workers=auto" in r.message]
    assert len(workers_said) == 1  # said once
    assert workers_said[0].startswith(f"loader.num_workers=auto: {0 if worth else 1} of 2 cores")


def test_a_pass_too_short_to_measure_is_read_here(tiny_frames: Frames) -> None:
    source = FrameSource(SampleReader(tiny_frames, Inputs(num_sweeps=1), None, 0))
    loader = build_loader(source, in_order(2, 1), LoaderConfig())
    for _ in range(2):
        assert [batch.tokens[0] for batch in loader] == tiny_frames.tokens[:2]


def test_as_many_workers_as_keep_up() -> None:
    def many(load: float, step: float, num_cores: int = 16) -> int:
        return workers_for(load, step, 10_000, num_cores)

    assert many(1.6, 4.0) == 1
    assert many(1.6, 0.5) == 4  # 3.2, and what crowding costs
    assert many(1.6, 0.01) == 15  # never the last core
    assert many(1.6, 0.0) == 15
    assert many(1.6, 1.0, num_cores=1) == 0
    assert workers_for(1.6, 0.5, 6, 16) == 0  # under 10 s are left


def test_pinning_reaches_every_tensor_and_changes_none(
    tiny_frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA pins; here what would be pinned is counted."""
    seen: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = collate([SampleReader(tiny_frames, TWO_FRAMES, AUGMENT, 0).read(tiny_frames.tokens[4])])
    moved = Loaded(batch).pin_memory().batch
    assert isinstance(moved, Batch)
    assert moved.tokens == batch.tokens
    before, after = list(tensors_of(batch)), list(tensors_of(moved))
    assert len(seen) == len(before) == len(after) > 8
    for one, two in zip(before, after, strict=True):
        assert torch.equal(one, two)
        assert one.data_ptr() != two.data_ptr()


def test_workers_of_a_collected_loader_are_told_to_go(
    tiny_frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error's traceback makes such a cycle; torch then waited five seconds for each worker."""
    source = FrameSource(SampleReader(tiny_frames, Inputs(num_sweeps=1), None, 0))
    loader = build_loader(source, in_order(2, 1), LoaderConfig(num_workers=1))
    next(iter(loader))
    assert loader._iterator is not None
    (worker,) = loader._iterator._workers
    loader.itself = loader
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 20.0)
    began = time.monotonic()
    del loader
    gc.collect()
    assert time.monotonic() - began < 10
    assert not worker.is_alive()


ENDING = """
import atexit, sys
from bevcask.config import DatasetConfig, LoaderConfig
from bevcask.data.index.frames import Frames
from bevcask.data.loader import FrameSource, build_loader, in_order
from bevcask.data.samples import SampleReader
from bevcask.detectors.base import Inputs

frames = Frames.select(DatasetConfig(root=sys.argv[1], version="v1.0-synthetic", split="all"))
source = FrameSource(SampleReader(frames, Inputs(num_sweeps=1), None, 0))
loader = build_loader(source, in_order(2, 1), LoaderConfig(num_workers=2))
atexit.register(lambda: print([worker.is_alive() for worker in workers]))  # as torch's own hook
batches = iter(loader)
next(batches)
workers = loader._iterator._workers
"""


def test_workers_go_before_torch_waits_for_each(tiny_world: Path) -> None:
    """Pinned and persistent ones held the end of the process up for five seconds each."""
    done = subprocess.run(
        [sys.executable, "-c", ENDING, str(tiny_world)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[False, False]\n"

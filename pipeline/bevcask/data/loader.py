"""Samples and batches; knows no cache.

A sample's augmentation is a pure function of (seed, token, view), so a run that is resumed, or
loads with another number of workers, sees the same bytes.
"""

import multiprocessing
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bevcask.config import AugmentConfig
from bevcask.data.augment import Draw, draw, stream
from bevcask.data.images import load_image, normalise
from bevcask.data.index.frames import Frames
from bevcask.data.lidar import read_points
from bevcask.data.pixels import depth_maps, read_pixels
from bevcask.data.workers import PREFETCH, Loaded, Room, begin, lost
from bevcask.detectors.base import Batch, Inputs, Labels
from bevcask.errors import BevcaskError
from bevcask.geometry import transform_boxes, transform_points
from bevcask.processes import FORK_SERVER


class Key(NamedTuple):
    """What is read.

    Attributes:
        frame: index in the selection.
        view: which augmentation of it.
        after: index of the frame whose memory it goes on with; -1 begins anew.
    """

    frame: int
    view: int = 0
    after: int = -1


Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Replay:
    """Image augmentations of a frame that targets exist for: views 1 to `count`.

    A view's augmentation is that of the stream (`seed`, token, view), whoever draws it.
    """

    seed: int
    count: int

    def view(self, seed: int, token: str, epoch: int) -> int:
        """Return the view a student sees of a frame in an epoch."""
        return 1 + int(stream(seed, token, epoch, "view").integers(self.count))


@dataclass(frozen=True)
class Sample:
    """One frame as a detector wants it, numpy; fields as in `detectors.base.Batch`, unbatched.

    Attributes:
        boxes_N9: augmented ground truth, only boxes that hold a LiDAR or radar point; None without
            labels.
        classes_N: their classes.
        canonical_boxes_N9: the same boxes before BEV augmentation.
        view: which replayed view the images show; 0 where nothing is replayed.
        seconds: time of the keyframe.
        lidar_to_global_44: float64.
        after: token of the frame whose memory it goes on with.
        history: earlier keyframes, oldest first; see `Batch.history`.
    """

    token: str
    bev_aug_44: Floats
    images_VCHW: Floats | None = None
    intrinsics_V33: Floats | None = None
    image_aug_V33: Floats | None = None
    camera_to_lidar_V44: Floats | None = None
    points_P5: Floats | None = None
    depth_VHW: Floats | None = None
    pixels_P5: Floats | None = None
    boxes_N9: Floats | None = None
    classes_N: npt.NDArray[np.int64] | None = None
    canonical_boxes_N9: Floats | None = None
    view: int = 0
    seconds: float = 0.0
    lidar_to_global_44: npt.NDArray[np.float64] | None = None
    after: str | None = None
    history: tuple["Sample", ...] = ()


class SampleReader:
    """Reads frames from disk for one detector.

    Args:
        frames: the selection tokens come from.
        inputs: what the detector wants.
        augment: ranges of the augmentation; None reads clean samples.
        seed: of the augmentation.
        replay: images are augmented as one of these views; the BEV stays free.
        pixels: also read the keyframe's points in its images, with the boxes that hold them.
    """

    def __init__(
        self,
        frames: Frames,
        inputs: Inputs,
        augment: AugmentConfig | None,
        seed: int,
        replay: Replay | None = None,
        pixels: bool = False,
    ) -> None:
        self.frames = frames
        self.inputs = inputs
        self.augment = augment
        self.seed = seed
        self.replay = replay
        self.pixels = pixels

    def without_depth(self) -> "SampleReader":
        """Return a reader that draws no depth maps."""
        inputs = replace(self.inputs, depth=False)
        return SampleReader(self.frames, inputs, self.augment, self.seed, self.replay, self.pixels)

    def at(self, key: Key, frames: Frames) -> Sample:
        """Read the frame of a key of a selection; see `read`."""
        sample = self.read(frames.tokens[key.frame], key.view)
        return sample if key.after < 0 else replace(sample, after=frames.tokens[key.after])

    def read(self, token: str, view: int = 0) -> Sample:
        """Read one frame under its augmentation `view`.

        Raises:
            DataError: a file is missing, truncated or of the wrong size; the file is named.
        """
        index, row = self.frames.index, self.frames.row(token)
        sizes = [(int(h), int(w)) for h, w in index["frame_image_size"][row]]
        drawn = draw(self.augment, self.seed, token, view, sizes, self.inputs.image_size_HW)
        replayed = 0
        if self.replay is not None:
            replayed = self.replay.view(self.seed, token, view)
            seen = draw(
                self.augment, self.replay.seed, token, replayed, sizes, self.inputs.image_size_HW
            )
            drawn = replace(drawn, images=seen.images)
        history = self._window(row, drawn) if self.inputs.memory else self._earlier(row, drawn)
        return Sample(
            token=token,
            view=replayed,
            pixels_P5=read_pixels(self.frames, token, boxes=True) if self.pixels else None,
            history=history,
            after=history[-1].token if history and self.inputs.memory else None,
            **self._sensed(row, drawn),
            **self._depth(token, drawn),
            **self._labels(token, drawn),
        )

    def _sensed(self, row: int, drawn: Draw) -> dict[str, Any]:
        """Return what the sensors saw of a frame, when and where."""
        index = self.frames.index
        return {
            "bev_aug_44": drawn.bev_aug.astype(np.float32),
            "points_P5": self._points(bytes(index["frame_token"][row]).hex(), drawn),
            "seconds": float(index["frame_time"][row]) * 1e-6,
            "lidar_to_global_44": np.asarray(index["frame_lidar_to_global"][row]),
            **self._cameras(row, drawn),
        }

    def _window(self, row: int, drawn: Draw) -> tuple[Sample, ...]:
        """Read the keyframes before one, oldest first, each a frame of its own.

        All share one augmentation. Where the scene begins later than the window, its first frame
        stands in, and begins anew each time it is shown.
        """
        index = self.frames.index
        rows = [self.frames.previous_row(row, gap) for gap in range(self.inputs.history, 0, -1)]
        window: list[Sample] = []
        for place, earlier in enumerate(rows):
            goes_on = place > 0 and rows[place - 1] != earlier
            sample = Sample(
                token=bytes(index["frame_token"][earlier]).hex(), **self._sensed(earlier, drawn)
            )
            window.append(replace(sample, after=window[-1].token if goes_on else None))
        return tuple(window)

    def _earlier(self, row: int, drawn: Draw) -> tuple[Sample, ...]:
        """Read the images of an earlier keyframe under the same image augmentation."""
        if not self.inputs.history:
            return ()
        index = self.frames.index
        earlier = self.frames.previous_row(row, drawn.frame_gap)
        to_global = index["frame_lidar_to_global"]
        motion = np.linalg.inv(to_global[row]) @ to_global[earlier]
        earlier_sample = Sample(
            token=bytes(index["frame_token"][earlier]).hex(),
            bev_aug_44=(drawn.bev_aug @ motion).astype(np.float32),
            **self._cameras(earlier, drawn),
        )
        return (earlier_sample,)

    def _points(self, token: str, drawn: Draw) -> Floats | None:
        if not self.inputs.num_sweeps:
            return None
        points = read_points(self.frames, token, self.inputs.num_sweeps, self.inputs)
        return points if self.augment is None else transform_points(points, drawn.bev_aug)

    def _cameras(self, row: int, drawn: Draw) -> dict[str, Any]:
        if self.inputs.image_size_HW is None:
            return {}
        index = self.frames.index
        images_VCHW = np.empty((len(drawn.images), 3, *self.inputs.image_size_HW), np.float32)
        for camera, transform in enumerate(drawn.images):
            path = self.frames.root / index["frame_image"][row, camera].decode()
            height, width = index["frame_image_size"][row, camera]
            image = load_image(path, (int(height), int(width)), transform)
            normalise(image, images_VCHW[camera])
        intrinsics_V33 = index["calibration_intrinsics"][index["frame_calibration"][row, 1:]]
        return {
            "images_VCHW": images_VCHW,
            "intrinsics_V33": intrinsics_V33.astype(np.float32),
            "image_aug_V33": _matrices(drawn).astype(np.float32),
            "camera_to_lidar_V44": index["frame_camera_to_lidar"][row].astype(np.float32),
        }

    def _depth(self, token: str, drawn: Draw) -> dict[str, Any]:
        if self.inputs.image_size_HW is None or not self.inputs.depth:
            return {}
        seen = read_pixels(self.frames, token, boxes=False)
        image_aug_V33 = _matrices(drawn).astype(np.float32)
        return {"depth_VHW": depth_maps(seen, image_aug_V33, self.inputs.image_size_HW)}

    def _labels(self, token: str, drawn: Draw) -> dict[str, Any]:
        if not self.frames.has_labels:
            return {}
        boxes, classes, _ = self.frames.labels(token)
        seen = self.frames.seen(token)
        canonical = boxes[seen]
        moved = canonical if self.augment is None else transform_boxes(canonical, drawn.bev_aug)
        return {"boxes_N9": moved, "classes_N": classes[seen], "canonical_boxes_N9": canonical}


def _matrices(drawn: Draw) -> npt.NDArray[np.float64]:
    """Return original pixel -> network pixel of each camera, (V, 3, 3)."""
    return np.stack([transform.matrix() for transform in drawn.images])


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch of tensors on the host."""

    def stack(name: str) -> Tensor | None:
        arrays = [getattr(sample, name) for sample in samples]
        return None if arrays[0] is None else torch.from_numpy(np.stack(arrays))

    def each(name: str) -> list[Tensor]:
        return [torch.from_numpy(getattr(sample, name)) for sample in samples]

    first = samples[0]
    poses = [s.lidar_to_global_44 for s in samples if s.lidar_to_global_44 is not None]
    labels = None
    if first.boxes_N9 is not None:
        labels = Labels(each("boxes_N9"), each("classes_N"), each("canonical_boxes_N9"))
    return Batch(
        tokens=[sample.token for sample in samples],
        bev_aug_B44=torch.from_numpy(np.stack([sample.bev_aug_44 for sample in samples])),
        images_BVCHW=stack("images_VCHW"),
        intrinsics_BV33=stack("intrinsics_V33"),
        image_aug_BV33=stack("image_aug_V33"),
        camera_to_lidar_BV44=stack("camera_to_lidar_V44"),
        points=None if first.points_P5 is None else each("points_P5"),
        depth_BVHW=stack("depth_VHW"),
        pixels=None if first.pixels_P5 is None else each("pixels_P5"),
        labels=labels,
        seconds_B=torch.tensor([sample.seconds for sample in samples], dtype=torch.float64),
        lidar_to_global_B44=torch.from_numpy(np.stack(poses)) if poses else None,
        after=[sample.after for sample in samples],
        history=tuple(map(collate, zip(*(sample.history for sample in samples), strict=True))),
    )


SampleT = TypeVar("SampleT")
BatchT = TypeVar("BatchT")
StackedT_co = TypeVar("StackedT_co", covariant=True)


class Source(Protocol[SampleT, StackedT_co]):
    """What `Loader` reads from: keyed samples and a way to stack them. Must pickle."""

    def __getitem__(self, key: Key) -> SampleT: ...

    def collate(self, samples: Sequence[SampleT]) -> StackedT_co: ...


class FrameSource:
    """Plain batches of one reader: what a teacher, or an evaluation, loads."""

    def __init__(self, reader: SampleReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader.frames)

    def __getitem__(self, key: Key) -> Sample:
        return self.reader.at(key, self.reader.frames)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return collate(samples)


class ViewSource(FrameSource):
    """Clean frames as view 0, and replayable views of them from a second reader."""

    def __init__(self, clean: SampleReader, views: SampleReader) -> None:
        super().__init__(clean)
        self.views = views

    def __getitem__(self, key: Key) -> Sample:
        return (self.views if key.view else self.reader).at(key, self.reader.frames)

    def read(self, token: str, view: int) -> Sample:
        """Read one frame as the teacher saw it; errors as of `SampleReader.read`."""
        return (self.views if view else self.reader).read(token, view)


class _Guard(Generic[SampleT, BatchT]):
    """Runs in the worker: a bevcask error becomes a value, so that its text stays one message."""

    def __init__(self, source: Source[SampleT, BatchT], room: Room) -> None:
        self.source = source
        self.room = room

    def __getitems__(self, keys: list[Key]) -> Loaded[BatchT]:
        try:
            batch = self.source.collate([self.source[key] for key in keys])
        except BevcaskError as error:
            return Loaded(error)
        return self.room.hand_over(batch)


class Loader(DataLoader[Any], Generic[BatchT]):
    """A DataLoader over listed batches that raises worker errors as they were raised."""

    def __iter__(self) -> Iterator[BatchT]:  # type: ignore[override]
        loaded: Iterator[Loaded[BatchT]] = super().__iter__()
        peaks: dict[int, int] = {}
        while True:
            try:
                found = next(loaded)
            except StopIteration:
                return
            except (RuntimeError, EOFError, OSError) as error:  # how torch meets a worker's end
                told = lost(getattr(loaded, "_workers", ()), peaks)
                if told is None:
                    raise
                raise told from error
            if isinstance(found.batch, BevcaskError):
                raise found.batch
            if found.worker is not None:
                peaks[found.worker] = found.peak
            yield found.batch


def build_loader(
    source: Source[SampleT, BatchT],
    batches: Collection[list[Key]],
    num_workers: int,
) -> Loader[BatchT]:
    """Return a loader that yields one stacked batch per list of keys, in order.

    Args:
        source: `FrameSource` or `join.JoinedDataset`.
        batches: keys of each batch; `sampling.StepSampler` for training, `in_order` for one pass.
        num_workers: processes; 0 reads in this one. Workers come from a fork server, so threads and
            CUDA contexts of this process are never forked, and stay for later passes.
    """
    workers: dict[str, Any] = {}
    if num_workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([FORK_SERVER, "bevcask.data.join"])
        workers = {
            "multiprocessing_context": context,
            "persistent_workers": True,
            "prefetch_factor": PREFETCH,
            "worker_init_fn": begin,
        }
    guard: Any = _Guard(source, Room.of(num_workers, len(batches)))
    unpacked: Callable[[Any], Any] = _as_is
    return Loader(
        guard, batch_sampler=batches, num_workers=num_workers, collate_fn=unpacked, **workers
    )


def in_order(num_frames: int, batch_size: int) -> list[list[Key]]:
    """Return the batches of one pass over a selection, view 0, last one short.

    >>> [[key.frame for key in batch] for batch in in_order(3, 2)]
    [[0, 1], [2]]
    """
    starts = range(0, num_frames, batch_size)
    return [[Key(i) for i in range(s, min(s + batch_size, num_frames))] for s in starts]


def _as_is(batch: BatchT) -> BatchT:
    return batch

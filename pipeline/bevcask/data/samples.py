"""One frame as a detector wants it, read from disk; and batches of them. Knows no cache.

A sample's augmentation is a pure function of (seed, token, view), so a run that is resumed, or
loads with another number of workers, sees the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bevcask.config import AugmentConfig
from bevcask.data.augment import Draw, draw, stream, window_gaps
from bevcask.data.can_bus import CanBus
from bevcask.data.images import load_image, to_planes
from bevcask.data.index.frames import Frames
from bevcask.data.lidar import Scans, read_points
from bevcask.data.pixels import read_pixels
from bevcask.detectors.base import Batch, Inputs, Labels
from bevcask.errors import ConfigError
from bevcask.geometry import transform_boxes, transform_points

Floats = npt.NDArray[np.float32]


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
        can_bus_18: float64, see `data.can_bus`; None where the detector asks for none.
        after: token of the frame whose memory it goes on with.
        history: earlier keyframes, oldest first; see `Batch.history`.
    """

    token: str
    bev_aug_44: Floats
    images_VCHW: npt.NDArray[np.uint8] | Floats | None = None
    shown_HW: npt.NDArray[np.bool_] | None = None
    intrinsics_V33: Floats | None = None
    image_aug_V33: Floats | None = None
    camera_to_lidar_V44: Floats | None = None
    points_P5: Floats | None = None
    pixels_P5: Floats | None = None
    boxes_N9: Floats | None = None
    classes_N: npt.NDArray[np.int64] | None = None
    canonical_boxes_N9: Floats | None = None
    view: int = 0
    seconds: float = 0.0
    lidar_to_global_44: npt.NDArray[np.float64] | None = None
    can_bus_18: npt.NDArray[np.float64] | None = None
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
        pixels: read the keyframe's points in its images, with the boxes that hold them, whether or
            not the detector asks for them.
        scans: keeps LiDAR scans from sample to sample; None keeps them within one.

    Raises:
        ConfigError: images are to be turned, and the frames' resampling does not turn any.
    """

    def __init__(
        self,
        frames: Frames,
        inputs: Inputs,
        augment: AugmentConfig | None,
        seed: int,
        replay: Replay | None = None,
        pixels: bool = False,
        scans: Scans | None = None,
    ) -> None:
        if frames.resampling == "pillow" and augment is not None and augment.image_rotation:
            raise ConfigError(
                f"augment.image_rotation={augment.image_rotation}: dataset.resampling=pillow "
                "resizes, crops and mirrors as releases without rotation do. Say "
                "augment.image_rotation=0, or dataset.resampling=fast."
            )
        self.frames = frames
        self.inputs = inputs
        self.augment = augment
        self.seed = seed
        self.replay = replay
        self.pixels = pixels
        self.scans = scans or Scans()
        self._can_bus = CanBus(frames.index) if inputs.can_bus else None

    def without_depth(self) -> "SampleReader":
        """Return a reader that leaves depth to points from elsewhere."""
        inputs = replace(self.inputs, depth=False)
        own = self.augment, self.seed, self.replay, self.pixels, self.scans
        return SampleReader(self.frames, inputs, *own)

    def at(self, key: Key, frames: Frames) -> Sample:
        """Read the frame of a key of a selection; see `read`."""
        sample = self.read(frames.tokens[key.frame], key.view)
        return sample if key.after < 0 else replace(sample, after=frames.tokens[key.after])

    def read(self, token: str, view: int = 0) -> Sample:
        """Read one frame under its augmentation `view`.

        Raises:
            DataError: a file is missing, truncated or of the wrong size; the file is named.
        """
        row = self.frames.row(token)
        replayed = 0 if self.replay is None else self.replay.view(self.seed, token, view)
        drawn = self._drawn(row, view, replayed)
        if self.inputs.memory:
            history = self._window(row, drawn, view, replayed)
        else:
            history = self._earlier(row, drawn)
        goes_on = bool(history) and self.inputs.memory and history[-1].token != token
        return Sample(
            token=token,
            view=replayed,
            pixels_P5=self._pixels(token),
            history=history,
            after=history[-1].token if goes_on else None,
            **self._sensed(row, drawn),
            **self._labels(row, drawn),
        )

    def _drawn(self, row: int, view: int, replayed: int) -> Draw:
        """Return a frame's augmentation `view`, with the images of a replayed view if any."""
        index = self.frames.index
        sizes = [(int(h), int(w)) for h, w in index["frame_image_size"][row]]
        token = bytes(index["frame_token"][row]).hex()
        way = sizes, self.inputs.image_size_HW, self.frames.resampling
        drawn = draw(self.augment, self.seed, token, view, *way)
        if self.replay is None:
            return drawn
        seen = draw(self.augment, self.replay.seed, token, replayed, *way)
        return replace(
            seen, bev_aug=drawn.bev_aug, frame_gap=drawn.frame_gap, dropped=drawn.dropped
        )

    def _sensed(self, row: int, drawn: Draw) -> dict[str, Any]:
        """Return what the sensors saw of a frame, when and where."""
        index = self.frames.index
        return {
            "bev_aug_44": drawn.bev_aug.astype(np.float32),
            "points_P5": self._points(bytes(index["frame_token"][row]).hex(), drawn),
            "seconds": float(index["frame_time"][row]) * 1e-6,
            "lidar_to_global_44": np.asarray(index["frame_lidar_to_global"][row]),
            "can_bus_18": None if self._can_bus is None else self._can_bus.values(row),
            **self._cameras(row, drawn),
        }

    def _window(self, row: int, drawn: Draw, view: int, replayed: int) -> tuple[Sample, ...]:
        """Read the keyframes before one, oldest first, each a frame of its own.

        All share one augmentation, unless more than one frame is trained: then each has its own, as
        if it were read alone, and those that are trained their labels. Where the scene begins later
        than the window, its first frame stands in, and begins anew each time it is shown, as it
        does when it is the frame itself.
        """
        index = self.frames.index
        gaps = window_gaps(self.inputs.gaps, drawn.dropped)
        rows = [self.frames.previous_row(row, gap) for gap in gaps]
        window: list[Sample] = []
        trained = self.inputs.trained - 1
        for place, earlier in enumerate(rows):
            goes_on = place > 0 and rows[place - 1] != earlier
            own = self._drawn(earlier, view, replayed) if trained else drawn
            labels = {}
            if place >= len(rows) - trained:
                labels = self._labels(earlier, own)
            else:
                own = replace(own, grid_mask=None)  # released code masks the frames it trains
            token = bytes(index["frame_token"][earlier]).hex()
            sample = Sample(token=token, **self._sensed(earlier, own), **labels)
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
        points = read_points(self.frames, token, self.inputs.num_sweeps, self.inputs, self.scans)
        if self.augment is not None:
            points[:, :3] = transform_points(points[:, :3], drawn.bev_aug)
        return points

    def _cameras(self, row: int, drawn: Draw) -> dict[str, Any]:
        if self.inputs.image_size_HW is None:
            return {}
        index = self.frames.index
        size_HW = self.inputs.image_size_HW
        kind = np.float32 if drawn.colours else np.uint8
        images_VCHW: npt.NDArray[Any] = np.empty((len(drawn.images), 3, *size_HW), kind)
        for camera, transform in enumerate(drawn.images):
            path = self.frames.root / index["frame_image"][row, camera].decode()
            height, width = index["frame_image_size"][row, camera]
            image = load_image(path, (int(height), int(width)), transform, self.frames.resampling)
            coloured = drawn.colours[camera].apply(image) if drawn.colours else image
            to_planes(coloured, images_VCHW[camera])
        intrinsics_V33 = index["calibration_intrinsics"][index["frame_calibration"][row, 1:]]
        return {
            "images_VCHW": images_VCHW,
            "shown_HW": None if drawn.grid_mask is None else drawn.grid_mask.at(size_HW),
            "intrinsics_V33": intrinsics_V33.astype(np.float32),
            "image_aug_V33": _matrices(drawn).astype(np.float32),
            "camera_to_lidar_V44": index["frame_camera_to_lidar"][row].astype(np.float32),
        }

    def _pixels(self, token: str) -> Floats | None:
        if not (self.pixels or self.inputs.depth):
            return None
        return read_pixels(self.frames, token, self.pixels, self.scans)

    def _labels(self, row: int, drawn: Draw) -> dict[str, Any]:
        if not self.frames.has_labels:
            return {}
        index = self.frames.index
        part = slice(*(int(end) for end in index["frame_box"][row : row + 2]))
        seen, classes = index.seen(part), np.array(index["box_class"][part])
        canonical = np.array(index["box_values"][part])[seen]
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
        shown_BHW=_masks(samples),
        intrinsics_BV33=stack("intrinsics_V33"),
        image_aug_BV33=stack("image_aug_V33"),
        camera_to_lidar_BV44=stack("camera_to_lidar_V44"),
        points=None if first.points_P5 is None else each("points_P5"),
        pixels=None if first.pixels_P5 is None else each("pixels_P5"),
        labels=labels,
        seconds_B=torch.tensor([sample.seconds for sample in samples], dtype=torch.float64),
        lidar_to_global_B44=torch.from_numpy(np.stack(poses)) if poses else None,
        can_bus_B18=stack("can_bus_18"),
        after=[sample.after for sample in samples],
        history=tuple(map(collate, zip(*(sample.history for sample in samples), strict=True))),
    )


def _masks(samples: Sequence[Sample]) -> Tensor | None:
    """Return the masks of a batch, bool (B, H, W); None where no sample has one."""
    masks = [sample.shown_HW for sample in samples]
    size_HW = next((mask.shape for mask in masks if mask is not None), None)
    if size_HW is None:
        return None
    whole_HW = np.ones(size_HW, np.bool_)
    return torch.from_numpy(np.stack([whole_HW if mask is None else mask for mask in masks]))

"""Boxes by sample token: from a detector, or from the boxes a cache holds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from bevcask.cache.reader import Cache
from bevcask.config import LoaderConfig
from bevcask.data.index.frames import Frames
from bevcask.data.lanes import in_lanes
from bevcask.data.loader import AnyLoader, FrameSource, build_loader, in_order
from bevcask.data.samples import SampleReader
from bevcask.detectors.base import Batch, Detections, Detector, Inputs, Output
from bevcask.detectors.memory import Stream
from bevcask.errors import PlanError
from bevcask.progress import Ticker
from bevcask.targets.plan import BOXES

Watch = Callable[[Batch, Output, Sequence[Detections]], None]


def detect(
    detector: Detector,
    batches: Iterable[Batch],
    device: torch.device,
    bar: Ticker | None = None,
    watch: Watch | None = None,
) -> dict[str, Detections]:
    """Run a detector over clean batches in evaluation mode; the mode of every part is restored.

    What it remembers is carried from batch to batch.

    Args:
        detector: already on `device`.
        batches: canonical frame, on the host; see `frame_batches`.
        device: where it runs.
        bar: moved by one a frame.
        watch: shown each batch, what the detector said of it and the boxes of its samples.

    Returns:
        Boxes on the host by token, canonical LIDAR_TOP frame.
    """
    modes = [(module, module.training) for module in detector.modules()]
    detector.eval()
    found: dict[str, Detections] = {}
    stream = Stream()
    with torch.inference_mode():
        for batch in batches:
            output = stream.show(detector, batch.to(device))
            boxes = detector.decode(output)
            if watch is not None:
                watch(batch, output, boxes)
            found |= dict(zip(batch.tokens, (on_host(b) for b in boxes), strict=True))
            if bar is not None:
                bar.advance(len(batch.tokens))
    for module, training in modes:
        module.training = training
    return found


def frame_batches(
    frames: Frames,
    inputs: Inputs,
    config: LoaderConfig,
    device: torch.device | None = None,
    part: tuple[int, int] = (0, 1),
) -> AnyLoader[Batch]:
    """Return a loader of every frame once, without augmentation: in order, or scenes in lanes.

    Args:
        frames: the frames.
        inputs: what is loaded of each.
        config: of the loader.
        device: where batches go.
        part: this one of so many loaders that share the batches, or the scenes, from 0.
    """
    number, count = part
    inputs = replace(inputs.frame_by_frame(), depth=False)
    reader = SampleReader(frames, inputs, augment=None, seed=0)
    batches = (
        list(in_lanes(frames.scene_ranges[number::count], config.batch_size))
        if inputs.memory
        else in_order(len(frames), config.batch_size)[number::count]
    )
    return build_loader(FrameSource(reader), batches, config, device)


def on_host(detections: Detections) -> Detections:
    """Return the boxes in main memory."""
    return Detections(
        detections.boxes_N9.cpu(), detections.scores_N.cpu(), detections.classes_N.cpu()
    )


def cached_boxes(
    cache: Cache, tokens: Iterable[str], bar: Ticker | None = None
) -> Mapping[str, Detections]:
    """Return the teacher's boxes of these tokens.

    Raises:
        PlanError: the cache holds no boxes.
        TokenNotCachedError: a token has no row.
    """
    if BOXES not in cache.specs:
        raise PlanError(
            f"cache {cache.url} has no {BOXES}: it was made by a teacher without boxes and cannot "
            f"be scored. It holds {', '.join(cache.specs)}."
        )
    found = {}
    for token in tokens:
        stored = cache.read(token, [BOXES])[BOXES]
        assert stored.count is not None
        rows_N11 = torch.from_numpy(stored.values[: int(stored.count)])
        found[token] = Detections(rows_N11[:, :9], rows_N11[:, 9], rows_N11[:, 10].long())
        if bar is not None:
            bar.advance()
    return found

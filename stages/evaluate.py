"""evaluate: official nuScenes mAP and NDS of a detector, or of the boxes in a cache."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bevcask.cache.reader import open_cache
from bevcask.catalog import resolve
from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.data.presence import readable_frames
from bevcask.detectors.base import Detections
from bevcask.errors import ConfigError
from bevcask.evaluation.detect import cached_boxes, detect, frame_batches
from bevcask.evaluation.nuscenes import Evaluation, require_tables, split_size
from bevcask.evaluation.report import score_report
from bevcask.progress import progress_bar
from bevcask.provenance import pick_device
from bevcask.training.checkpoint import open_detector
from bevcask.training.identity import check_classes, check_dataset, frames_of
from bevcask.training.record import write_json
from bevcask.verbs import EvaluateConfig

render = score_report


@dataclass(frozen=True)
class Boxes:
    """What is scored.

    Attributes:
        of: who said it, for people.
        dataset: the selection.
        frames: the frames of the selection that have boxes.
        detections: by token.
    """

    of: str
    dataset: DatasetConfig
    frames: Frames
    detections: Mapping[str, Detections]


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Score exactly the selected frames.

    Returns:
        mAP, NDS, the five errors, `per_class`, `coverage` (`partial: 8 of 24 frames` where the
        split has more), what was scored. Also written to `run/evaluation.json` (`metrics.json` is
        a training's), beside a nuScenes submission.

    Raises:
        ConfigError: neither or both of a cache and a checkpoint; an info file instead of tables.
        CacheIdentityError: the cache is of another dataset or class order.
        CacheIncompleteError: the cache is not sealed.
        CheckpointError: the checkpoint is missing or belongs to another architecture.
    """
    if (config.cache is None) == (config.student.checkpoint is None):
        raise ConfigError(
            "evaluate scores either a detector or a cache: give student.checkpoint=FILE (and "
            "student=NAME), or cache=URL."
        )
    boxes = detector_boxes(config) if config.cache is None else boxes_of_cache(config, config.cache)
    folder = Path(config.run)
    scores = Evaluation(boxes.frames, split_size(boxes.dataset)).score(
        boxes.detections, folder / "nuscenes"
    )
    result = {
        **scores,
        "of": boxes.of,
        "dataset": f"{boxes.dataset.version} {boxes.dataset.split}",
        "metrics": str(folder / "evaluation.json"),
    }
    write_json(folder / "evaluation.json", result)
    return result


def detector_boxes(config: EvaluateConfig) -> Boxes:
    """Run a detector over the selected frames."""
    require_tables(config.dataset.infos)
    device = pick_device(config.device)
    plugin, own, detector = open_detector(config.student, config.trust_code)
    inputs = replace(plugin.inputs(own), depth=False)
    frames = readable_frames(Frames.select(config.dataset), inputs, "dataset")
    loader = frame_batches(frames, plugin.inputs(own), config.loader)
    with progress_bar("evaluate", len(frames)) as bar:
        found = detect(detector.to(device), loader, device, bar)
    return Boxes(str(config.student.checkpoint), config.dataset, frames, found)


def boxes_of_cache(config: EvaluateConfig, name: str) -> Boxes:
    """Read the teacher's boxes; dataset keys not given are those of the extraction."""
    url = resolve("cache", name)
    cache = open_cache(url)
    dataset = config.dataset.over(cache.plan.get("dataset", {}))
    require_tables(dataset.infos)
    check_classes(cache)
    check_dataset(cache, dataset, annotations=False)
    frames = frames_of(dataset, cache)
    with progress_bar("read boxes", len(frames)) as bar:
        found = cached_boxes(cache, frames.tokens, bar)
    return Boxes(f"cache {url} {cache.id[:12]}", dataset, frames, found)

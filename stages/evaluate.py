"""evaluate: official nuScenes mAP and NDS of a detector, or of the boxes in a cache."""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bevcask.cache.reader import open_cache
from bevcask.catalog import resolve
from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.data.presence import readable_frames
from bevcask.detectors.base import Detections, Inputs
from bevcask.errors import ConfigError
from bevcask.evaluation.detect import cached_boxes, detect, frame_batches
from bevcask.evaluation.nuscenes import (
    SUBMISSION,
    Evaluation,
    Sense,
    coverage,
    require_tables,
    senses,
    split_size,
    submit,
)
from bevcask.evaluation.report import score_report
from bevcask.outputs import output_folder
from bevcask.progress import progress_bar
from bevcask.provenance import pick_device
from bevcask.targets.plan import BOXES
from bevcask.targets.spec import TapInfo
from bevcask.training.checkpoint import open_detector
from bevcask.training.identity import check_classes, check_dataset, frames_of
from bevcask.training.record import write_json
from bevcask.verbs import EvaluateConfig, ExpectConfig, ExtractConfig

render = score_report
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Boxes:
    """What is scored; nothing is detected or read yet.

    Attributes:
        of: who says it, for people.
        dataset: the selection.
        frames: the frames of the selection that have boxes.
        uses: what they are found with.
        find: finds them, by token.
    """

    of: str
    dataset: DatasetConfig
    frames: Frames
    uses: Collection[Sense]
    find: Callable[[], Mapping[str, Detections]]


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Score exactly the selected frames.

    Returns:
        mAP, NDS, the five errors, `per_class`, `absent_classes`, `coverage` (`partial: 8 of 24
        frames` where the split has more), what was scored. Also written to `run/evaluation.json`
        (`metrics.json` is a training's), beside a nuScenes submission. A split without annotations
        (v1.0-test) has no scores. With `expect.map`: `expected`, and `ok`, whether it is reached.

    Raises:
        ConfigError: neither or both of a cache and a checkpoint; an info file instead of tables;
            something is expected where nothing can be scored; a cache of a teacher that was given
            the labels.
        CacheIdentityError: the cache is of another dataset or class order.
        CacheIncompleteError: the cache is not sealed.
        CheckpointError: the checkpoint is missing or belongs to another architecture.
        DataError: a file of these frames is missing.
    """
    if (config.cache is None) == (config.student.checkpoint is None):
        raise ConfigError(
            "evaluate scores either a detector or a cache: give one of student.checkpoint=FILE "
            "(and student=NAME) and cache=URL; "
            f"{'none' if config.cache is None else 'both'} is given."
        )
    folder = output_folder("run", config.run)
    boxes = detector_boxes(config) if config.cache is None else boxes_of_cache(config, config.cache)
    require_scores(config.expect, boxes.frames)
    result = {
        **expected(judge(boxes, folder / "nuscenes"), config.expect),
        "of": boxes.of,
        "dataset": f"{boxes.dataset.version} {boxes.dataset.split}",
        "resampling": boxes.dataset.resampling,
        "submission": str(folder / "nuscenes" / SUBMISSION),
        "metrics": str(folder / "evaluation.json"),
    }
    write_json(folder / "evaluation.json", result)
    return result


def require_scores(expect: ExpectConfig, frames: Frames) -> None:
    """Refuse to expect a score of frames that cannot be scored.

    Raises:
        ConfigError: they have no annotations, or come from an info file.
    """
    if expect.map is None:
        return
    require_tables(frames.index.infos)
    if not frames.has_labels:
        raise ConfigError(
            f"expect.map={expect.map:g}: {frames.root / frames.version} has no annotations to "
            "score against. Choose a version and split with ground truth, or leave expect.map out."
        )


def expected(scores: Mapping[str, Any], expect: ExpectConfig) -> dict[str, Any]:
    """Return scores, and whether they are what was expected, if something was."""
    if expect.map is None:
        return dict(scores)
    reached = scores["mAP"] >= expect.map
    if not reached:
        _log.error("mAP is %.4f, expected at least %g", scores["mAP"], expect.map)
    return {**scores, "expected": {"map": expect.map}, "ok": reached}


def expected_of_cache(config: ExtractConfig, url: str) -> dict[str, Any]:
    """Score the boxes of a cache that was just filled; see `expected`."""
    asked = EvaluateConfig(cache=url, dataset=config.dataset)
    with TemporaryDirectory() as folder:
        return expected(judge(boxes_of_cache(asked, url), Path(folder)), config.expect)


def judge(boxes: Boxes, folder: Path) -> dict[str, Any]:
    """Find the boxes and score them; where there is nothing to score against, only submit them."""
    total = split_size(boxes.dataset)
    if not boxes.frames.has_labels:
        _log.warning(
            "%s has no annotations: nothing is scored, the boxes are written as a submission.",
            boxes.frames.root / boxes.frames.version,
        )
        submit(boxes.find(), boxes.frames, folder, boxes.uses)
        return {"coverage": coverage(len(boxes.frames), total)}
    evaluation = Evaluation(boxes.frames, total)
    scores = evaluation.score(boxes.find(), folder, boxes.uses)
    if scores["absent_classes"]:
        _log.warning(
            "none of the scored frames holds %s: an AP of 0 counts for each in mAP and NDS.",
            ", ".join(scores["absent_classes"]),
        )
    return scores


def detector_boxes(config: EvaluateConfig) -> Boxes:
    """Open a detector for the selected frames."""
    require_tables(config.dataset.infos)
    device = pick_device(config.device)
    plugin, own, detector = open_detector(config.student, config.trust_code)
    inputs = replace(plugin.inputs(own), depth=False)
    frames = readable_frames(Frames.select(config.dataset), inputs, "dataset")

    def find() -> Mapping[str, Detections]:
        loader = frame_batches(frames, inputs, config.loader, device)
        with progress_bar("evaluate", len(frames)) as bar:
            return detect(detector.to(device), loader, device, bar)

    return Boxes(str(config.student.checkpoint), config.dataset, frames, senses(inputs), find)


def boxes_of_cache(config: EvaluateConfig, name: str) -> Boxes:
    """Open the teacher's boxes; dataset keys not given are those of the extraction."""
    url = resolve("cache", name)
    cache = open_cache(url)
    dataset = config.dataset.over(cache.plan.get("dataset", {}))
    require_tables(dataset.infos)
    check_classes(cache)
    require_honest({name: spec.tap for name, spec in cache.specs.items()}, f"cache {cache.url}")
    check_dataset(cache, dataset, annotations=False)
    frames = frames_of(dataset, cache)
    read = cache.fingerprint["preprocessing"]
    uses = senses(Inputs(image_size_HW=read["image_size"], num_sweeps=read["num_sweeps"]))

    def find() -> Mapping[str, Detections]:
        with progress_bar("read boxes", len(frames)) as bar:
            return cached_boxes(cache, frames.tokens, bar)

    future = BOXES in cache.specs and "future" in cache.specs[BOXES].tap.given
    note = ", of a teacher that was shown future frames" if future else ""
    return Boxes(f"cache {url} {cache.id[:12]}{note}", dataset, frames, uses, find)


def require_honest(offers: Mapping[str, TapInfo], whose: str) -> None:
    """Refuse to score boxes whose teacher was shown what they are scored against.

    Raises:
        ConfigError: it was given labels.
    """
    if BOXES in offers and "labels" in offers[BOXES].given:
        raise ConfigError(
            f"{whose}: the teacher of {BOXES} was given the labels of the frame, so its mAP would "
            "say how well it copies, not how well it detects. Score a student instead "
            "(student.checkpoint=FILE); whether the boxes lie where they should, bevcask verify "
            "check=meaning tells."
        )

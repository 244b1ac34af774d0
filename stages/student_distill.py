"""student-distill: train a detector on cached targets, an online teacher, or ground truth alone.

    frames -> student ---------------> detection loss + method loss -> checkpoints -> student
    cache (or a teacher in the loop) -> targets ----^

With `targets=cache` no teacher is imported. `method=none` with a LiDAR detector trains a teacher.
"""

import logging
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import seed_everything

from bevcask.cache.files import Files
from bevcask.cache.near import Near
from bevcask.cache.union import split_urls
from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames, speaking_of
from bevcask.data.join import JoinedDataset
from bevcask.data.loader import Listed, build_loader
from bevcask.data.presence import readable_frames
from bevcask.data.samples import SampleReader
from bevcask.detectors import find_detector
from bevcask.detectors.base import Detector, Inputs
from bevcask.errors import ConfigError
from bevcask.evaluation.detect import frame_batches
from bevcask.evaluation.nuscenes import Evaluation, senses, split_size
from bevcask.evaluation.report import score_report
from bevcask.methods import build_method
from bevcask.methods.base import Method
from bevcask.outputs import output_folder
from bevcask.paths import head_of, split_url
from bevcask.provenance import peak_memory, pick_device
from bevcask.ranks import by_first, num_ranks, rank
from bevcask.results import one_line
from bevcask.targets.pixels import PIXELS
from bevcask.targets.spec import TapInfo
from bevcask.training.callbacks import StepClock
from bevcask.training.checkpoint import export, make_note, start
from bevcask.training.keeper import Validation
from bevcask.training.launch import joined, ranks_to_start
from bevcask.training.loops import Steps
from bevcask.training.module import Distillation
from bevcask.training.order import Order, order_of, training_order
from bevcask.training.panels import Pictures
from bevcask.training.record import RunFolder
from bevcask.training.spawn import run_ranks
from bevcask.training.sync_norms import sync_norms
from bevcask.training.teaching import Teaching, mention_cells, open_teaching
from bevcask.training.trainer import fit
from bevcask.verbs import DistillConfig
from bevcask.wall_time import in_words

if TYPE_CHECKING:
    from bevcask.stages.generate import Generator

render = score_report
_log = logging.getLogger(__name__)
_SCORES = ("mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE", "per_class", "coverage")


def run(config: DistillConfig) -> dict[str, Any]:
    """Train a student; resume where an earlier sitting of the same run stopped.

    Where torchrun or srun started several processes, this is one of them; else
    `trainer.devices` says how many are started here.

    Returns:
        Scores on the validation frames (if any), `seconds_per_step` (median), `parameters` of the
        student and `numbers` in its file (running statistics of norms too), the exported student,
        the cache it learned from. Also written to `run/metrics.json`. Nothing on a rank of a
        launcher that is not the first.

    Raises:
        ConfigError: a wrong section, or the folder holds a run of another configuration, or one
            that another process is at.
        CacheIdentityError: the cache is of another teacher, dataset or class order.
        CacheIncompleteError: the cache is not sealed.
        TokenNotCachedError: frames without a row, unless `on_missing=skip`.
        PlanError: no cache holds what the method reads.
        TargetMismatchError: the method cannot join this student and these targets.
        DivergedError: a loss is not finite.
        CheckpointError: the last checkpoint is damaged, or one cannot be written.
        LoaderError: a loader worker or one of several processes was killed, or shared memory is
            too small.
        PeerLostError: another process of a launcher has ended.
        Stopped: Ctrl-C or SIGTERM; the step at hand is saved.
    """
    ranks = ranks_to_start(config.trainer, os.environ)
    if config.dry_run or ranks == 1:
        with joined(os.environ, pick_device(config.device)):
            return _train(config)
    require_apart(config, ranks)
    return run_ranks(ranks, run, config)


def _train(config: DistillConfig) -> dict[str, Any]:
    """Be the process that trains, or one of several."""
    require_apart(config, num_ranks())
    device = pick_device(config.device)
    seed_everything(config.seed, verbose=False)
    os.environ.pop("PL_GLOBAL_SEED", None)  # by which Lightning starts ranks over, and no others
    detector, own = find_detector(config.student.detector, "student.detector")
    method = build_method(config.method)
    inputs = detector.inputs(own)
    config = with_order(config, inputs)
    selected, sees = labelled_frames(config.dataset), replace(inputs, depth=False)
    skips = config.on_missing == "skip"
    frames = readable_frames(selected, sees, "dataset", "skip" if skips else "raise")
    generator = _generator(config)
    teaching = open_teaching(config, method, frames, device)
    method.build(detector.describe_taps(own), teaching.specs)
    mention_cells(method, detector.describe_taps(own), teaching.specs)
    require_denoising(method, detector)
    if PIXELS.name not in teaching.specs:
        readable_frames(teaching.frames, inputs, "dataset")
    for reader in teaching.readers.values():
        readable_frames(teaching.frames, reader.inputs, "dataset")
    validation = open_validation(config, inputs, detector.describe_taps(own), teaching.cache)
    student = detector(own)
    loaded = start(student, config.student)
    _mention_head(config, teaching)
    order = training_order(config, teaching, inputs)
    about = describe(config, teaching, student, method, loaded) | {
        "order": config.loader.order,
        "draws_per_epoch": order.draws,
    }
    if config.dry_run:
        return {"dry_run": True, **about}
    _log.info("%s", one_line(about))
    folder = RunFolder(output_folder("run", config.run))
    with folder.held() if rank() == 0 else nullcontext():
        if (result := by_first(lambda: _opened(folder, config))) is not None:
            _log.info(
                "run=%s has ended; its result is returned. resume=false starts over.", config.run
            )
            return result if rank() == 0 else {}
        note = make_note(config.student.detector, teaching.cache_id, teaching.teacher)
        if config.trainer.sync_batchnorm:
            sync_norms(student)
            sync_norms(method)
        module = Distillation(student, method, teaching.source, config.trainer, note, order.memory)
        batches = training_batches(config, teaching, order, generator)
        steps = Steps(batches, num_batches(config))
        clock = fit(config.trainer, device, folder, module, steps, validation)
        if generator is not None:
            generator.end()
        result = by_first(lambda: finish(folder, clock, about))
        return result if rank() == 0 else {}


def _opened(folder: RunFolder, config: DistillConfig) -> dict[str, Any] | None:
    """Return the result of a run that has ended already."""
    folder.open(config)
    return folder.finished()


def require_apart(config: DistillConfig, ranks: int) -> None:
    """Refuse what several processes cannot share.

    Raises:
        ConfigError: one device, or a cache that they would all write.
    """
    if ranks == 1:
        return
    if config.device.startswith("cuda:"):
        raise ConfigError(
            f"device={config.device}: {ranks} processes train together, each on its own device. "
            "Say device=cuda, and which ones by CUDA_VISIBLE_DEVICES."
        )
    if config.on_missing == "generate":
        raise ConfigError(
            f"on_missing=generate: {ranks} processes train together, and one at a time writes a "
            "cache. Fill it first with teacher-extract, or train with trainer.devices=1."
        )


def labelled_frames(dataset: DatasetConfig) -> Frames:
    """Return the selected frames.

    Raises:
        ConfigError: the dataset has no annotations to train on.
    """
    frames = Frames.select(dataset)
    if not frames.has_labels:
        raise ConfigError(
            f"dataset.version={dataset.version} has no annotations, and a detector is trained on "
            "them. Use a version with ground truth."
        )
    return frames


def with_order(config: DistillConfig, inputs: Inputs) -> DistillConfig:
    """Return the configuration with `loader.order` said, so that a run is known by it."""
    loader = config.loader.model_copy(update={"order": order_of(config.loader, inputs)})
    return config.model_copy(update={"loader": loader})


def require_denoising(method: Method, detector: type[Detector]) -> None:
    """Refuse boxes for denoising queries that nobody builds.

    Raises:
        ConfigError: the student is trained without such queries.
    """
    if method.denoises and not detector.denoises:
        raise ConfigError(
            f"method.denoising=true: {detector.__name__} is trained without denoising queries, "
            "which these boxes would join. Leave it out, or train a student that has them."
        )


def _generator(config: DistillConfig) -> "Generator | None":
    """Return what fills the cache; nothing, and no teacher imported, where nobody asks for it."""
    if config.on_missing != "generate":
        return None
    from bevcask.stages.generate import open_generator

    return open_generator(config)


def training_batches(
    config: DistillConfig, teaching: Teaching, order: Order, generator: "Generator | None" = None
) -> Any:
    """Return a function from a first step to a loader; batch t depends on (seed, t) alone."""
    dataset = JoinedDataset(
        teaching.frames,
        SampleReader(teaching.frames, order.inputs, config.augment, config.seed, teaching.replay),
        cache=teaching.cache,
        names=[name for name in teaching.specs if name not in teaching.viewed],
        teachers=teaching.readers,
        viewed=teaching.viewed,
        near=_near(config),
        growing=generator is not None,
    )

    device = pick_device(config.device)

    def make(first: int) -> Any:
        batches: Listed = order.batches(first, num_batches(config))
        if generator is not None:
            assert teaching.shards is not None
            batches = generator.ahead_of(batches, teaching.shards)
        return build_loader(dataset, batches, config.loader, device)

    return make


def _near(config: DistillConfig) -> Near | None:
    folder, room = config.loader.local, config.loader.local_gb
    return None if folder is None else Near(Path(folder).absolute(), int(room * 1e9))


def num_batches(config: DistillConfig) -> int:
    """Return the batches of the whole run: `trainer.accumulate` of them make a step."""
    return config.trainer.max_steps * config.trainer.accumulate


def open_validation(
    config: DistillConfig, inputs: Inputs, taps: Mapping[str, TapInfo], cache: str | None
) -> Validation | None:
    """Return what scores the student; nothing without `val`.

    Args:
        config: of the run.
        inputs: of the student.
        taps: of the student.
        cache: URLs of what it learns from, drawn beside it.

    Raises:
        ConfigError: the frames come from an info file.
        DataError: there are no annotations to score against, or files are missing.
    """
    if config.val is None:
        return None
    with speaking_of("val"):
        frames = Frames.select(config.val)
    frames = readable_frames(frames, replace(inputs, depth=False), "val")
    own = rank(), num_ranks()
    loader = frame_batches(frames, inputs, config.loader, pick_device(config.device), own)
    evaluation = Evaluation(frames, split_size(config.val)) if rank() == 0 else None
    trainer = config.trainer
    pictures = Pictures(trainer.pictures, frames, taps, cache) if trainer.pictures else None
    every, last = trainer.validate_every, trainer.max_steps
    return Validation(loader, frames.tokens, evaluation, senses(inputs), every, last, pictures)


def _mention_head(config: DistillConfig, teaching: Teaching) -> None:
    """Say where the teacher's head is, if a student from scratch is not given it."""
    scratch = config.student.head is None and config.student.checkpoint is None
    if teaching.cache is None or not scratch or not teaching.specs:
        return
    for url in split_urls(teaching.cache):
        head = head_of(url)
        folder, name = split_url(head)
        if Files(folder).size(name) is not None:
            _log.info("the student's head starts from scratch; student.head=%s inherits it.", head)


def describe(
    config: DistillConfig,
    teaching: Teaching,
    student: Detector,
    method: Method,
    loaded: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what will be trained on what, for the log and the result."""
    return {
        "student": config.student.detector["type"],
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "numbers": sum(tensor.numel() for tensor in student.state_dict().values()),
        "adapter_parameters": sum(parameter.numel() for parameter in method.parameters()),
        "method": config.method["type"],
        "frames": len(teaching.frames),
        "skipped_frames": teaching.skipped,
        "targets": sorted(teaching.specs),
        "teacher": teaching.teacher,
        "cache": teaching.cache,
        "cache_id": teaching.cache_id,
        "started_from": dict(loaded),
    }


def finish(folder: RunFolder, clock: StepClock, about: Mapping[str, Any]) -> dict[str, Any]:
    """Export the best student (the last where nothing was validated) and write the result."""
    best = folder.best if folder.best.is_file() else folder.last
    exported = export(best, folder.student)
    scores = folder.validation_result(exported["step"])
    result = {
        **{key: scores[key] for key in _SCORES if key in scores},
        "seconds_per_step": clock.seconds_per_step,
        "loader_share": clock.loader_share,
        "peak_memory_gb": peak_memory() / 1e9,
        "wall_time": clock.wall_time(),
        "step": exported["step"],
        "weights": str(folder.student),
        **about,
    }
    if result["wall_time"] is not None:
        _log.info("%s", in_words(result["wall_time"]))
    folder.finish(result)
    return result

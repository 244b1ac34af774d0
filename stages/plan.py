"""plan: what would be stored and what it costs, before any data or GPU is touched."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bevcask.cache.room import check_bound
from bevcask.catalog import resolve
from bevcask.cluster import workers_of
from bevcask.config import WrittenStoreConfig
from bevcask.data.augment import images_only
from bevcask.data.index.frames import Frames
from bevcask.data.join import JoinedDataset, TrainBatch
from bevcask.data.presence import look, readable_frames
from bevcask.data.samples import Key, SampleReader
from bevcask.detectors import find_detector
from bevcask.detectors.operations import operations
from bevcask.disk_rate import DiskRate, disk_rate
from bevcask.errors import ConfigError, DiskFullError
from bevcask.extraction.timing import BATCHES, probed, time_extraction
from bevcask.methods import build_method
from bevcask.methods.base import Method
from bevcask.paths import local_path
from bevcask.progress import Ticker, no_bar, progress_bar
from bevcask.provenance import pick_device
from bevcask.stages.teacher_extract import ask
from bevcask.targets.pixels import needs_pixels
from bevcask.targets.plan import nominal_frames, plan
from bevcask.teachers import build_teacher
from bevcask.teachers.base import Teacher
from bevcask.training.checkpoint import start
from bevcask.training.probe import GRADIENT_GOAL, LOSS_GOAL, Measured, best, measure, rows_of
from bevcask.verbs import ExtractConfig, PlanConfig
from bevcask.viz.planned import render
from bevcask.worker import kept, one_at_a_time, own_device

__all__ = ["render", "run"]

_VIEWS = (1, 2, 4)
_SHARED = ("teacher", "method", "loader", "device", "seed")


def run(config: PlanConfig) -> dict[str, Any]:
    """Return targets, bytes and teacher passes.

    Frames are counted in `dataset.infos` or `dataset.root` where it exists, else taken from the
    nominal size of the split (28,130 keyframes in nuScenes train); the result says which. With
    `cache` the disk it will lie on is looked at too.

    Raises:
        ConfigError: no data and no nominal size for the split.
        PlanError: the teacher does not offer what the method needs.
        DiskFullError: not even a small part of the bytes fits where `cache` says.
    """
    root = resolve("dataset", config.dataset.root)
    dataset = config.dataset.model_copy(update={"root": root})
    nominal = nominal_frames(dataset) if dataset.infos is None else None
    selected = Frames.select(dataset) if nominal is None else None
    frames = len(selected) if selected is not None else nominal or 0
    teacher = build_teacher(config.teacher, config.seed)
    method = build_method(config.method)
    result = plan(method.needs(), teacher.offers(), frames, config.store, config.augment)
    if config.cache is not None:
        check_bound(resolve("cache", config.cache), result.total_bytes)
    probed = probe_codecs(config.model_copy(update={"dataset": dataset}), teacher, method, frames)
    here = {} if selected is None else files_here(selected, teacher)
    return {
        "frames": frames,
        "frames_from": "dataset" if nominal is None else "nominal size of the split",
        "teacher_passes": result.teacher_passes(passes_each(teacher)),
        "by_views": by_views(config, method, teacher, frames) if config.store.views else [],
        **here,
        **result.to_dict(),
        **probed,
        **(count_step(config, teacher) if config.step else {}),
        **time_all(config, selected, teacher),
    }


def by_views(
    config: PlanConfig, method: Method, teacher: Teacher, frames: int
) -> list[dict[str, Any]]:
    """Return what other numbers of views would cost."""
    rows = []
    for views in sorted({*_VIEWS, config.store.views}):
        store = config.store.model_copy(update={"views": views})
        other = plan(method.needs(), teacher.offers(), frames, store, config.augment)
        passes = other.teacher_passes(passes_each(teacher))
        rows.append({"views": views, "bytes": other.total_bytes, "passes": passes})
    return rows


def time_all(config: PlanConfig, frames: Frames | None, teacher: Teacher) -> dict[str, Any]:
    """Extract `config.time` frames for real beside `config.cache`, and tell what all of them take.

    Raises:
        ConfigError: no dataset, or fewer frames than a rate needs.
        DataError: no frame has all its files.
    """
    if not config.time:
        return {}
    if frames is None:
        raise ConfigError(
            f"time={config.time} extracts frames, and there are none in "
            f"{config.dataset.root}. Give dataset.root=FOLDER, or leave time out."
        )
    least = min(BATCHES * config.loader.batch_size, len(frames))
    if config.time < least:
        raise ConfigError(
            f"time={config.time}: a rate needs {BATCHES} batches of loader.batch_size="
            f"{config.loader.batch_size}. Say time={least} or more."
        )
    few = probed(readable_frames(frames, teacher.reads(), "dataset", "skip"), config.time)
    disk = _disk_of(config)
    with TemporaryDirectory(
        prefix=".bevcask-plan-", dir=None if disk is None else disk.folder
    ) as folder:
        own = extraction(config, str(Path(folder) / "probe.zarr"))
        timing = time_extraction(lambda: ask(own, few, teacher).begin({}))
    takes = None if disk is None else disk.bytes_per_second
    return {
        "time": timing.told(len(frames), takes)
        | {"write_rate": takes, "settled": None if disk is None else disk.settled}
    }


def _disk_of(config: PlanConfig) -> DiskRate | None:
    """Return the rate of the disk that the cache will lie on; None where it is not told, or none.

    Raises:
        DiskFullError: it cannot be written.
    """
    place = None if config.cache is None else local_path(resolve("cache", config.cache))
    if place is None:
        return None
    try:
        return disk_rate(place.parent)  # never in a cache that is there
    except OSError as error:
        raise DiskFullError(
            f"{place}: cannot be written ({error.strerror}). Choose another place for the cache."
        ) from error


def extraction(config: PlanConfig, url: str) -> ExtractConfig:
    """Return the extraction that a plan is about, to another place and of nothing that is there."""
    told = config.store.model_copy(update={"reuse": None})
    store = {name: getattr(told, name) for name in WrittenStoreConfig.model_fields}
    own = {name: getattr(config, name) for name in _SHARED}
    root = resolve("dataset", config.dataset.root)
    return ExtractConfig(
        cache=url,
        dataset=config.dataset.model_copy(update={"root": root}),
        store=WrittenStoreConfig(**store),
        augment=images_only(config.augment),
        **own,
    )


def count_step(config: PlanConfig, teacher: Teacher) -> dict[str, Any]:
    """Return the operations of one frame of a training step, and what a cache saves of them.

    A backward pass counts as two forward ones; a window's history is shown forward alone.

    Raises:
        ConfigError: teacher or student are no detectors of bevcask's own.
    """
    sections = {"teacher": config.teacher.detector, "student": config.student.detector}
    for who, section in sections.items():
        if not section or section.get("type") == "mmdet3d":
            raise ConfigError(
                f"step=true counts operations of detectors of bevcask's own, and {who}= names "
                f"none. Give {who}=NAME of one, or leave step out."
            )
    with progress_bar("count operations", 3) as bar:
        plugin, own = find_detector(sections["teacher"], "teacher.detector")
        taught = operations(plugin, own) * passes_each(teacher)
        bar.advance(1, "")
        plugin, own = find_detector(sections["student"], "student.detector")
        learned, inputs = 3 * operations(plugin, own, training=True), plugin.inputs(own)
        bar.advance(1, "")
        if inputs.memory and inputs.history:
            learned += operations(plugin, own) * inputs.history
        bar.advance(1, "")
    return {
        "step": {
            "student_operations": learned,
            "teacher_operations": taught,
            "times_faster_at_most": 1 + taught / learned,
        }
    }


def passes_each(teacher: Teacher) -> int:
    """Return how often a teacher runs to say what depends on a window: once for each of it."""
    return 1 + teacher.inputs().history if teacher.memory == "window" else 1


def files_here(frames: Frames, teacher: Teacher) -> dict[str, Any]:
    """Return how many scenes of a selection can be read here, and what to say where not all can."""
    found = look(frames, teacher.reads())
    return {
        "scenes": len(set(frames.scenes)),
        "scenes_here": len(found.whole_scenes),
        "missing": found.words() if found.missing else None,
    }


def probe_codecs(
    config: PlanConfig, teacher: Teacher, method: Method, num_frames: int
) -> dict[str, Any]:
    """Run the teacher on `config.probe` frames and measure every codec; nothing without `probe`.

    Raises:
        ConfigError: a method without targets, or a dataset that is not there.
    """
    if not config.probe:
        return {}
    if not method.needs():
        raise ConfigError(
            "probe measures a distillation loss, and method=none has none. Name a method, and the "
            "student it will teach: method=distillbev student=bevdepth_r50."
        )
    offers, needed = teacher.offers(), {need.tap for need in method.needs()}
    if any(tap.in_order for name, tap in offers.items() if name in needed):
        raise ConfigError(
            "probe asks a teacher about single frames, and this one remembers whole scenes. Show "
            "it windows: teacher.memory=window."
        )
    frames = readable_frames(Frames.select(config.dataset), teacher.reads(), "dataset", "skip")
    wanted = min(config.probe, len(frames))
    spread = [frames.tokens[i * len(frames) // wanted] for i in range(wanted)]
    with workers_of(config) as workers, progress_bar("probe", wanted) as bar:
        if workers is None:
            measured = [_Probe(config, frames, spread, teacher).measure(range(wanted), bar)]
        else:
            work = partial(_measure_there, config, spread, workers.run)
            pieces, measured = [range(i, i + 1) for i in range(wanted)], []
            for part in workers.map(work, pieces):
                measured.append(part)
                bar.advance(1, "")
    rows = rows_of(measured, method, teacher, config.store)
    return {
        "probe": [
            asdict(row)
            | {
                "bytes_per_frame": row.bytes_per_frame,
                "gb": row.bytes_per_frame * num_frames / 1e9,
            }
            for row in rows
        ],
        "probed_frames": wanted,
        "best": (pick := best(rows, num_frames, config.store.budget)) and pick.words,
        "budget_gb": config.store.budget,
        "goals": {"loss": LOSS_GOAL, "gradient": GRADIENT_GOAL},
    }


class _Probe:
    """A loaded teacher, and the student that would learn of it: made once a process."""

    def __init__(
        self, config: PlanConfig, frames: Frames, spread: list[str], teacher: Teacher
    ) -> None:
        self._config, self._teacher = config, teacher
        self._device = pick_device(config.device)
        torch.manual_seed(config.seed)
        detector, own = find_detector(config.student.detector, "student.detector")
        method = build_method(config.method)
        teacher.load(self._device)
        specs = plan(
            method.needs(), teacher.offers(), len(frames), config.store, config.augment
        ).specs
        method.build(
            detector.describe_taps(own), {spec.name: spec for spec in specs if spec.view <= 1}
        )
        student, self._inputs = detector(own), detector.inputs(own)
        start(student, config.student)
        self._student, self._method = student.to(self._device), method.to(self._device)
        clean = SampleReader(frames, teacher.reads(), None, config.seed, pixels=needs_pixels(specs))
        augmented = SampleReader(frames, self._inputs, config.augment, config.seed)
        self._dataset = JoinedDataset(frames.keep(spread), augmented, teachers={"": clean})

    def measure(self, indices: range, bar: Ticker) -> Measured:
        """Measure every codec on some of the frames."""
        dataset, device = self._dataset, self._device
        batches = (dataset.collate([dataset[Key(index)]]).to(device) for index in indices)
        remembers, store = self._inputs.memory, self._config.store
        shown = ticked(batches, bar)
        return measure(self._student, self._method, self._teacher, shown, store, remembers)


def _measure_there(config: PlanConfig, spread: list[str], run: str, indices: range) -> Measured:
    """Measure on a worker, which keeps teacher and student for other frames."""

    def open_there() -> _Probe:
        own = config.model_copy(update={"device": own_device(config.device)})
        teacher = build_teacher(own.teacher, own.seed)
        return _Probe(own, Frames.select(own.dataset), spread, teacher)

    with one_at_a_time, no_bar("", len(indices)) as bar:
        return kept(run, "probe", open_there).measure(indices, bar)


def ticked(batches: Iterable[TrainBatch], bar: Ticker) -> Iterator[TrainBatch]:
    """Pass batches on and move the bar once each has been used."""
    for batch in batches:
        yield batch
        bar.advance(len(batch.batch.tokens), "")

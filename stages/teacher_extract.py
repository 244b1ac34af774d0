"""teacher-extract: run the teacher once over a selection and fill a cache.

    frames -> teacher(taps) -> region, quantize (on device) -> writer (bounded queue) -> cache.zarr

The shard is the unit of work and of resume: a killed run loses at most the shards in flight.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from torch import Tensor

from bevcask.cache.begin import create, stored_targets
from bevcask.cache.files import Files
from bevcask.cache.identity import require_identity
from bevcask.cache.layout import Layout
from bevcask.cache.parts import Part
from bevcask.cache.reader import Cache, open_cache
from bevcask.cache.repair import Repairer, read_list
from bevcask.cache.reuse import reuse
from bevcask.cache.write_queue import WriteQueue
from bevcask.cache.writer import Writer
from bevcask.catalog import check_name, is_missing, register_cache, resolve
from bevcask.data.augment import images_only
from bevcask.data.can_bus import mention_can_bus
from bevcask.data.index.frames import Frames
from bevcask.data.lidar import SHARED_SWEEPS, Scans, mention_sweeps
from bevcask.data.loader import ViewSource, build_loader
from bevcask.data.presence import readable_frames
from bevcask.data.samples import SampleReader
from bevcask.detectors.base import Batch
from bevcask.detectors.weights import weights_file
from bevcask.errors import ConfigError
from bevcask.extraction.disk import check_first_shards, check_upper_bound
from bevcask.extraction.identity import fingerprint, frame_table, made_by
from bevcask.extraction.shards import encoded_shards
from bevcask.extraction.steps import Step, steps_of
from bevcask.methods import build_method
from bevcask.paths import head_of, split_url
from bevcask.processes import cores
from bevcask.progress import Ticker, progress_bar
from bevcask.provenance import command, pick_device
from bevcask.scheduler import share
from bevcask.targets.kinds import changes_pixels
from bevcask.targets.pixels import needs_pixels
from bevcask.targets.plan import Plan, plan
from bevcask.teachers import build_teacher
from bevcask.teachers.base import Teacher
from bevcask.teachers.reckoning import prepare
from bevcask.training.identity import check_dataset
from bevcask.verbs import ExtractConfig
from bevcask.wall_time import Watch, in_words

_log = logging.getLogger(__name__)


def run(config: ExtractConfig) -> dict[str, Any]:
    """Fill `config.cache` with what the method needs of the teacher.

    A sealed cache that lacks some of it gets it added; `part=i/n` fills the i-th of n ranges of
    shards, and whoever finds all committed seals; without it a scheduler's variables say which
    (`scheduler.share`); `repair=FILE` writes listed shards again.

    Returns:
        cache URL, id, frames, stored and raw bytes, `sealed`, `shards_left` (of all parts),
        `reused` shards, the head file.

    Raises:
        ConfigError: no cache URL, or a wrong section.
        PlanError: the teacher does not offer what the method needs.
        CacheIdentityError: the URL holds a cache of another teacher, dataset or selection.
        CacheBusyError: another process fills the same shards.
        DiskFullError: the projected size does not fit.
        DataError: files of selected frames are not there, unless `on_missing=skip`.
    """
    if config.cache is None:
        raise ConfigError("teacher-extract needs a cache URL: bevcask teacher-extract URL ...")
    url = resolve("cache", config.cache)
    if config.name is not None:
        check_name(config.name, url)
    config = _shared(config)
    part = Part() if config.part is None else Part.parse(config.part)
    frames = Frames.select(config.dataset)
    teacher = build_teacher(config.teacher, config.seed)
    device = pick_device(config.device)
    prepare(config.teacher, device.type)  # said before anything is written
    frames = _present_frames(config, url, frames, teacher)
    if config.repair is not None:
        return _repair(config, url, frames, teacher)
    _mention_virtual_points(frames, teacher)
    mention_sweeps(frames, teacher.inputs().num_sweeps)
    if teacher.inputs().can_bus:
        mention_can_bus(frames.index, frames.rows)
    method = build_method(config.method)
    stored = stored_targets(url)
    what = plan(method.needs(), teacher.offers(), len(frames.tokens), config.store, None)
    what = what.with_stored(stored)
    whole_scenes = any(spec.tap.in_order for spec in what.specs)
    if config.store.views:
        _check_views(config, what)
    old = _open_reused(config)
    tree = fingerprint(config, teacher, frames, [*what.specs, *stored])
    if config.dry_run:
        return {"cache": url, "dry_run": True, **what.to_dict()}
    writer = create(
        url,
        list(what.specs),
        frame_table(frames),
        shard_rows=config.store.shard_rows,
        fingerprint=tree,
        plan=what.to_dict()
        | {"dataset": config.dataset.model_dump(mode="json"), "offers": sorted(teacher.offers())},
        provenance=made_by(teacher, frames, device),
        part=part,
        whole_scenes=whole_scenes,
    )
    with writer:
        reused = _reuse(old, writer, whole_scenes)
        check_upper_bound(writer)
        told = _fill(config, frames, teacher, writer)
    left = writer.unfinished()
    if not left:
        writer.seal()
    return report(url, teacher, len(frames), config.name) | {
        "raw_gb": what.total_bytes / 1e9,
        "part": None if config.part is None else config.part,
        "shards_left": left,
        "reused": reused,
        "wall_time": told,
    }


def _shared(config: ExtractConfig) -> ExtractConfig:
    """Return the configuration with the part that a scheduler gives this process, if any."""
    found = None if config.part or config.repair else share(os.environ)
    if found is None:
        return config
    part = f"{found.number}/{found.count}"
    _log.info("part=%s, as %s; part=1/1 fills everything from here", part, found.said_by)
    return config.model_copy(update={"part": part})


def _present_frames(config: ExtractConfig, url: str, frames: Frames, teacher: Teacher) -> Frames:
    """Return the frames to cache: all where their files are there, or those whose are.

    Parts, repairs, reused shards and a cache that was begun need the files of what is left to write
    alone; `_fill` looks for those.
    """
    partial = config.part or config.repair or config.store.reuse or not is_missing(url)
    if config.on_missing == "raise" and partial:
        return frames
    return readable_frames(frames, teacher.reads(), "dataset", config.on_missing)


def _check_views(config: ExtractConfig, what: Plan) -> None:
    views = f"store.views={config.store.views}"
    clean = [spec.name for spec in what.specs if spec.tap.in_order and what.roles[spec.key]]
    viewed = any(spec.view for spec in what.specs)
    if clean and not viewed:
        raise ConfigError(
            f"{views}: this teacher remembers the frames before, a scene cannot be shown in "
            f"several views at once, and {', '.join(clean)} depends on memory. Use store.views=0, "
            "or show it windows: teacher.memory=window."
        )
    if clean:
        _log.warning(
            "%s: %s depends on the memory of whole scenes and is stored of the clean frames; "
            "image levels are stored of each view. To have everything of each view, show the "
            "teacher windows: teacher.memory=window.",
            views,
            ", ".join(clean),
        )
    if not viewed:
        _log.info("%s changes nothing: this teacher does not look at images", views)
    elif not changes_pixels(config.augment):
        raise ConfigError(
            f"{views}: all views would be alike, for augment changes no image. Give what the "
            "student will: augment.resize, crop, image_flip, image_rotation, photometric, "
            "grid_mask; or store.views=0."
        )


def _mention_virtual_points(frames: Frames, teacher: Teacher) -> None:
    """Say so where virtual points are named that this teacher does not look at."""
    if frames.virtual_points is not None and not teacher.inputs().virtual_points:
        _log.warning(
            "dataset.virtual_points=%s: this teacher sees real points only. A LiDAR detector with "
            "point_channels 17 (teacher=centerpoint_mvp) sees both.",
            frames.virtual_points,
        )


def report(url: str, teacher: Teacher, num_frames: int, name: str | None = None) -> dict[str, Any]:
    """Return what a cache holds now; of a sealed one write the head file, and keep its name."""
    cache = open_cache(url, allow_unsealed=True)
    head = export_head(teacher, url) if cache.sealed else None
    if cache.sealed and name is not None:
        register_cache(url, cache, name)
    return {
        "cache": url,
        "id": cache.id,
        "frames": num_frames,
        "stored_gb": sum(cache.stored_bytes(name) for name in cache.specs) / 1e9,
        "sealed": cache.sealed,
        "head": head,
    }


def _open_reused(config: ExtractConfig) -> Cache | None:
    """Return the cache `store.reuse` names, of this very dataset."""
    if config.store.reuse is None:
        return None
    old = open_cache(resolve("cache", config.store.reuse), allow_unsealed=True)
    check_dataset(old, config.dataset, exact=True)
    return old


def _reuse(old: Cache | None, writer: Writer, whole_scenes: bool) -> int:
    """Take over what another cache already has; return the number of shards."""
    if old is None or not writer.missing():
        return 0
    taken = reuse(writer, old, whole_scenes)
    _log.info("%d of %d shards taken over from %s", taken, len(writer.shards), old.url)
    return taken


def _repair(config: ExtractConfig, url: str, frames: Frames, teacher: Teacher) -> dict[str, Any]:
    """Write the listed targets of the listed shards again, from the same teacher and data."""
    if config.part is not None:
        raise ConfigError("repair= and part= do not go together: one process repairs.")
    assert config.repair is not None
    wanted = read_list(Path(config.repair))
    cache = Cache(url, allow_unsealed=True, lenient=True)
    specs = list(cache.specs.values())
    layout = Layout(frame_table(frames), specs, config.store.shard_rows)
    require_identity(cache, layout.identity(fingerprint(config, teacher, frames, specs)))
    if config.dry_run:
        return {"cache": url, "dry_run": True, "to_repair": len(wanted)}
    repairer = Repairer(
        cache,
        wanted,
        {"provenance": made_by(teacher, frames, pick_device(config.device)), "repair": True},
    )
    if wanted:
        with repairer:
            _fill(config, frames, teacher, repairer)
    return report(url, teacher, len(frames)) | {
        "repaired": len(wanted),
        "changed": repairer.changed,
    }


def _fill(
    config: ExtractConfig, frames: Frames, teacher: Teacher, writer: Writer | Repairer
) -> dict[str, Any] | None:
    """Write every missing shard; the forward of one overlaps the writing of the one before.

    Returns:
        Where the time went (`wall_time`); None where nothing was missing.
    """
    steps = steps_of(writer, frames, config.loader.batch_size, teacher.parts)
    if not steps:
        return None
    wanted = needs_pixels(writer.specs)
    read = replace(teacher.reads(), depth=True) if wanted else teacher.reads()
    tokens = dict.fromkeys(frames.tokens[key.frame] for step in steps for key in step.keys)
    readable_frames(frames.keep(tokens), read, "dataset")
    device = pick_device(config.device)
    teacher.load(device)
    inputs = teacher.reads()
    scans, augment = Scans(SHARED_SWEEPS), images_only(config.augment)
    clean = SampleReader(frames, inputs, None, config.seed, pixels=wanted, scans=scans)
    views = SampleReader(frames, inputs, augment, config.seed, scans=scans)
    loader = build_loader(
        ViewSource(clean, views), [step.keys for step in steps], config.loader, device
    )
    loading = config.loader.num_workers
    spared = cores() // 2 if loading == "auto" else cores() - loading
    threads = config.store.threads or max(1, spared)
    total = sum(len(step.keys) for step in steps)
    writing = writer.missing()
    projected, watch = False, Watch()
    with progress_bar("extract", total) as bar, ExitStack() as stack:
        queue = stack.enter_context(WriteQueue(writer, config.store.queue, threads))
        loaded = watch.watched(zip(steps, loader, strict=True), "loader")
        ticking = ticks(loaded, bar, queue)
        for shard, arrays in encoded_shards(teacher, writer.specs, ticking, device):
            with watch.waiting("writer"):
                queue.put(shard, arrays)
            if not projected and isinstance(writer, Writer):
                projected = check_first_shards(writer, queue, writing)
        with watch.waiting("writer"):
            stack.close()
        bar.advance(0, _written(queue))
    told = watch.told()
    _log.info("%s", in_words(told))
    return told


def ticks(
    batches: Iterable[tuple[Step, Batch]], bar: Ticker, queue: WriteQueue
) -> Iterator[tuple[Step, Batch]]:
    """Pass batches on and move the bar once each has been used."""
    for step, batch in batches:
        yield step, batch
        bar.advance(len(step.keys), _written(queue))


def _written(queue: WriteQueue) -> str:
    return f"{decimal(queue.num_bytes)} written"


def export_head(teacher: Teacher, url: str) -> str | None:
    """Write the teacher's head branches beside a cache, for `student.head=`; return where."""
    tensors: dict[str, Tensor] = teacher.head()
    if not tensors:
        return None
    place = head_of(url)
    folder, name = split_url(place)
    head = weights_file(tensors, {"made_by": command()})
    if Files(folder).get(name) != head:
        Files(folder).put(name, head)
    return place

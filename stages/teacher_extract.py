"""teacher-extract: run the teacher once over a selection and fill a cache.

    frames -> teacher(taps) -> region, quantize (on device) -> writer (bounded queue) -> cache.zarr

The shard is the unit of work and of resume: a killed run loses at most the shards in flight.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bevcask.cache.begin import create, stored_targets
from bevcask.cache.frames import FrameTable
from bevcask.cache.identity import require_identity
from bevcask.cache.layout import Encoded, Layout, concatenate
from bevcask.cache.parts import Part, scene_prefix
from bevcask.cache.quantize import encode
from bevcask.cache.reader import Cache, open_cache
from bevcask.cache.repair import Repairer, read_list
from bevcask.cache.reuse import reuse
from bevcask.cache.room import check_bound, check_projection
from bevcask.cache.writer import WriteQueue, Writer
from bevcask.catalog import register_cache, resolve
from bevcask.data.augment import frame_gap, image_ranges, images_only
from bevcask.data.images import RESAMPLING
from bevcask.data.index.frames import Frames
from bevcask.data.loader import Key, SampleReader, ViewSource, build_loader
from bevcask.detectors.base import Batch
from bevcask.detectors.weights import save_weights
from bevcask.errors import ConfigError
from bevcask.geometry import CAMERAS, CLASSES
from bevcask.methods import build_method
from bevcask.progress import Ticker, progress_bar
from bevcask.provenance import command, pick_device, provenance
from bevcask.targets.kinds import changes_pixels, kind_of
from bevcask.targets.pixels import RULE, needs_pixels
from bevcask.targets.plan import plan
from bevcask.targets.spec import TargetSpec
from bevcask.teachers import build_teacher
from bevcask.teachers.base import Teacher
from bevcask.training.identity import check_dataset
from bevcask.verbs import ExtractConfig

_log = logging.getLogger(__name__)


def run(config: ExtractConfig) -> dict[str, Any]:
    """Fill `config.cache` with what the method needs of the teacher.

    A sealed cache that lacks some of it gets it added; `part=i/n` fills the i-th of n ranges of
    shards, and whoever finds all committed seals; `repair=FILE` writes listed shards again.

    Returns:
        cache URL, id, frames, stored and raw bytes, `sealed`, `shards_left` (of all parts),
        `reused` shards, the head file.

    Raises:
        ConfigError: no cache URL, or a wrong section.
        PlanError: the teacher does not offer what the method needs.
        CacheIdentityError: the URL holds a cache of another teacher, dataset or selection.
        CacheBusyError: another process fills the same shards.
        DiskFullError: the projected size does not fit.
    """
    if config.cache is None:
        raise ConfigError("teacher-extract needs a cache URL: bevcask teacher-extract URL ...")
    url = resolve("cache", config.cache)
    part = Part() if config.part is None else Part.parse(config.part)
    frames = Frames.select(config.dataset)
    teacher = build_teacher(config.teacher, config.seed)
    if config.repair is not None:
        return _repair(config, url, frames, teacher)
    _mention_virtual_points(frames, teacher)
    method = build_method(config.method)
    what = plan(method.needs(), teacher.offers(), len(frames.tokens), config.store, None)
    whole_scenes = teacher.temporal == "scene"
    if config.store.views:
        _check_views(config, what.specs, whole_scenes)
    if config.dry_run:
        return {"cache": url, "dry_run": True, **what.to_dict()}
    specs = [*what.specs, *stored_targets(url)]
    writer = create(
        url,
        list(what.specs),
        frame_table(frames),
        shard_rows=config.store.shard_rows,
        fingerprint=fingerprint(config, teacher, frames, specs),
        plan=what.to_dict() | {"dataset": config.dataset.model_dump(mode="json")},
        provenance=made_by(teacher, frames),
        part=part,
        whole_scenes=whole_scenes,
    )
    with writer:
        reused = _reuse(config, writer, whole_scenes)
        _check_bound(writer)
        _fill(config, frames, teacher, writer)
    left = writer.unfinished()
    if not left:
        writer.seal()
    return report(url, teacher, len(frames)) | {
        "raw_gb": what.total_bytes / 1e9,
        "part": None if config.part is None else config.part,
        "shards_left": left,
        "reused": reused,
    }


def _check_views(config: ExtractConfig, specs: Sequence[TargetSpec], whole_scenes: bool) -> None:
    views = f"store.views={config.store.views}"
    if whole_scenes:
        raise ConfigError(
            f"{views}: this teacher remembers the frames before, and a scene cannot be shown in "
            "several views at once. Use store.views=0."
        )
    if not any(spec.view for spec in specs):
        _log.info("%s changes nothing: this teacher does not look at images", views)
    elif not changes_pixels(config.augment):
        raise ConfigError(
            f"{views}: all views would be alike, for augment changes no image. Give what the "
            "student will: augment.resize, crop, image_flip, image_rotation; or store.views=0."
        )


def _mention_virtual_points(frames: Frames, teacher: Teacher) -> None:
    """Say so where virtual points are named that this teacher does not look at."""
    if frames.virtual_points is not None and not teacher.inputs().virtual_points:
        _log.warning(
            "dataset.virtual_points=%s: this teacher sees real points only. A LiDAR detector with "
            "point_channels 17 (teacher=centerpoint_mvp) sees both.",
            frames.virtual_points,
        )


def report(url: str, teacher: Teacher, num_frames: int) -> dict[str, Any]:
    """Return what a cache holds now; of a sealed one write the head file and the catalog entry."""
    cache = open_cache(url, allow_unsealed=True)
    head = export_head(teacher, url) if cache.sealed else None
    if cache.sealed:
        register_cache(url, cache)
    return {
        "cache": url,
        "id": cache.id,
        "frames": num_frames,
        "stored_gb": sum(cache.stored_bytes(name) for name in cache.specs) / 1e9,
        "sealed": cache.sealed,
        "head": head,
    }


def frame_table(frames: Frames) -> FrameTable:
    """Return the selection as a cache keeps it."""
    return FrameTable(frames.tokens, frames.scenes, frames.timestamps, frames.lidar_to_global)


def made_by(teacher: Teacher, frames: Frames) -> dict[str, Any]:
    """Return what is recorded of this run."""
    return provenance() | {"missing_sweeps": frames.missing_sweeps(teacher.inputs().num_sweeps)}


def _reuse(config: ExtractConfig, writer: Writer, whole_scenes: bool) -> int:
    """Take over what `store.reuse` already has; return the number of shards."""
    if config.store.reuse is None or not writer.missing():
        return 0
    old = open_cache(resolve("cache", config.store.reuse), allow_unsealed=True)
    check_dataset(old, config.dataset)
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
    repairer = Repairer(cache, wanted, {"provenance": made_by(teacher, frames), "repair": True})
    if wanted:
        with repairer:
            _fill(config, frames, teacher, repairer)
    return report(url, teacher, len(frames)) | {
        "repaired": len(wanted),
        "changed": repairer.changed,
    }


def fingerprint(
    config: ExtractConfig, teacher: Teacher, frames: Frames, specs: Sequence[TargetSpec]
) -> dict[str, Any]:
    """Return the identity of a cache: that of the teacher here, and of the views it is shown."""
    pixels = needs_pixels(specs)
    annotations = pixels or any(spec.region.reads_boxes for spec in specs)
    tree = identity(teacher, frames, annotations, pixels)
    if pixels:
        tree["pixels"] = {"rule": RULE}
    if any(spec.view for spec in specs):
        tree["views"] = {"seed": config.seed, "augment": image_ranges(config.augment)}
    return tree


def identity(
    teacher: Teacher, frames: Frames, annotations: bool = False, all_sensors: bool = False
) -> dict[str, Any]:
    """Return the fingerprint tree: everything that decides what this teacher says here.

    Args:
        teacher: its weights and config.
        frames: the selection.
        annotations: whether ground truth decides bytes too: a region follows it, say.
        all_sensors: whether cameras and LiDAR decide bytes that the teacher does not look at.
    """
    inputs = teacher.inputs()
    sensors = (CAMERAS if inputs.image_size_HW or all_sensors else ()) + (
        ("LIDAR_TOP",) if inputs.num_sweeps or all_sensors else ()
    )
    return {
        "teacher": teacher.fingerprint(),
        "dataset": frames.identity(
            sensors,
            max(inputs.num_sweeps, 1),
            annotations,
            frame_gap(inputs.num_frames),
            inputs.virtual_points,
        ),
        "classes": list(CLASSES),
        "preprocessing": {
            "image_size": list(inputs.image_size_HW) if inputs.image_size_HW else None,
            "image": RESAMPLING if inputs.image_size_HW else None,
            "num_frames": inputs.num_frames,
            "num_sweeps": inputs.num_sweeps,
            "sweeps": "nearest previous, motion compensated",
            "pad": inputs.pad,
            "ego_points": inputs.ego_points,
        },
    }


@dataclass(frozen=True)
class Step:
    """One forward: a batch never crosses a shard, so a resumed run repeats the same batches.

    Attributes:
        shard: where its frames lie.
        keys: what the loader reads.
        completes_shard: it is the shard's last.
        view: which view of them the teacher sees.
        kept: False where the teacher must only see the frames, to remember them.
    """

    shard: int
    keys: list[Key]
    completes_shard: bool
    view: int = 0
    kept: bool = True


def steps_of(
    writer: Writer | Repairer, frames: Frames, batch_size: int, whole_scenes: bool = False
) -> list[Step]:
    """Return the forwards that fill every missing shard, in row order.

    Args:
        writer: knows what is missing.
        frames: the selection.
        batch_size: frames a forward, at most.
        whole_scenes: begin with the first frame of each scene, for a teacher that remembers.
    """
    position = {token: index for index, token in enumerate(frames.tokens)}
    missing = writer.missing()
    kept = set(missing)
    views = sorted({spec.view for spec in writer.specs})
    steps = []
    for shard in scene_prefix(writer.cache.layout, missing) if whole_scenes else missing:
        for view in views:
            keys: list[Key] = [(position[token], view) for token in writer.tokens(shard)]
            for first in range(0, len(keys), batch_size):
                last = first + batch_size >= len(keys) and view == views[-1]
                part = keys[first : first + batch_size]
                steps.append(Step(shard, part, last, view, shard in kept))
    return steps


def _fill(
    config: ExtractConfig, frames: Frames, teacher: Teacher, writer: Writer | Repairer
) -> None:
    """Write every missing shard; the forward of one overlaps the writing of the one before."""
    steps = steps_of(writer, frames, config.loader.batch_size, teacher.temporal == "scene")
    if not steps:
        return
    device = pick_device(config.device)
    teacher.load(device)
    wanted = needs_pixels(writer.specs)
    clean = SampleReader(frames, teacher.inputs(), None, config.seed, pixels=wanted)
    views = SampleReader(frames, teacher.inputs(), images_only(config.augment), config.seed)
    loader = build_loader(
        ViewSource(clean, views), [step.keys for step in steps], config.loader.num_workers
    )
    total = sum(len(step.keys) for step in steps)
    writing = writer.missing()
    projected = False
    with (
        WriteQueue(writer, config.store.queue) as queue,
        progress_bar("extract", total) as bar,
    ):
        ticking = ticks(zip(steps, loader, strict=True), bar, queue)
        for shard, arrays in encoded_shards(teacher, writer.specs, ticking, device):
            queue.put(shard, arrays)
            if not projected and isinstance(writer, Writer):
                projected = _check_projection(writer, queue, writing)


def ticks(
    batches: Iterable[tuple[Step, Batch]], bar: Ticker, queue: WriteQueue
) -> Iterator[tuple[Step, Batch]]:
    """Pass batches on and move the bar once each has been used."""
    for step, batch in batches:
        yield step, batch
        bar.advance(len(step.keys), f"{queue.num_bytes / 1e9:.3f} GB written")


def encoded_shards(
    teacher: Teacher,
    specs: Sequence[TargetSpec],
    batches: Iterable[tuple[Step, Batch]],
    device: torch.device,
) -> Iterator[tuple[int, dict[str, Encoded[Any]]]]:
    """Yield (shard, encoded targets by name) as the teacher completes them."""
    parts: dict[str, list[Encoded[Any]]] = {spec.name: [] for spec in specs}
    for step, batch in batches:
        own = [spec for spec in specs if spec.view == step.view]
        outputs = teacher.targets(batch.to(device), [spec.tap.name for spec in own])
        if not step.kept:
            continue
        for name, target in encode_targets(outputs, own, batch).items():
            parts[name].append(target)
        if step.completes_shard:
            yield step.shard, {name: concatenate(found) for name, found in parts.items()}
            parts = {name: [] for name in parts}


def encode_targets(
    outputs: dict[str, Tensor], specs: Iterable[TargetSpec], batch: Batch
) -> dict[str, Encoded[Tensor]]:
    """Apply region and codec of every spec to a teacher's outputs, on their device."""
    return {
        spec.name: encode(
            outputs[spec.tap.name],
            spec,
            count=outputs.get(f"{spec.tap.name}.count"),
            boxes=None if batch.labels is None else batch.labels.canonical_boxes,
            tokens=batch.tokens,
        )
        for spec in specs
    }


def _check_bound(writer: Writer) -> None:
    """Judge by the uncompressed size of what is missing, of all parts; see `check_bound`."""
    sizes = (kind_of(spec.tap).bytes_per_frame(spec) for spec in writer.specs)
    check_bound(writer.cache.url, sum(sizes) * _num_frames(writer, writer.missing(True)))


def _check_projection(writer: Writer, queue: WriteQueue, shards: Sequence[int]) -> bool:
    """Judge by the first shards that are written; what other parts have yet to write counts.

    Args:
        writer: knows what is missing.
        queue: writes the shards.
        shards: in the order they are written.

    Returns:
        False while nothing is written.
    """
    written, number = queue.num_bytes, queue.num_shards
    if number:
        left = _num_frames(writer, writer.missing(everywhere=True))
        done = _num_frames(writer, shards[:number])
        check_projection(writer.cache.url, written, done, left)
    return number > 0


def _num_frames(writer: Writer, shards: Sequence[int]) -> int:
    return sum(len(writer.tokens(shard)) for shard in shards)


def export_head(teacher: Teacher, url: str) -> str | None:
    """Write the teacher's head branches beside a local cache, for `student.head=`."""
    tensors: dict[str, Tensor] = teacher.head()
    if not tensors or "://" in url:
        return None
    path = Path(url.rstrip("/").removesuffix(".zarr") + ".head.safetensors")
    save_weights(tensors, path, {"made_by": command()})
    return str(path)

"""teacher-extract: run the teacher once over a selection and fill a cache.

    frames -> teacher(taps) -> region, quantize (on device) -> writer (bounded queue) -> cache.zarr

The shard is the unit of work and of resume: a killed run loses at most the shards in flight.
"""

import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bevcask.cache.layout import Encoded, FrameTable, concatenate
from bevcask.cache.quantize import encode
from bevcask.cache.reader import open_cache
from bevcask.cache.writer import WriteQueue, Writer, create
from bevcask.catalog import register_cache, resolve
from bevcask.config import RunConfig
from bevcask.data.images import RESAMPLING
from bevcask.data.loader import FrameSource, Key, SampleReader, build_loader
from bevcask.data.nuscenes import Frames
from bevcask.detectors.base import Batch
from bevcask.detectors.weights import save_weights
from bevcask.errors import ConfigError, DiskFullError
from bevcask.geometry import CAMERAS, CLASSES
from bevcask.methods import build_method
from bevcask.progress import Ticker, progress_bar
from bevcask.provenance import command, pick_device, provenance
from bevcask.targets.plan import plan
from bevcask.targets.spec import TargetSpec
from bevcask.teachers import build_teacher
from bevcask.teachers.base import Teacher

_log = logging.getLogger(__name__)


def run(config: RunConfig) -> dict[str, Any]:
    """Fill `config.cache` with what the method needs of the teacher.

    Returns:
        cache URL, id, frames, stored and raw bytes, seconds a frame.

    Raises:
        ConfigError: no cache URL, or a wrong section.
        PlanError: the teacher does not offer what the method needs.
        CacheIdentityError: the URL holds a cache of another teacher, dataset or selection.
        DiskFullError: the projected size does not fit.
    """
    if config.cache is None:
        raise ConfigError("teacher-extract needs a cache URL: bevcask teacher-extract URL ...")
    url = resolve("cache", config.cache)
    frames = Frames.select(config.dataset)
    teacher = build_teacher(config.teacher, config.seed)
    method = build_method(config.method)
    what = plan(method.needs(), teacher.taps(), len(frames.tokens), config.store, None)
    if config.dry_run:
        return {"cache": url, "dry_run": True, **what.to_dict()}
    device = pick_device(config.device)
    teacher.load(device)
    writer = create(
        url,
        list(what.specs),
        FrameTable(frames.tokens, frames.scenes, frames.timestamps, frames.lidar_to_global),
        shard_rows=config.store.shard_rows,
        fingerprint=identity(teacher, frames, any(spec.region.reads_boxes for spec in what.specs)),
        plan=what.to_dict() | {"dataset": config.dataset.model_dump(mode="json")},
        provenance=provenance()
        | {"missing_sweeps": frames.missing_sweeps(teacher.inputs().num_sweeps)},
    )
    _fill(config, frames, teacher, what.specs, writer, device)
    writer.seal()
    head = export_head(teacher, url)
    cache = open_cache(url)
    register_cache(url, cache)
    return {
        "cache": url,
        "id": cache.id,
        "frames": len(frames.tokens),
        "stored_gb": sum(cache.stored_bytes(name) for name in cache.specs) / 1e9,
        "raw_gb": what.total_bytes / 1e9,
        "head": head,
    }


def identity(teacher: Teacher, frames: Frames, annotations: bool = False) -> dict[str, Any]:
    """Return the fingerprint tree: everything that decides what this teacher says here.

    Args:
        teacher: its weights and config.
        frames: the selection.
        annotations: whether a region follows ground truth, which then decides bytes too.
    """
    inputs = teacher.inputs()
    sensors = (CAMERAS if inputs.image_size_HW else ()) + (
        ("LIDAR_TOP",) if inputs.num_sweeps else ()
    )
    return {
        "teacher": teacher.fingerprint(),
        "dataset": frames.identity(sensors, max(inputs.num_sweeps, 1), annotations),
        "classes": list(CLASSES),
        "preprocessing": {
            "image_size": list(inputs.image_size_HW) if inputs.image_size_HW else None,
            "image": RESAMPLING if inputs.image_size_HW else None,
            "num_sweeps": inputs.num_sweeps,
            "sweeps": "nearest previous, motion compensated",
            "pad": inputs.pad,
            "ego_points": inputs.ego_points,
        },
    }


@dataclass(frozen=True)
class Step:
    """One forward: a batch never crosses a shard, so a resumed run repeats the same batches."""

    shard: int
    keys: list[Key]
    completes_shard: bool


def steps_of(writer: Writer, frames: Frames, batch_size: int) -> list[Step]:
    """Return the forwards that fill every missing shard, in row order."""
    position = {token: index for index, token in enumerate(frames.tokens)}
    steps = []
    for shard in writer.missing():
        keys: list[Key] = [(position[token], 0) for token in writer.tokens(shard)]
        for first in range(0, len(keys), batch_size):
            last = first + batch_size >= len(keys)
            steps.append(Step(shard, keys[first : first + batch_size], last))
    return steps


def _fill(
    config: RunConfig,
    frames: Frames,
    teacher: Teacher,
    specs: tuple[TargetSpec, ...],
    writer: Writer,
    device: torch.device,
) -> None:
    """Write every missing shard; the forward of one overlaps the writing of the one before."""
    steps = steps_of(writer, frames, config.loader.batch_size)
    if not steps:
        return
    reader = SampleReader(frames, teacher.inputs(), augment=None, seed=config.seed)
    loader = build_loader(
        FrameSource(reader), [step.keys for step in steps], config.loader.num_workers
    )
    done = len(frames) - sum(len(step.keys) for step in steps)
    if done:
        _log.info("resuming: %d of %d frames are committed", done, len(frames))
    with (
        WriteQueue(writer, config.store.queue) as queue,
        progress_bar("extract", len(frames), done) as bar,
    ):
        ticking = ticks(zip(steps, loader, strict=True), bar, queue)
        for shard, arrays in encoded_shards(teacher, specs, ticking, device):
            queue.put(shard, arrays)
            check_free_disk(writer, queue.num_bytes, queue.num_shards)


def ticks(
    batches: Iterable[tuple[Step, Batch]], bar: Ticker, queue: WriteQueue
) -> Iterator[tuple[Step, Batch]]:
    """Pass batches on and move the bar once each has been used."""
    for step, batch in batches:
        yield step, batch
        bar.advance(len(step.keys), f"{queue.num_bytes / 1e9:.3f} GB written")


def encoded_shards(
    teacher: Teacher,
    specs: tuple[TargetSpec, ...],
    batches: Iterable[tuple[Step, Batch]],
    device: torch.device,
) -> Iterator[tuple[int, dict[str, Encoded[Any]]]]:
    """Yield (shard, encoded targets by name) as the teacher completes them."""
    names = [spec.name for spec in specs]
    parts: list[dict[str, Encoded[Any]]] = []
    for step, batch in batches:
        outputs = teacher(batch.to(device), names)
        parts.append(encode_targets(outputs, specs, batch))
        if step.completes_shard:
            yield step.shard, {n: concatenate([part[n] for part in parts]) for n in names}
            parts = []


def encode_targets(
    outputs: dict[str, Tensor], specs: Iterable[TargetSpec], batch: Batch
) -> dict[str, Encoded[Tensor]]:
    """Apply region and codec of every spec to a teacher's outputs, on their device."""
    return {
        spec.name: encode(
            outputs[spec.name],
            spec,
            count=outputs.get(f"{spec.name}.count"),
            boxes=None if batch.labels is None else batch.labels.canonical_boxes,
            tokens=batch.tokens,
        )
        for spec in specs
    }


def check_free_disk(writer: Writer, written_bytes: int, written_shards: int) -> None:
    """Once the first shard is written, compare the projected size with the free disk.

    Raises:
        DiskFullError: it would not fit; nothing written so far is lost.
    """
    left, url = len(writer.missing()), writer.cache.url
    if written_shards != 1 or left == 0 or "://" in url:
        return
    needed = written_bytes * left
    free = shutil.disk_usage(url).free
    if needed > free:
        raise DiskFullError(
            f"{url}: {left} more shards of about {written_bytes / 1e6:.1f} MB need "
            f"{needed / 1e9:.3f} GB, the disk has {free / 1e9:.3f} GB free: "
            f"{(needed - free) / 1e9:.3f} GB short. What is committed stays; free some space, then "
            "run the same command again, or pick a smaller store.codec and another URL."
        )


def export_head(teacher: Teacher, url: str) -> str | None:
    """Write the teacher's head branches beside a local cache, for `student.head=`."""
    tensors: dict[str, Tensor] = teacher.head()
    if not tensors or "://" in url:
        return None
    path = Path(url.rstrip("/").removesuffix(".zarr") + ".head.safetensors")
    save_weights(tensors, path, {"made_by": command()})
    return str(path)

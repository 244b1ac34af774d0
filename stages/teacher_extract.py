"""teacher-extract: run the teacher once over a selection and fill a cache.

    frames -> teacher(taps) -> region, quantize (on device) -> writer (bounded queue) -> cache.zarr

The shard is the unit of work and of resume: a killed run loses at most the shards in flight.
"""

import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bevcask.cache.quantize import Encoded, concatenate, encode
from bevcask.cache.reader import open_cache
from bevcask.cache.writer import FrameTable, WriteQueue, Writer, create
from bevcask.catalog import register_cache, resolve
from bevcask.config import RunConfig
from bevcask.data.loader import SampleReader, collate, worker_options
from bevcask.data.nuscenes import Frames
from bevcask.detectors.base import Batch
from bevcask.detectors.weights import save_weights
from bevcask.errors import ConfigError, DiskFullError
from bevcask.geometry import CLASSES
from bevcask.methods import build_method
from bevcask.progress import progress_bar
from bevcask.provenance import pick_device, provenance
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
        fingerprint=identity(teacher, frames),
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


def identity(teacher: Teacher, frames: Frames) -> dict[str, Any]:
    """Return the fingerprint tree: everything that decides what this teacher says here."""
    inputs = teacher.inputs()
    return {
        "teacher": teacher.fingerprint(),
        "dataset": frames.identity(),
        "classes": list(CLASSES),
        "preprocessing": {
            "image_size": list(inputs.image_size_HW) if inputs.image_size_HW else None,
            "num_sweeps": inputs.num_sweeps,
            "sweeps": "nearest previous, motion compensated, keyframe repeated where missing",
            "ego_box": "points within 1 m of the sensor in x and y removed",
        },
    }


class ShardBatches(Dataset[tuple[int, Batch, bool]]):
    """Teacher input in row order; no batch crosses a shard, so resume repeats the same batches."""

    def __init__(
        self, reader: SampleReader, shards: list[tuple[int, list[str]]], batch_size: int
    ) -> None:
        self._reader = reader
        self._items = [
            (shard, tokens[first : first + batch_size], first + batch_size >= len(tokens))
            for shard, tokens in shards
            for first in range(0, len(tokens), batch_size)
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[int, Batch, bool]:
        """Return the shard, its next batch, and whether that completes the shard."""
        shard, tokens, last = self._items[index]
        return shard, collate([self._reader.read(token) for token in tokens]), last


def _fill(
    config: RunConfig,
    frames: Frames,
    teacher: Teacher,
    specs: tuple[TargetSpec, ...],
    writer: Writer,
    device: torch.device,
) -> None:
    """Write every missing shard; the forward of one overlaps the writing of the one before."""
    missing = writer.missing()
    shards = [(shard, writer.tokens(shard)) for shard in missing]
    reader = SampleReader(frames, teacher.inputs(), augment=None, seed=config.seed)
    batches = ShardBatches(reader, shards, config.loader.batch_size)
    loader = DataLoader(batches, batch_size=None, **worker_options(config.loader.num_workers))
    todo = sum(len(tokens) for _, tokens in shards)
    done = len(frames.tokens) - todo
    if done:
        _log.info("resuming: %d of %d frames are committed", done, len(frames.tokens))
    with (
        WriteQueue(writer, config.store.queue) as queue,
        progress_bar("extract", len(frames.tokens), done) as bar,
    ):
        for shard, arrays, rows in encoded_shards(teacher, specs, loader, device):
            queue.put(shard, arrays)
            if shard == missing[0]:
                queue.join()
                check_free_disk(writer, len(missing) - 1)
            bar.advance(rows, f"{queue.bytes_written / 1e9:.2f} GB")


def encoded_shards(
    teacher: Teacher,
    specs: tuple[TargetSpec, ...],
    loader: Iterable[tuple[int, Batch, bool]],
    device: torch.device,
) -> Iterator[tuple[int, dict[str, Encoded], int]]:
    """Yield (shard, encoded targets by name, rows) as the teacher completes them."""
    names = [spec.name for spec in specs]
    parts: list[dict[str, Encoded]] = []
    for shard, batch, last in loader:
        outputs = teacher(batch.to(device), names)
        parts.append(
            {
                spec.name: encode(
                    outputs[spec.name],
                    spec,
                    count=outputs.get(f"{spec.name}.count"),
                    tokens=batch.tokens,
                )
                for spec in specs
            }
        )
        if last:
            joined = {name: concatenate([part[name] for part in parts]) for name in names}
            yield shard, joined, sum(len(part[names[0]].values) for part in parts)
            parts = []


def check_free_disk(writer: Writer, shards_left: int) -> None:
    """Compare what one committed shard took, times the shards left, with the free disk.

    Raises:
        DiskFullError: it would not fit; nothing written so far is lost.
    """
    if writer.local_path is None or shards_left == 0:
        return
    needed = writer.bytes_per_shard() * shards_left
    free = shutil.disk_usage(writer.local_path).free
    if needed > free:
        raise DiskFullError(
            f"{writer.local_path}: {shards_left} more shards of about "
            f"{needed / shards_left / 1e6:.1f} MB need {needed / 1e9:.2f} GB, the disk has "
            f"{free / 1e9:.2f} GB free, {(needed - free) / 1e9:.2f} GB short. What is committed "
            "stays; free some space, then run the same command again, or pick a smaller "
            "store.codec and another URL."
        )


def export_head(teacher: Teacher, url: str) -> str | None:
    """Write the teacher's head branches beside a local cache, for `student.head=`."""
    tensors: dict[str, Tensor] = teacher.head()
    if not tensors or "://" in url:
        return None
    path = Path(url.rstrip("/").removesuffix(".zarr") + ".head.safetensors")
    save_weights(tensors, path, {"made_by": "teacher-extract"})
    return str(path)

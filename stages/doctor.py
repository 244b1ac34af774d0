"""doctor: what this machine has for the job, each thing with ok or the next step."""

import importlib.util
import os
import platform
import resource
import uuid
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import torch

from bevcask.cache.files import Files
from bevcask.cache.metadata import ROOT
from bevcask.catalog import home, resolve
from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.data.workers import free_shared
from bevcask.disk_rate import disk_rate
from bevcask.errors import BevcaskError
from bevcask.paths import local_path
from bevcask.processes import cores
from bevcask.provenance import hardware
from bevcask.verbs import DoctorConfig

_PACKAGES = ("torch", "numpy", "zarr", "numcodecs", "nuscenes-devkit", "lightning")
_EXTRAS = {"distributed": "engine=dask", "s3fs": "caches on s3://", "zarrs": "fast plain zarr"}
_MMDET3D = ("mmdet3d", "mmdet", "mmcv", "mmengine")
_SHARED = 2e9  # bytes: sixteen workers, two batches of eight samples each
_FILES = 4096
_SLOW = 100e6  # bytes a second
_WATCHED = 2.0  # seconds
Row = dict[str, Any]


def run(config: DoctorConfig) -> dict[str, Any]:
    """Look at everything; nothing is changed but a file that is written and removed again.

    Returns:
        `checks`: name to `state` (`ok`, `warning`, `wrong`, `optional` of what is not installed,
        `not asked` of what no key names), `found` and `next`; `ok`, False where one is wrong.
    """
    checks = dict(_checks(config))
    return {"ok": all(row["state"] != "wrong" for row in checks.values()), "checks": checks}


def _checks(config: DoctorConfig) -> Iterator[tuple[str, Row]]:
    yield "environment", _row("ok", f"Python {platform.python_version()}, {_versions(_PACKAGES)}")
    yield "device", _device()
    yield "cores", _row("ok", f"{cores()} for this process, {_memory()} GB of memory")
    yield "shared memory", _shared()
    yield "open files", _open_files()
    yield "home", _home()
    yield "cache", _disk(config.cache)
    yield "dataset", _dataset(config.dataset)
    yield "mmdet3d", _mmdet3d()
    for name, use in _EXTRAS.items():
        there = importlib.util.find_spec(name) is not None
        found = f"{metadata.version(name)}: {use}" if there else f"not installed: no {use}"
        step = f"pip install {name}, where that is wanted"
        yield name, _row("ok", found) if there else _row("optional", found, step)


def _row(state: str, found: str, step: str = "") -> Row:
    return {"state": state, "found": found, "next": step}


def _versions(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def _device() -> Row:
    if not torch.cuda.is_available():
        return _row("warning", "no CUDA device: everything runs on the CPU", _towards_cuda())
    found = [hardware(torch.device("cuda", number)) for number in range(torch.cuda.device_count())]
    names = ", ".join(str(one["device"]) for one in found)
    said = f"{len(found)} x {names}, CUDA {found[0]['cuda']}, cuDNN {found[0]['cudnn']}"
    return _row("ok", f"{said}, {found[0]['driver'] or 'driver not told'}")


def _towards_cuda() -> str:
    """Return what to do where there is a GPU; the version of torch stays the one that is tested."""
    if torch.version.cuda is not None:
        return "where there is a GPU: nvidia-smi, and CUDA_VISIBLE_DEVICES, tell why it is not seen"
    version = metadata.version("torch").partition("+")[0]
    return f"where there is a GPU: pip install --force-reinstall torch=={version}, built for CUDA"


def _memory() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)


def _shared() -> Row:
    free = free_shared()
    if free is None:
        return _row("ok", "no /dev/shm: workers hand batches over in files")
    found = f"/dev/shm has {free / 1e9:.1f} GB free"
    if free >= _SHARED:
        return _row("ok", found)
    return _row("warning", found, "in a container: docker run --shm-size=4g (or --ipc=host)")


def _open_files() -> Row:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} at a time, {hard} if asked for"
    if soft >= _FILES:
        return _row("ok", found)
    step = f"ulimit -n {min(hard, 65536) if hard > 0 else 65536}, for many loader workers"
    return _row("warning", found, step)


def _home() -> Row:
    try:
        place = home()
        place.mkdir(parents=True, exist_ok=True)
        (place / f".{uuid.uuid4().hex}").touch()
    except (OSError, BevcaskError) as error:
        return _row("wrong", str(error), "set BEVCASK_HOME to a folder that can be written")
    for left in place.glob(".????????????????????????????????"):
        left.unlink(missing_ok=True)
    return _row("ok", f"{place} can be written")


def _disk(cache: str | None) -> Row:
    """Write until the rate is known, at most two seconds, where the cache is or will be."""
    if cache is None:
        return _row("not asked", "", "cache=URL measures where it would lie")
    try:
        folder = local_path(resolve("cache", cache))
    except BevcaskError as error:
        return _row("wrong", str(error))
    if folder is None:
        return _store(resolve("cache", cache))
    try:
        rate = disk_rate(folder, _WATCHED)
    except OSError as error:
        return _row("wrong", f"{folder}: {error.strerror}", "choose another place for the cache")
    megabytes = f"{rate.bytes_per_second / 1e6:.0f} MB/s written and synced"
    found = f"{rate.folder}: {megabytes}, {rate.free / 1e9:.0f} GB free"
    if rate.bytes_per_second >= _SLOW:
        return _row("ok", found)
    return _row("warning", found, "a slow disk makes extraction wait: see the line at its end")


def _store(url: str) -> Row:
    """Ask a store for a key, which need not be there."""
    try:
        Files(url).size(ROOT)
    except BevcaskError as error:
        return _row("wrong", str(error))
    return _row("ok", f"{url} answers", "benchmarks/bucket.py measures a bucket")


def _dataset(dataset: DatasetConfig | None) -> Row:
    if dataset is None:
        step = "dataset=nuscenes dataset.root=FOLDER looks at one"
        return _row("not asked", "", step)
    try:
        frames = Frames.select(dataset)
    except BevcaskError as error:
        return _row("wrong", str(error))
    first = frames.root / frames.index["frame_image"][frames.row(frames.tokens[0]), 0].decode()
    found = f"{len(frames)} frames of {len(set(frames.scenes))} scenes in {frames.root}"
    if first.is_file():
        return _row("ok", found)
    return _row("wrong", f"{found}, but {first} is not there", "unpack the sensor blobs there too")


def _mmdet3d() -> Row:
    absent = [name for name in _MMDET3D if importlib.util.find_spec(name) is None]
    if absent:
        return _row(
            "optional", f"no {', '.join(absent)}", "make mmdet3d, for its models as teachers"
        )
    return _row("ok", _versions(_MMDET3D))

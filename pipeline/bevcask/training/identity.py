"""Is this the cache of that teacher and of this dataset? Refuses by leaf; loads no model."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from bevcask.cache.identity import check_identity
from bevcask.cache.reader import Cache
from bevcask.config import DatasetConfig, Resampling, TeacherConfig
from bevcask.data.images import RESAMPLING
from bevcask.data.index.arrays import pose_tolerance
from bevcask.data.index.frames import Frames
from bevcask.data.join import cached_frames
from bevcask.detectors.base import Inputs
from bevcask.errors import CacheIdentityError, DataError
from bevcask.geometry import CLASSES

_log = logging.getLogger(__name__)
OnMissing = Literal["raise", "skip"]


def check_classes(cache: Cache) -> None:
    """Refuse a cache whose class order is not ours.

    Raises:
        CacheIdentityError: the leaf is named.
    """
    check_identity(cache, {"classes": list(CLASSES)})


def check_dataset(
    cache: Cache, dataset: DatasetConfig, annotations: bool = True, exact: bool = False
) -> None:
    """Refuse a cache whose frames have other calibration, poses or annotations in this dataset.

    So is one whose images were made smaller in another way than this dataset's are.

    All cached frames are compared, also those outside the split that is trained on, in the order
    of the cache: tables and info files name, hence sort, scenes differently. Virtual points, which
    no student reads, are compared where the dataset names them.

    Info files of mmdet3d 1.x are rounded to float32: against anything else, the poses of LIDAR_TOP
    are compared within that, and calibration, of which a cache keeps a digest alone, is not.

    Args:
        cache: an open cache.
        dataset: where its frames are looked for.
        annotations: compare them, where they decided what was stored.
        exact: compare rounded poses bit for bit too.

    Raises:
        CacheIdentityError: frames are gone, or leaves below `dataset` differ, or
            `preprocessing.image` does.
    """
    stored: dict[str, Any] = cache.fingerprint["dataset"]
    read: dict[str, Any] = cache.fingerprint["preprocessing"]
    memory = "memory" in cache.fingerprint
    frames = Frames.select(dataset.whole())
    gone = [token for token in cache.frames.tokens if token not in frames]
    if gone:
        raise CacheIdentityError(
            f"cache {cache.url}: {len(gone)} of its {len(cache.frames.tokens)} frames are not in "
            f"{dataset.root} {dataset.version} (leaf dataset.tokens), first {gone[0]}. Point "
            "dataset.root and dataset.version at the dataset it was extracted from."
        )
    frames = frames.in_order(cache.frames.tokens)
    found = frames.identity(
        sensors=tuple(stored["calibration"]),
        num_sweeps=max(1, int(read["num_sweeps"])),
        annotations=annotations and "annotations" in stored,
        gaps=Inputs(history=int(read["num_frames"]) - 1, memory=memory).gaps,
        virtual_points="virtual_points" in stored and dataset.virtual_points is not None,
        can_bus="can_bus" in stored,
        motion=memory,
    )
    if not exact and _same_within_rounding(cache, frames, found):
        rounded = {"calibration", "poses", "can_bus"} & stored.keys()
        found |= {name: stored[name] for name in rounded}
    check_identity(cache, {"dataset": found})
    check_resampling(cache, dataset.resampling)


def check_resampling(cache: Cache, resampling: Resampling) -> None:
    """Refuse a cache whose teacher's images were made smaller in another way.

    Raises:
        CacheIdentityError: the leaf is named.
    """
    if cache.fingerprint["preprocessing"]["image"] is not None:
        check_identity(cache, {"preprocessing": {"image": RESAMPLING[resampling]}})


def _same_within_rounding(cache: Cache, frames: Frames, found: Mapping[str, Any]) -> bool:
    """Tell whether poses that a 1.x info file rounded, here or there, are the cache's; say so."""
    stored = cache.fingerprint["dataset"]
    precisions = {cache.provenance.get("pose_precision"), frames.index.precision}
    one_kind = len(precisions) == 1 or "float32" not in precisions
    if one_kind or found["poses"] == stored["poses"]:
        return False
    off = np.abs(frames.lidar_to_global - cache.frames.lidar_to_global).max()
    if off > pose_tolerance(*precisions):
        return False
    _log.warning(
        "cache %s: its poses and those of %s agree within what the info file rounds (%.1g m). "
        "Calibration cannot be compared across this rounding.",
        cache.url,
        frames.index.source,
        off,
    )
    return True


def check_teacher(cache: Cache, teacher: TeacherConfig) -> str:
    """Compare the teacher a user names, if any, with the cache's; its file is hashed, not loaded.

    Returns:
        What the cache says about its teacher, for people.

    Raises:
        CacheIdentityError: leaves below `teacher` differ.
        CheckpointError: the named file cannot be read.
    """
    if teacher != TeacherConfig():
        from bevcask.teachers import find_teacher  # none is imported for a student that names none

        plugin, own = find_teacher(teacher)
        plugin.matches(own, cache)
    return told_of(cache)


def told_of(cache: Cache) -> str:
    """Return what a cache says about its teacher, for people; the result of a training keeps it."""
    stored = cache.fingerprint["teacher"]
    return f"{stored['type']}, weights {str(stored['weights'])[:12]}"


def spoken_of(
    frames: Frames, caches: Sequence[Cache], dataset: DatasetConfig, on_missing: OnMissing
) -> Frames:
    """Return the frames that a teacher which reads caches can speak of.

    Raises:
        CacheIdentityError: a cache is of other frames, poses or calibration than the dataset.
        TokenNotCachedError: frames have no row, unless `on_missing` is `skip`.
    """
    for cache in caches:
        check_dataset(cache, dataset)
        frames = cached_frames(frames, cache, on_missing)
    return frames


def frames_of(dataset: DatasetConfig, cache: Cache) -> Frames:
    """Return the selected frames that the cache has rows for.

    Raises:
        DataError: none of them is cached.
    """
    frames = Frames.select(dataset)
    cached = frames.keep(cache.frames.tokens)
    if not len(cached):
        raise DataError(
            f"none of the {len(frames)} frames of split {dataset.split} in {dataset.root} is in "
            f"cache {cache.url}. Choose dataset.split and dataset.scenes it was extracted from."
        )
    return cached

"""Is this the cache of that teacher and of this dataset? Refuses by leaf; loads no model."""

from typing import Any

from bevcask.cache.identity import check_identity
from bevcask.cache.reader import Cache
from bevcask.config import DatasetConfig, TeacherConfig
from bevcask.data.augment import frame_gap
from bevcask.data.index.frames import Frames
from bevcask.errors import CacheIdentityError, DataError
from bevcask.geometry import CLASSES


def check_classes(cache: Cache) -> None:
    """Refuse a cache whose class order is not ours.

    Raises:
        CacheIdentityError: the leaf is named.
    """
    check_identity(cache, {"classes": list(CLASSES)})


def check_dataset(cache: Cache, dataset: DatasetConfig) -> None:
    """Refuse a cache whose frames have other calibration, poses or annotations in this dataset.

    All cached frames are compared, also those outside the split that is trained on, in the order
    of the cache: tables and info files name, hence sort, scenes differently. Virtual points, which
    no student reads, are compared where the dataset names them.

    Raises:
        CacheIdentityError: frames are gone, or leaves below `dataset` differ.
    """
    stored: dict[str, Any] = cache.fingerprint["dataset"]
    read: dict[str, Any] = cache.fingerprint["preprocessing"]
    everything = dataset.model_copy(update={"split": "all", "scenes": None, "limit": None})
    frames = Frames.select(everything)
    gone = [token for token in cache.frames.tokens if token not in frames]
    if gone:
        raise CacheIdentityError(
            f"cache {cache.url}: {len(gone)} of its {len(cache.frames.tokens)} frames are not in "
            f"{dataset.root} {dataset.version} (leaf dataset.tokens), first {gone[0]}. Point "
            "dataset.root and dataset.version at the dataset it was extracted from."
        )
    found = frames.in_order(cache.frames.tokens).identity(
        sensors=tuple(stored["calibration"]),
        num_sweeps=max(1, int(read["num_sweeps"])),
        annotations="annotations" in stored,
        frame_gap=frame_gap(int(read["num_frames"])),
        virtual_points="virtual_points" in stored and dataset.virtual_points is not None,
    )
    check_identity(cache, {"dataset": found})


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
    stored = cache.fingerprint["teacher"]
    return f"{stored['type']}, weights {str(stored['weights'])[:12]}"


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

"""One cached sample beside the frame it was made from: what `pictures` draws."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.cache import Cache
from bevcask.cache.layout import entry_axis, is_set
from bevcask.catalog import resolve
from bevcask.config import DatasetConfig
from bevcask.data.images import read_image
from bevcask.data.index.frames import Frames
from bevcask.data.lidar import read_points
from bevcask.errors import ConfigError, TokenNotCachedError
from bevcask.geometry import CAMERAS, CLASSES
from bevcask.registry import suggest
from bevcask.targets.spec import TargetSpec
from bevcask.viz.layers import BevMap, BoxLayer, CameraView, LineLayer, Picture

SCORE = 9  # column of a box set, behind the nine box fields
MIN_SCORE = 0.3  # of the teacher boxes that are drawn
_FREE = ("free", "empty")  # classes of voxels that hold nothing
_ENERGY_TAPS = ("bev.neck",)  # drawn first where cached; else the last BEV map


def pick_token(cache: Cache, wanted: str) -> str:
    """Return a sample token: `wanted` itself, or the first committed one for `first`.

    Raises:
        TokenNotCachedError: no such row.
    """
    tokens = list(cache.frames.tokens)
    if wanted != "first":
        if wanted not in tokens:
            raise TokenNotCachedError(
                f"sample={wanted}: not among the {len(tokens)} frames of {cache.url}."
                f"{suggest(wanted, tokens)} Use sample=first, or a token of the dataset's sample "
                "table."
            )
        return wanted
    if not cache.committed:
        raise TokenNotCachedError(
            f"{cache.url}: no frame is committed yet, so there is no first sample."
        )
    return tokens[cache.layout.frames_of(min(cache.committed))[0]]


def describe_sample(cache: Cache, token: str) -> dict[str, Any]:
    """Return scene, time and the range of every target of one sample, as plain JSON data.

    Ranges of box sets are those of their scores; an empty set has range 0.
    """
    number = list(cache.frames.tokens).index(token)
    rows = {}
    for name, values in cache.read_float(token).items():
        spec = cache.specs[name]
        exact = (values[:, SCORE] if spec.tap.kind == "box_set" else values).astype(np.float64)
        if not exact.size:
            exact = np.zeros(1)
        rows[name] = {
            "mean": float(exact.mean()),
            "std": float(exact.std()),
            "min": float(exact.min()),
            "max": float(exact.max()),
            "count": values.shape[entry_axis(spec.tap)] if is_set(spec) else None,
        }
    return {
        "token": token,
        "scene": str(cache.frames.scenes[number]),
        "timestamp": float(cache.frames.timestamps[number]),
        "targets": rows,
    }


def open_frames(cache: Cache, dataset: DatasetConfig) -> Frames:
    """Open the dataset a cache was made from.

    Args:
        cache: its plan recorded root, version and info file.
        dataset: fields that were set here (`dataset.root=`, `dataset.version=`) win.

    Raises:
        ConfigError: the dataset is not there.
        DataError: it is there, and damaged.
    """
    chosen = dataset.over(cache.plan["dataset"])
    folder = Path(resolve("dataset", chosen.root)) / chosen.version
    if chosen.infos is None and not folder.is_dir():
        named = dataset.model_fields_set & {"root", "version"}
        origin = "given" if named else "recorded in the cache"
        raise ConfigError(
            f"a picture shows camera images and ground truth, and {folder} ({origin}) is not "
            "there. Pass dataset.root=FOLDER and, if it differs, dataset.version=NAME; or leave "
            "picture= out."
        )
    return Frames.select(chosen.whole())


def compose_picture(cache: Cache, frames: Frames, token: str) -> Picture:
    """Bring a cached sample and its frame together.

    Args:
        cache: an open cache.
        frames: frames of the dataset it was made from.
        token: a committed sample token of the cache.

    Raises:
        DataError: the frame or one of its files is not in the dataset.
        CacheIncompleteError: its shard is not committed.
    """
    targets = cache.read_float(token)
    layers = [true_boxes(frames, token), *teacher_boxes(cache, targets)]
    teacher = cache.fingerprint["teacher"]
    scene = cache.frames.scenes[list(cache.frames.tokens).index(token)]
    checkpoint = str(teacher.get("checkpoint", ""))
    return Picture(
        title=f"{scene}   sample {token}",
        subtitle=f"teacher {teacher['type']}, weights {teacher['weights'][:12]}"
        f"{' (' + checkpoint + ')' if checkpoint.startswith('random') else ''}   "
        f"dataset {frames.version}   cache {cache.id[:12]}",
        cameras=_cameras(frames, token),
        points_P5=read_points(frames, token, 1),
        maps=[
            *maps_from_above("teacher", first_views(cache), targets),
            *_voxels(cache, targets),
        ],
        layers=layers,
        lines=_polylines(cache, targets),
    )


def true_boxes(frames: Frames, token: str) -> BoxLayer:
    """Return ground truth of a frame."""
    boxes_N9, classes_N, num_lidar_points_N = frames.labels(token)
    return BoxLayer.truth(boxes_N9, num_lidar_points_N, [CLASSES[own] for own in classes_N])


def teacher_boxes(cache: Cache, targets: Mapping[str, npt.NDArray[np.float32]]) -> list[BoxLayer]:
    """Return the sets of boxes among `targets`, what a cache holds of a frame."""
    layers = []
    for name, spec in first_views(cache).items():
        if spec.tap.kind == "box_set" and name in targets:
            said = targets[name]
            names = [(spec.tap.classes or CLASSES)[int(own)] for own in said[:, SCORE + 1]]
            layers.append(BoxLayer.teacher(said[:, :9], said[:, SCORE], names, MIN_SCORE))
    return layers


def maps_from_above(
    who: str, specs: Mapping[str, TargetSpec], values: Mapping[str, npt.NDArray[np.float32]]
) -> list[BevMap]:
    """Return the energy of one map and the peaks of all heatmaps.

    Args:
        who: said them, for the titles.
        specs: by name; one of each tap.
        values: (C, Y, X) float of each dense map and heatmap, by name.
    """
    return [*_energy(who, specs, values), *_heatmaps(who, specs, values)]


def _cameras(frames: Frames, token: str) -> dict[str, CameraView]:
    index, row = frames.index, frames.row(token)
    views = {}
    for number, name in enumerate(CAMERAS):
        height, width = (int(size) for size in index["frame_image_size"][row, number])
        path = frames.root / index["frame_image"][row, number].decode()
        calibration = index["frame_calibration"][row, 1 + number]
        views[name] = CameraView(
            read_image(path, (height, width)),
            np.asarray(index["calibration_intrinsics"][calibration]),
            np.linalg.inv(index["frame_camera_to_lidar"][row, number]),
        )
    return views


def first_views(cache: Cache) -> dict[str, TargetSpec]:
    """Return one target a tap, by its name in the cache: the clean frame's, or the first view's."""
    found: dict[str, tuple[str, TargetSpec]] = {}
    for name, spec in cache.specs.items():
        tap = spec.tap.name
        if tap not in found or spec.view < found[tap][1].view:
            found[tap] = name, spec
    return dict(found.values())


def _seen(spec: TargetSpec) -> str:
    return f", view {spec.view} (augmented images)" if spec.view else ""


def _energy(
    who: str, specs: Mapping[str, TargetSpec], values: Mapping[str, npt.NDArray[np.float32]]
) -> list[BevMap]:
    dense = {name: spec for name, spec in specs.items() if spec.tap.kind == "dense_bev"}
    if not dense:
        return []
    name = next((n for n, spec in dense.items() if spec.tap.name in _ENERGY_TAPS), [*dense][-1])
    values_CYX, tap, grid = values[name], dense[name].tap, dense[name].tap.grid
    assert grid is not None
    seen = _seen(dense[name])
    title = f"{who} {tap.name}: mean |value| over {len(values_CYX)} channels{seen}"
    return [BevMap(np.abs(values_CYX).mean(0), grid, title)]


def _heatmaps(
    who: str, specs: Mapping[str, TargetSpec], values: Mapping[str, npt.NDArray[np.float32]]
) -> list[BevMap]:
    maps = []
    for name, spec in specs.items():
        if spec.tap.kind == "heatmap":
            assert spec.tap.grid is not None
            title = f"{who} {spec.tap.name}: maximum over {spec.tap.shape[0]} classes{_seen(spec)}"
            maps.append(BevMap(values[name].max(0), spec.tap.grid, title, "inferno", (0.0, 1.0)))
    return maps


def _polylines(cache: Cache, targets: dict[str, npt.NDArray[np.float32]]) -> list[LineLayer]:
    layers = []
    for name, spec in first_views(cache).items():
        if spec.tap.kind == "polylines":
            rows = targets[name]
            shown = rows[rows[:, -2] >= MIN_SCORE]
            label = f"teacher {spec.tap.name}, score ≥ {MIN_SCORE:g} ({len(shown)} of {len(rows)})"
            layers.append(LineLayer([own[:-2].reshape(-1, 2) for own in shown], label))
    return layers


def _voxels(cache: Cache, targets: dict[str, npt.NDArray[np.float32]]) -> list[BevMap]:
    maps = []
    for name, spec in first_views(cache).items():
        tap = spec.tap
        if tap.kind not in ("occupancy", "voxel_labels"):
            continue
        assert tap.grid is not None
        taken = np.array([own not in _FREE for own in tap.classes] or [True])
        if tap.kind == "occupancy":
            title = f"teacher {tap.name}: maximum over heights and what is not free{_seen(spec)}"
            maps.append(
                BevMap(targets[name][taken].max((0, 1)), tap.grid, title, "inferno", (0.0, 1.0))
            )
        else:
            title = f"teacher {tap.name}: class of the highest voxel that is not free{_seen(spec)}"
            seen_YX = _from_above(targets[name][0], taken)
            maps.append(BevMap(seen_YX, tap.grid, title, "tab20", (0.0, len(tap.classes) - 1.0)))
    return maps


def _from_above(
    labels_ZYX: npt.NDArray[np.float32], taken_K: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Return the label of the highest voxel of each column that is taken (Y, X), NaN of none."""
    taken_ZYX = taken_K[labels_ZYX.astype(int)][::-1]
    label_YX = np.take_along_axis(labels_ZYX[::-1], taken_ZYX.argmax(0)[None], 0)[0]
    return np.where(taken_ZYX.any(0), label_YX, np.float32(np.nan))

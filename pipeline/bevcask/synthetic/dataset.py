"""Writes a whole synthetic dataset."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bevcask.errors import ConfigError
from bevcask.geometry import CLASSES
from bevcask.processes import end_with_parent
from bevcask.synthetic.keyframe import Seen, write_keyframe, write_map
from bevcask.synthetic.sensors import CAMERAS, LIDAR_CHANNEL
from bevcask.synthetic.tables import TableBuilder, map_file, splits
from bevcask.verbs import SynthesizeConfig
from bevcask.wording import shown

_log = logging.getLogger(__name__)

MARKER = "synthetic.json"
_CHUNK = 10  # keyframes a task; a task builds its scene once


def synthesize(
    config: SynthesizeConfig, on_keyframes: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Write a dataset that the nuScenes devkit loads and evaluates.

    Args:
        config: what to write and where.
        on_keyframes: told how many more keyframes are done.

    Returns:
        `keyframes`, `annotations`, `splits` and, per class, `count`, `mean_points`,
        `median_points` and `per_keyframe`.

    Raises:
        ConfigError: the folder holds something that was not synthesized, or there are more scenes
            for validation than scenes, or the version is one of nuScenes' own.
    """
    _check(config)
    root = prepare_folder(config)
    tasks = [
        (config, scene, first, min(first + _CHUNK, config.num_keyframes))
        for scene in range(config.num_scenes)
        for first in range(0, config.num_keyframes, _CHUNK)
    ]
    builder = TableBuilder(config)
    points: dict[str, list[int]] = defaultdict(list)
    seen: list[Seen] = []
    with _mapper(config.workers) as run:
        for (_, scene, first, last), part in zip(tasks, run(_write_chunk, tasks), strict=True):
            seen += part
            if last == config.num_keyframes:
                for name, counts in builder.add_scene(scene, seen).items():
                    points[name] += counts
                seen = []
            if on_keyframes is not None:
                on_keyframes(last - first)
    folder = root / config.version
    for name, table in builder.tables.items():
        _write_json(folder / f"{name}.json", table)
    _write_json(folder / "splits.json", splits(config))
    summary = _summarise(config, points)
    _write_json(root / MARKER, {"complete": True, **_identity(config), "summary": summary})
    return summary


def _check(config: SynthesizeConfig) -> None:
    if config.val_scenes > config.num_scenes:
        raise ConfigError(
            f"val_scenes: expected at most num_scenes={config.num_scenes}, got "
            f"{config.val_scenes}. Ask for more scenes, or fewer of them for validation."
        )
    plain = re.fullmatch(r"\w[\w.-]{0,99}", config.version)
    taken = config.version in ("samples", "sweeps", "maps")
    if not plain or taken or config.version.endswith(("-trainval", "-mini", "-test")):
        raise ConfigError(
            "version: expected a name of its own such as v1.0-synthetic, got "
            f"{shown(config.version)}. The devkit ties names on -trainval, -mini and -test to the "
            "real splits."
        )


def _write_chunk(task: tuple[SynthesizeConfig, int, int, int]) -> list[Seen]:
    config, scene, first, last = task
    if first == 0:
        write_map(config, scene, Path(config.out) / map_file(scene))
    return [write_keyframe(config, scene, k) for k in range(first, last)]


@contextmanager
def _mapper(workers: int | None) -> Iterator[Callable[..., Any]]:
    """An ordered `map`, in this process or over a pool."""
    processes = (os.cpu_count() or 1) if workers is None else workers
    if processes <= 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, end_with_parent) as pool:
        yield pool.map


def prepare_folder(config: SynthesizeConfig) -> Path:
    """Make an empty dataset folder; an older synthetic dataset in its place is removed."""
    root = Path(config.out)
    entries = {p.name for p in root.iterdir()} if root.is_dir() else set()
    if (root.exists() and not root.is_dir()) or (entries and MARKER not in entries):
        raise ConfigError(
            f"out={config.out}: expected an empty or new folder, or an older synthetic dataset "
            f"(one with {MARKER}), got something else. Nothing was touched; pick another folder."
        )
    if MARKER in entries:
        _log.warning("%s: the synthetic dataset that is there is replaced", root)
        old = json.loads((root / MARKER).read_text())
        for name in ("samples", "sweeps", "maps", str(old["config"]["version"])):
            shutil.rmtree(root / name, ignore_errors=True)
    for channel in CAMERAS:
        (root / "samples" / channel).mkdir(parents=True)
    for folder in ("samples", "sweeps"):
        (root / folder / LIDAR_CHANNEL).mkdir(parents=True)
    for folder in ("maps", config.version):
        (root / folder).mkdir()
    _write_json(root / MARKER, {"complete": False, **_identity(config)})
    return root


def _identity(config: SynthesizeConfig) -> dict[str, Any]:
    """The part of the configuration that decides the bytes."""
    return {"config": config.model_dump(exclude={"out", "workers"})}


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=0))


def _summarise(config: SynthesizeConfig, points: dict[str, list[int]]) -> dict[str, Any]:
    keyframes = config.num_scenes * config.num_keyframes
    classes = {}
    for name in CLASSES:
        counts = np.array(points.get(name) or [0])
        total = len(points.get(name, []))
        classes[name] = {
            "count": total,
            "per_keyframe": round(total / keyframes, 2),
            "mean_points": round(float(counts.mean()), 1),
            "median_points": float(np.median(counts)),
        }
    return {
        "keyframes": keyframes,
        "annotations": sum(len(v) for v in points.values()),
        "splits": {name: len(scenes) for name, scenes in splits(config).items()},
        "classes": classes,
    }

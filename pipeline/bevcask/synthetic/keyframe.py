"""One keyframe: six images, the LiDAR spin and the sweeps before it, and what was seen.

A keyframe depends on nothing but the configuration, its scene and its number, so keyframes can be
made in any order and by any process.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image
from scipy.spatial import cKDTree

from bevcask.synthetic.ground import Ground, build_ground, cast_shadows
from bevcask.synthetic.lidar import scan
from bevcask.synthetic.raycast import pose_parts
from bevcask.synthetic.render import render
from bevcask.synthetic.sensors import CAMERAS, LIDAR, LIDAR_CHANNEL, SPIN_PERIOD, sensor_pose
from bevcask.synthetic.world import KEYFRAME_PERIOD, World, build_world
from bevcask.verbs import SynthesizeConfig

Array = npt.NDArray[Any]

SHADOW_RANGE = 60.0  # metres
_GROUND, _SCAN = 1, 2  # random streams of a scene; the world itself uses 0
_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Seen:
    """What the sensors saw of each entity in one keyframe (N entities).

    Attributes:
        lidar_points_N: LiDAR returns inside the annotated box.
        visible_N: image pixels, all cameras together.
        outline_N: pixels it would cover if nothing stood in front of it.
    """

    lidar_points_N: Array
    visible_N: Array
    outline_N: Array


def keyframe_time(index: int) -> float:
    """Seconds since the first keyframe."""
    return index * KEYFRAME_PERIOD


def sweep_times(config: SynthesizeConfig, index: int) -> list[float]:
    """Times of the sweeps between the keyframe before and this one; none before the first."""
    if index == 0:
        return []
    ticks = round(KEYFRAME_PERIOD / SPIN_PERIOD)
    steps = np.arange(1, config.num_sweeps + 1) * ticks / (config.num_sweeps + 1)
    times = keyframe_time(index - 1) + np.round(steps) * SPIN_PERIOD
    return [float(t) for t in times]


def scene_start(scene: int) -> datetime:
    """Wall clock of the first keyframe of a scene."""
    return _EPOCH + timedelta(hours=scene)


def timestamp(scene: int, t: float) -> int:
    """Microseconds since 1970 at `t` seconds into a scene."""
    return round(scene_start(scene).timestamp() * 1e6) + round(t * 1e6)


def log_name(scene: int) -> str:
    """Name of the drive a scene belongs to, in the style of nuScenes."""
    return f"n900-{scene_start(scene):%Y-%m-%d-%H-%M-%S}+0000"


def file_name(scene: int, channel: str, t: float, is_keyframe: bool) -> str:
    """Path of a sensor file inside the dataset."""
    folder = "samples" if is_keyframe else "sweeps"
    suffix = "pcd.bin" if channel == LIDAR_CHANNEL else "jpg"
    stem = f"{log_name(scene)}__{channel}__{timestamp(scene, t)}"
    return f"{folder}/{channel}/{stem}.{suffix}"


@lru_cache(maxsize=1)
def load_world(seed: int, scene: int, num_keyframes: int) -> World:
    """Build (or reuse) the world of a scene."""
    return build_world(seed, scene, keyframe_time(num_keyframes - 1))


@lru_cache(maxsize=1)
def load_ground(seed: int, scene: int, num_keyframes: int) -> Ground:
    """Build (or reuse) the ground of a scene."""
    rng = np.random.default_rng([seed, scene, _GROUND])
    return build_ground(load_world(seed, scene, num_keyframes), rng)


def write_map(config: SynthesizeConfig, scene: int, path: Path) -> None:
    """Write the map mask of a scene."""
    ground = load_ground(config.seed, scene, config.num_keyframes)
    Image.fromarray(np.ascontiguousarray(ground.mask_YX)).save(path)


def write_keyframe(config: SynthesizeConfig, scene: int, index: int) -> Seen:
    """Write the sensor files of one keyframe and of the sweeps that lead to it.

    Args:
        config: the dataset.
        scene: index of the scene.
        index: index of the keyframe in it.

    Returns:
        What the sensors saw of each entity.
    """
    world = load_world(config.seed, scene, config.num_keyframes)
    ground = load_ground(config.seed, scene, config.num_keyframes)
    root, t = Path(config.out), keyframe_time(index)
    points: Array = np.zeros((0, 5), np.float32)
    for number, moment in enumerate([*sweep_times(config, index), t]):
        rng = np.random.default_rng([config.seed, scene, _SCAN, index, number])
        points = scan(world, ground, moment, rng)
        points.tofile(root / file_name(scene, LIDAR_CHANNEL, moment, moment == t))
    shadow = np.zeros(ground.code_YX.shape, np.uint8)
    cast_shadows(world, pose_parts(world, t), near_ego(world, world.moving, t), shadow)
    visible, outline = np.zeros((2, len(world.entities)), np.int64)
    for channel, camera in CAMERAS.items():
        moment = t - camera.delay
        size = (config.image_width, config.image_height)
        view = render(world, ground, shadow, camera, moment, size)
        jpeg = simplejpeg.encode_jpeg(
            np.ascontiguousarray(view.image_HW3),
            quality=config.jpeg_quality,
            colorsubsampling="420",
        )
        (root / file_name(scene, channel, moment, True)).write_bytes(jpeg)
        visible += view.visible_N
        outline += view.outline_N
    return Seen(count_points(world, points, t), visible, outline)


def count_points(world: World, points_M5: Array, t: float) -> Array:
    """Points inside the annotated box of each entity (N), faces included, as the devkit counts."""
    R, eye = sensor_pose(world, LIDAR, t)
    xyz = points_M5[:, :3].astype(np.float64) @ R.T + eye
    xy_N2, yaw_N, alive_N = world.poses(t)
    tree = cKDTree(xyz[:, :2])
    counts = np.zeros(len(world.entities), np.int64)
    for n in np.flatnonzero(alive_N & world.annotated):
        w, l, h = world.entities[n].size_wlh  # noqa: E741
        near = xyz[tree.query_ball_point(xy_N2[n], np.hypot(w, l) / 2 + 0.01)]
        offset = near[:, :2] - xy_N2[n]
        cos, sin = np.cos(yaw_N[n]), np.sin(yaw_N[n])
        forward = np.abs(offset[:, 0] * cos + offset[:, 1] * sin) <= l / 2
        left = np.abs(offset[:, 1] * cos - offset[:, 0] * sin) <= w / 2
        counts[n] = np.count_nonzero(forward & left & (near[:, 2] >= 0) & (near[:, 2] <= h))
    return counts


def near_ego(world: World, entities: Array, t: float) -> Array:
    """Those of `entities` whose shadow a camera could make out at `t`."""
    ego = world.ego_pose(t)[0][:2]
    distance = np.linalg.norm(world.poses(t)[0][entities] - ego, axis=1)
    return np.asarray(entities[distance < SHADOW_RANGE])

"""The 13 nuScenes tables of a synthetic dataset, cross-referenced and in the devkit's format."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Any

import numpy as np

from bevcask.synthetic.entities import Entity
from bevcask.synthetic.keyframe import (
    Seen,
    file_name,
    keyframe_time,
    load_world,
    log_name,
    scene_start,
    sweep_times,
    timestamp,
)
from bevcask.synthetic.sensors import (
    CAMERAS,
    LIDAR,
    LIDAR_CHANNEL,
    CameraMount,
    Mount,
    yaw_quaternion,
)
from bevcask.synthetic.world import World
from bevcask.verbs import SynthesizeConfig

Record = dict[str, Any]
Tables = dict[str, list[Record]]

ANNOTATED_RANGE = 60.0  # metres from the ego
SEEN_PIXELS = 30
STANDING = 0.2  # metres per second; slower counts as not moving

CATEGORIES = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "construction_vehicle": "vehicle.construction",
    "bus": "vehicle.bus.rigid",
    "trailer": "vehicle.trailer",
    "barrier": "movable_object.barrier",
    "motorcycle": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle",
    "pedestrian": "human.pedestrian.adult",
    "worker": "human.pedestrian.construction_worker",
    "traffic_cone": "movable_object.trafficcone",
}
ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)
VISIBILITY = ((0, 40), (40, 60), (60, 80), (80, 100))


class TableBuilder:
    """Builds the tables of one dataset; owns the tables while they grow."""

    def __init__(self, config: SynthesizeConfig):
        self.config = config
        self.tables: Tables = defaultdict(list)
        for table in ("instance", "ego_pose", "sample", "sample_data", "sample_annotation"):
            self.tables[table] = []
        self._write_vocabulary()

    def token(self, *path: object) -> str:
        """32 hex digits that depend on the seed and `path` alone."""
        text = "/".join(map(str, ("bevcask-synthetic", self.config.seed, *path)))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _write_vocabulary(self) -> None:
        for name in CATEGORIES.values():
            self._put("category", name, name=name, description=f"Synthetic {name}.")
        for name in ATTRIBUTES:
            self._put("attribute", name, name=name, description=f"Synthetic {name}.")
        for level, (low, high) in enumerate(VISIBILITY, start=1):
            text = f"visibility of whole object is between {low} and {high}%"
            record = {"description": text, "token": str(level), "level": f"v{low}-{high}"}
            self.tables["visibility"].append(record)
        for channel in (*CAMERAS, LIDAR_CHANNEL):
            modality = "lidar" if channel == LIDAR_CHANNEL else "camera"
            self._put("sensor", channel, channel=channel, modality=modality)

    def _put(self, table: str, *path: object, **fields: Any) -> str:
        token = self.token(table, *path)
        self.tables[table].append({"token": token, **fields})
        return token

    def add_scene(self, scene: int, seen: list[Seen]) -> dict[str, list[int]]:
        """Add one scene.

        Args:
            scene: its index.
            seen: what the sensors saw, one a keyframe.

        Returns:
            LiDAR points of every annotation, by class name.
        """
        world = load_world(self.config.seed, scene, self.config.num_keyframes)
        keyframes = range(self.config.num_keyframes)
        samples = [self.token("sample", scene, k) for k in keyframes]
        log = self._put(
            "log",
            scene,
            logfile=log_name(scene),
            vehicle="n900",
            date_captured=f"{scene_start(scene):%Y-%m-%d}",
            location=f"toy-city-{scene:04d}",
        )
        self._put(
            "map", scene, log_tokens=[log], category="semantic_prior", filename=map_file(scene)
        )
        self._put(
            "scene",
            scene,
            log_token=log,
            nbr_samples=len(samples),
            first_sample_token=samples[0],
            last_sample_token=samples[-1],
            name=scene_name(scene),
            description=_describe(world),
        )
        for k in keyframes:
            self.tables["sample"].append(
                {
                    "token": samples[k],
                    "timestamp": timestamp(scene, keyframe_time(k)),
                    "prev": samples[k - 1] if k else "",
                    "next": samples[k + 1] if k + 1 < len(samples) else "",
                    "scene_token": self.token("scene", scene),
                }
            )
        self._add_sensor_data(world, scene, samples)
        return self._add_annotations(world, scene, samples, seen)

    def _add_sensor_data(self, world: World, scene: int, samples: list[str]) -> None:
        width, height = self.config.image_width, self.config.image_height
        for channel, mount in {**CAMERAS, LIDAR_CHANNEL: LIDAR}.items():
            calibrated = self._calibrate(scene, channel, mount)
            is_camera = isinstance(mount, CameraMount)
            shots: list[tuple[float, int, bool]] = []
            for k in range(len(samples)):
                if not is_camera:
                    shots += [(t, k, False) for t in sweep_times(self.config, k)]
                delay = mount.delay if isinstance(mount, CameraMount) else 0.0
                shots.append((keyframe_time(k) - delay, k, True))
            tokens = [self.token("sample_data", scene, channel, i) for i in range(len(shots))]
            for i, (t, k, is_keyframe) in enumerate(shots):
                self._add_ego_pose(world, scene, t, tokens[i])
                record = {
                    "token": tokens[i],
                    "sample_token": samples[k],
                    "ego_pose_token": tokens[i],
                    "calibrated_sensor_token": calibrated,
                    "timestamp": timestamp(scene, t),
                    "fileformat": "jpg" if is_camera else "pcd",
                    "is_key_frame": is_keyframe,
                    "height": height if is_camera else 0,
                    "width": width if is_camera else 0,
                    "filename": file_name(scene, channel, t, is_keyframe),
                    "prev": tokens[i - 1] if i else "",
                    "next": tokens[i + 1] if i + 1 < len(tokens) else "",
                }
                self.tables["sample_data"].append(record)

    def _calibrate(self, scene: int, channel: str, mount: Mount) -> str:
        intrinsic: list[list[float]] = []
        if isinstance(mount, CameraMount):
            K = mount.intrinsic(self.config.image_width, self.config.image_height)
            intrinsic = K.tolist()
        return self._put(
            "calibrated_sensor",
            scene,
            channel,
            sensor_token=self.token("sensor", channel),
            translation=list(mount.translation),
            rotation=list(mount.rotation),
            camera_intrinsic=intrinsic,
        )

    def _add_ego_pose(self, world: World, scene: int, t: float, token: str) -> None:
        position, yaw = world.ego_pose(t)
        self.tables["ego_pose"].append(
            {
                "token": token,
                "timestamp": timestamp(scene, t),
                "rotation": list(yaw_quaternion(yaw)),
                "translation": position.tolist(),
            }
        )

    def _add_annotations(
        self, world: World, scene: int, samples: list[str], seen: list[Seen]
    ) -> dict[str, list[int]]:
        poses = [world.poses(keyframe_time(k)) for k in range(len(samples))]
        moving = [
            np.linalg.norm(world.velocities(keyframe_time(k)), axis=1) > STANDING
            for k in range(len(samples))
        ]
        points: dict[str, list[int]] = defaultdict(list)
        for n, (first, last) in _annotated_spans(world, poses, seen).items():
            entity = world.entities[n]
            tokens = {
                k: self.token("sample_annotation", scene, n, k) for k in range(first, last + 1)
            }
            category = CATEGORIES["worker" if entity.worker else entity.name]
            instance = self._put(
                "instance",
                scene,
                n,
                category_token=self.token("category", category),
                nbr_annotations=len(tokens),
                first_annotation_token=tokens[first],
                last_annotation_token=tokens[last],
            )
            for k, token in tokens.items():
                attribute = _attribute(entity, bool(moving[k][n]))
                (x, y), yaw = poses[k][0][n].tolist(), float(poses[k][1][n])
                count = int(seen[k].lidar_points_N[n])
                points[entity.name].append(count)
                self.tables["sample_annotation"].append(
                    {
                        "token": token,
                        "sample_token": samples[k],
                        "instance_token": instance,
                        "visibility_token": _visibility(seen[k], n),
                        "attribute_tokens": [self.token("attribute", a) for a in attribute],
                        "translation": [x, y, entity.size_wlh[2] / 2],
                        "size": list(entity.size_wlh),
                        "rotation": list(yaw_quaternion(yaw)),
                        "prev": tokens.get(k - 1, ""),
                        "next": tokens.get(k + 1, ""),
                        "num_lidar_pts": count,
                        "num_radar_pts": 0,
                    }
                )
        return points


def _annotated_spans(
    world: World, poses: list[tuple[Any, Any, Any]], seen: list[Seen]
) -> dict[int, tuple[int, int]]:
    """First and last keyframe of each entity that comes near and is seen at least once."""
    near = []
    for k, (xy, _, alive) in enumerate(poses):
        ego = world.ego_pose(keyframe_time(k))[0][:2]
        near.append(alive & (np.linalg.norm(xy - ego, axis=1) < ANNOTATED_RANGE))
    spans = {}
    for n in np.flatnonzero(world.annotated):
        frames = [k for k in range(len(poses)) if near[k][n]]
        noticed = any(
            seen[k].lidar_points_N[n] > 0 or seen[k].visible_N[n] > SEEN_PIXELS for k in frames
        )
        if frames and noticed:
            spans[int(n)] = (frames[0], frames[-1])
    return spans


def _attribute(entity: Entity, moving: bool) -> list[str]:
    if entity.name in ("barrier", "traffic_cone"):
        return []
    if entity.name in ("bicycle", "motorcycle"):
        return ["cycle.with_rider" if entity.rider else "cycle.without_rider"]
    if entity.name == "pedestrian":
        return ["pedestrian.moving" if moving else "pedestrian.standing"]
    if moving:
        return ["vehicle.moving"]
    return ["vehicle.parked" if entity.parked else "vehicle.stopped"]


def _visibility(seen: Seen, n: int) -> str:
    """Token of the visible share of the pixels an entity covers in all images together."""
    share = seen.visible_N[n] / max(int(seen.outline_N[n]), 1)
    return str(1 + int(np.searchsorted([0.4, 0.6, 0.8], share, side="right")))


def scene_name(scene: int) -> str:
    """Name of a scene; apart from every real nuScenes scene."""
    return f"scene-{9000 + scene:04d}"


def map_file(scene: int) -> str:
    """Path of the map mask of a scene inside the dataset."""
    return f"maps/toy-city-{scene:04d}.png"


def _describe(world: World) -> str:
    speed = world.ego.mean
    return f"Synthetic street, {2 * world.road.lanes} lanes, ego at about {speed:.0f} m/s"


def splits(config: SynthesizeConfig) -> dict[str, list[str]]:
    """Custom splits for the devkit; the last `val_scenes` scenes are for validation."""
    names = [scene_name(i) for i in range(config.num_scenes)]
    border = config.num_scenes - config.val_scenes
    return {"synthetic_train": names[:border], "synthetic_val": names[border:]}

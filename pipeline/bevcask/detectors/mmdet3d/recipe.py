"""What an mmdet3d config says: the model, its classes, and the inputs its pipeline prepares."""

import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from bevcask import config as configuration
from bevcask.consent import is_config_file
from bevcask.detectors.base import Inputs
from bevcask.detectors.mmdet3d.families import Tap, taps_of
from bevcask.errors import ConfigError, MissingDependencyError
from bevcask.geometry import CLASSES
from bevcask.registry import suggest

VIEWS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
"""mmdet3d's order of the nuScenes cameras."""
_NUSCENES_HW = (900, 1600)


class Mmdet3dConfig(configuration.Config):
    """Which model, and what its config leaves open."""

    config: str = Field(description="config file, or the name of one shipped with mmdet3d")
    options: dict[str, Any] = Field(
        default_factory=dict, description="changes of it, as mmdet3d's --cfg-options"
    )
    classes: tuple[str, ...] | None = Field(
        None, description="our name of each of its classes, in its order; default: by equal names"
    )
    taps: dict[str, Tap] = Field(
        default_factory=dict, description="more taps: name -> module path, or {at, kind, ...}"
    )
    extent: tuple[float, float, float, float] | None = Field(
        None, description="x_min, y_min, x_max, y_max of its BEV maps; default: point_cloud_range"
    )
    image_size_HW: tuple[int, int] | None = Field(
        None, description="network input, pixels; default: what its test pipeline resizes to"
    )
    cameras: tuple[str, ...] = Field(VIEWS, description="which cameras it sees, in its order")

    @field_validator("taps", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        """Let a plain path stand for a dense BEV map."""
        if not isinstance(value, dict):
            return value
        return {name: {"at": tap} if isinstance(tap, str) else tap for name, tap in value.items()}

    @field_validator("cameras")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or set(value) - set(VIEWS):
            raise ValueError(f"expected some of {', '.join(VIEWS)}")
        return value


@dataclass(frozen=True)
class Recipe:
    """What is needed of an mmdet3d config.

    Attributes:
        model: the model section, plain data, without pretrained weights to download.
        classes: our name of each label, in the model's order.
        task_classes: our names by task of a CenterHead; one task for other heads.
        taps: by name, known ones and the user's.
        required: names of taps the user gave, which must exist.
        extent: x_min, y_min, x_max, y_max of BEV maps; None where the config does not say.
        point_range: box (x, y, z low, x, y, z high) outside which points are dropped, or None.
        point_columns: which of x, y, z, intensity, time it takes.
        inputs: what the loader must provide.
        cameras: its cameras in its order; empty without images.
    """

    model: dict[str, Any]
    classes: tuple[str, ...]
    task_classes: tuple[tuple[str, ...], ...]
    taps: dict[str, Tap]
    required: frozenset[str]
    extent: tuple[float, float, float, float] | None
    point_range: tuple[float, ...] | None
    point_columns: tuple[int, ...]
    inputs: Inputs
    cameras: tuple[str, ...]

    @property
    def monocular(self) -> bool:
        """True for models that see one camera at a time and speak in its frame."""
        return "Mono3D" in str(self.model["type"])

    @property
    def head(self) -> dict[str, Any]:
        """The section of the box head."""
        found: dict[str, Any] = self.model.get("pts_bbox_head") or self.model.get("bbox_head") or {}
        return found

    @property
    def box_columns(self) -> int:
        """7 where the head codes no velocity, else 9."""
        coder = self.head.get("bbox_coder") or {}
        without_velocity = 7 if str(coder.get("type", "")).startswith("DeltaXYZWLHR") else 9
        return 9 if coder.get("code_size", without_velocity) >= 9 else 7


def require() -> None:
    """Import mmdet3d and the compiled ops of mmcv; quiet their loggers, which write to stdout.

    Raises:
        MissingDependencyError: a piece is missing or broken.
    """
    for module in ("mmengine", "mmcv.ops", "mmdet", "mmdet3d.models"):
        try:
            importlib.import_module(module)
        except Exception as error:  # a version check of theirs is an AssertionError
            raise MissingDependencyError(
                f"this detector is an mmdet3d model, and {module} cannot be imported "
                f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). Run "
                "`make mmdet3d`: it installs mmdet3d beside bevcask, with the compiled ops of mmcv."
            ) from error
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    logger = MMLogger.get_current_instance()
    logger.setLevel(logging.WARNING)
    logger.handlers.clear()  # they write to stdout; without any, warnings go to stderr
    init_default_scope("mmdet3d")
    # What their modules warn of in calls we make is nothing a user of bevcask could act on.
    theirs = r"(mm(det3d|det|cv|engine)|spconv)\."
    warnings.filterwarnings("ignore", category=UserWarning, module=theirs)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # asked by spconv


def versions() -> dict[str, str]:
    """Return the versions that decide what a model computes."""
    return {name: metadata.version(name) for name in ("mmdet3d", "mmcv", "mmdet", "mmengine")}


def find(name: str) -> Path:
    """Return the config file a name stands for.

    Raises:
        ConfigError: neither a file nor the name of a shipped config.
    """
    if is_config_file(name):
        if not Path(name).is_file():
            raise ConfigError(f"config={name}: no such file.")
        return Path(name)
    spec = util.find_spec("mmdet3d")
    assert spec is not None
    assert spec.origin is not None
    shipped = {
        path.stem: path for path in (Path(spec.origin).parent / ".mim" / "configs").rglob("*.py")
    }
    if name in shipped:
        return shipped[name]
    raise ConfigError(
        f"config={name}: no such file, and mmdet3d {metadata.version('mmdet3d')} ships no config "
        f"of that name.{suggest(name, shipped)} Give the path of a config.py, or one of the "
        f"{len(shipped)} names without .py in mmdet3d/.mim/configs."
    )


def read(own: Mmdet3dConfig) -> Recipe:
    """Read an mmdet3d config.

    Raises:
        MissingDependencyError: mmdet3d is not installed.
        ConfigError: no such config, it cannot be read, or it asks for what we cannot give.
    """
    require()
    cfg = _load(own)
    model = _without_downloads(cfg.model.to_dict())
    head = model.get("pts_bbox_head") or model.get("bbox_head") or {}
    tasks = [list(task["class_names"]) for task in head.get("tasks", ())]
    theirs = [name for task in tasks for name in task] or _class_names(cfg)
    classes = _map_classes(own, theirs)
    steps = list(_steps(_pipeline(cfg)))
    images = any("Image" in str(step["type"]) and "Load" in str(step["type"]) for step in steps)
    extent = own.extent
    if extent is None and (box := _point_cloud_range(cfg, model)) is not None:
        extent = (box[0], box[1], box[3], box[4])
    ranges = [s["point_cloud_range"] for s in steps if s["type"] == "PointsRangeFilter"]
    return Recipe(
        model=model,
        classes=classes,
        task_classes=_grouped(classes, [len(task) for task in tasks] or [len(classes)]),
        taps={**taps_of(model), **own.taps},
        required=frozenset(own.taps),
        extent=extent,
        point_range=tuple(map(float, ranges[0])) if ranges else None,
        point_columns=_columns(own, steps),
        inputs=_inputs(own, steps, images),
        cameras=own.cameras if images else (),
    )


def identity(own: Mmdet3dConfig) -> dict[str, Any]:
    """Return what decides what the model computes: resolved model, inputs and versions."""
    recipe = read(own)
    left_open = own.model_dump(mode="json", exclude={"config", "options"})
    model = json.loads(json.dumps(recipe.model, default=str, sort_keys=True))
    return {
        **left_open,
        "model": model,
        "class_order": list(recipe.classes),
        "points": {"range": recipe.point_range, "columns": list(recipe.point_columns)},
        "versions": versions(),
    }


def _load(own: Mmdet3dConfig) -> Any:
    from mmengine.config import Config as MMConfig

    path = find(own.config)
    try:
        cfg = MMConfig.fromfile(path)
        cfg.merge_from_dict(own.options)
    except ImportError as error:
        raise ConfigError(
            f"{path}: its custom_imports cannot be imported ({error}). Put the folder that holds "
            "them (for `projects.NAME`, the mmdetection3d checkout) on PYTHONPATH."
        ) from error
    except Exception as error:  # a config is a program: it may fail in any way
        raise ConfigError(
            f"{path}: cannot read this config ({type(error).__name__}: {error})."
        ) from error
    if "model" not in cfg:
        raise ConfigError(f"{path}: this config has no `model` section; give a detector's config.")
    return cfg


def _without_downloads(section: Any) -> Any:
    """Copy a section without `init_cfg` that names weights: those come from the checkpoint."""
    if isinstance(section, dict):
        return {
            key: _without_downloads(value)
            for key, value in section.items()
            if key != "pretrained"
            and not (key == "init_cfg" and isinstance(value, dict) and "checkpoint" in value)
        }
    if isinstance(section, list | tuple):
        return type(section)(_without_downloads(value) for value in section)
    return section


def _pipeline(cfg: Any) -> list[Any]:
    for loader in ("test_dataloader", "val_dataloader"):
        dataset = cfg.get(loader, {}).get("dataset", {})
        while "dataset" in dataset:
            dataset = dataset["dataset"]
        if "pipeline" in dataset:
            return list(dataset["pipeline"])
    return list(cfg.get("test_pipeline", []))


def _steps(pipeline: list[Any]) -> Iterator[Any]:
    """Yield transforms, nested ones in their place."""
    for step in pipeline:
        yield step
        yield from _steps(step.get("transforms", []))


def _class_names(cfg: Any) -> list[str]:
    for key in ("train_dataloader", "test_dataloader"):
        dataset = cfg.get(key, {}).get("dataset", {})
        while "dataset" in dataset:
            dataset = dataset["dataset"]
        if names := dataset.get("metainfo", {}).get("classes"):
            return list(names)
    return list(cfg.get("class_names", []))


def _map_classes(own: Mmdet3dConfig, theirs: list[str]) -> tuple[str, ...]:
    """Return our name of each of their classes."""
    ours = own.classes or tuple(theirs)
    wrong = [name for name in ours if name not in CLASSES]
    if not ours:
        problem = "names no classes"
    elif theirs and len(ours) != len(theirs):
        problem = f"has {len(theirs)} classes ({', '.join(theirs)}), `classes` lists {len(ours)}"
    elif wrong:
        problem = f"has class {wrong[0]!r}, which is none of ours.{suggest(wrong[0], CLASSES)}"
    elif len(set(ours)) < len(ours):
        problem = f"would give two of its classes one name of ours: {', '.join(ours)}"
    else:
        return tuple(ours)
    raise ConfigError(
        f"config={own.config} {problem} Ours are {', '.join(CLASSES)}. Say "
        "detector.classes=[...]: our name of each of its classes, in its order"
        f"{': ' + ', '.join(theirs) if theirs else ''}."
    )


def _grouped(names: tuple[str, ...], sizes: list[int]) -> tuple[tuple[str, ...], ...]:
    rest = iter(names)
    return tuple(tuple(next(rest) for _ in range(size)) for size in sizes)


def _point_cloud_range(cfg: Any, model: dict[str, Any]) -> list[float] | None:
    preprocessor = model.get("data_preprocessor") or {}
    layer = preprocessor.get("voxel_layer") or preprocessor.get("voxelize_cfg") or {}
    found = layer.get("point_cloud_range") or cfg.get("point_cloud_range")
    return None if found is None else [float(value) for value in found]


def _find_step(steps: list[Any], ending: str) -> Any:
    return next((step for step in steps if str(step["type"]).endswith(ending)), None)


def _columns(own: Mmdet3dConfig, steps: list[Any]) -> tuple[int, ...]:
    """Return which of our point columns the model takes."""
    load, sweeps = (
        _find_step(steps, ending) for ending in ("LoadPointsFromFile", "LoadPointsFromMultiSweeps")
    )
    if load is None:
        return ()
    use = (sweeps or load).get("use_dim", [0, 1, 2, 4] if sweeps else [0, 1, 2])
    columns = tuple(range(use)) if isinstance(use, int) else tuple(use)
    if sweeps is None and max(columns) > 3:
        raise ConfigError(
            f"config={own.config}: it reads column {max(columns)} of single scans (the ring), and "
            "bevcask reads x, y, z, intensity. Use a config with sweeps, or with use_dim below 5."
        )
    return columns


def _inputs(own: Mmdet3dConfig, steps: list[Any], images: bool) -> Inputs:
    sweeps = _find_step(steps, "LoadPointsFromMultiSweeps")
    size_HW = (own.image_size_HW or _image_size(steps)) if images else None
    if sweeps is None:
        scans = 1 if _find_step(steps, "LoadPointsFromFile") else 0
        return Inputs(size_HW, num_sweeps=scans, ego_points="keep", pad="never")
    return Inputs(
        size_HW,
        num_sweeps=1 + sweeps.get("sweeps_num", 10),
        ego_points="keyframe" if sweeps.get("remove_close", False) else "keep",
        pad="empty" if sweeps.get("pad_empty_sweeps", False) else "never",
    )


def _image_size(steps: list[Any]) -> tuple[int, int]:
    """Return the network input size the pipeline makes of nuScenes' 900 x 1600."""
    for step in steps:
        final = step.get("final_dim") or step.get("data_aug_conf", {}).get("final_dim")
        if final:
            return int(final[0]), int(final[1])
        if str(step["type"]).endswith("Resize") and step.get("scale") is not None:
            width, height = step["scale"]
            ratio = min(height / _NUSCENES_HW[0], width / _NUSCENES_HW[1])
            if step.get("keep_ratio", False):
                return round(_NUSCENES_HW[0] * ratio), round(_NUSCENES_HW[1] * ratio)
            return int(height), int(width)
    return _NUSCENES_HW

"""What a spool says of itself, `manifest.json`: see docs/spool.md for each field."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_serializer, model_validator

from bevcask.config import Config
from bevcask.errors import DataError
from bevcask.geometry import BOX_FIELDS, CAMERAS, CLASSES, Grid
from bevcask.spool.recorder import FORMAT, LAYOUT
from bevcask.targets.kinds import kind_of
from bevcask.targets.spec import TapInfo

MAX_BOXES = 500
LAYERED = ("occupancy", "voxel_labels")
DENSE = ("dense_bev", "heatmap", *LAYERED)
_USUAL: Any = ("C", "Y", "X")
_SAYS_NOTHING: dict[str, Any] = {
    "classes": (),
    "given": (),
    "of": None,
}  # of fields that came later
_NAMED = ("box_set", "heatmap")  # with classes of the detection task
_COLUMNS = (*BOX_FIELDS, "score", "label")
_NOT_RECORDED = ("box_code",)


class SpoolGrid(Config):
    """The cells of a dense map: LIDAR_TOP frame of the keyframe, metres."""

    x_min: float
    y_min: float
    cell: float = Field(gt=0)


class SpoolTap(Config):
    """One tap as it was recorded.

    Attributes:
        kind: `registry.KINDS`.
        shape: of one sample, axes in the recorded order; (N, columns) of sets, N at most.
        axes: of a dense map, `C`, `Y`, `X` (and `Z` of voxels) in the recorded order; `-Y` where
            rows count against y.
        grid: of a dense map.
        given: what no detector in a car has: `labels` of the frame, `future` frames.
        of: the map that channel moments are of, by name.
        values: of a heatmap or occupancy.
        classes: of occupancy, voxel labels and polylines, in the recorded order.
        nonnegative: values are never below zero (behind a ReLU).
        depends_on_images: the teacher sees images.
        bins: metres a channel of `image.depth` stands for; heights of layers of voxels, rising.
    """

    kind: str
    shape: tuple[int, ...]
    axes: tuple[Literal["C", "Z", "Y", "X", "-Z", "-Y", "-X"], ...] = _USUAL
    grid: SpoolGrid | None = None
    values: Literal["probabilities", "logits"] = "probabilities"
    classes: tuple[str, ...] = ()
    given: tuple[Literal["labels", "future"], ...] = ()
    of: str | None = None
    nonnegative: bool = False
    depends_on_images: bool = False
    bins: tuple[float, ...] = ()

    @property
    def order(self) -> tuple[str, ...]:
        """The axes of a dense map as recorded."""
        layered = self.kind in LAYERED and self.axes == _USUAL
        return ("C", "Z", "Y", "X") if layered else self.axes

    @model_serializer(mode="wrap")
    def _known(self, handler: Any) -> dict[str, Any]:
        """Leave out what says nothing, so that the identity of older caches stays."""
        said: dict[str, Any] = handler(self)
        for name, nothing in _SAYS_NOTHING.items():
            if getattr(self, name) == nothing:
                del said[name]
        return said

    @model_validator(mode="after")
    def _readable(self) -> "SpoolTap":
        letters = sorted(axis.lstrip("-") for axis in self.order)
        wanted = "CXYZ" if self.kind in LAYERED else "CXY"
        if self.kind in DENSE and (letters != [*wanted] or len(self.shape) != len(wanted)):
            raise ValueError(
                f"axes {list(self.order)} of shape {list(self.shape)}: expected "
                f"{'C, Z, Y and X' if 'Z' in wanted else 'C, Y and X'} once each, in the order of "
                f"a shape of {len(wanted)} dimensions"
            )
        if self.kind in DENSE and self.grid is None:
            raise ValueError(f"kind {self.kind} needs a grid: x_min, y_min and cell, metres")
        if self.kind in _NOT_RECORDED:
            raise ValueError(f"kind {self.kind} is bevcask's own code of a head; record boxes")
        return self


class SpoolBoxes(Config):
    """How rows of boxes are written.

    Attributes:
        columns: `x y z l w h yaw vx vy score label` in the recorded order; velocities may be left
            out. Metres, m/s, LIDAR_TOP frame of the keyframe.
        z: what z is the height of.
        yaw_zero: where a heading of 0 points.
        yaw_turns: in which sense it grows, seen from above. `-y` and `clockwise` is mmdet3d below
            1.0, `x` and `counterclockwise` from 1.0 on.
    """

    columns: tuple[str, ...] = _COLUMNS
    z: Literal["centre", "bottom"] = "centre"
    yaw_zero: Literal["x", "y", "-x", "-y"] = "x"
    yaw_turns: Literal["counterclockwise", "clockwise"] = "counterclockwise"

    @model_validator(mode="after")
    def _complete(self) -> "SpoolBoxes":
        wanted = set(_COLUMNS) - {"vx", "vy"}
        if missing := wanted - set(self.columns):
            raise ValueError(f"columns lack {', '.join(sorted(missing))}")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("a column is listed twice")
        return self


class Manifest(Config):
    """The whole of it.

    Attributes:
        classes: names of labels and of heatmap channels, in the recorded order; those of nuScenes'
            detection task.
        cameras: of image features, in the recorded order.
        boxes: of taps of kind `box_set`.
        memory: which other frames a value depends on: `none`, `scene` (all since its first) or
            `window of N`.
        teacher: name, weights (digest), config, git: what identifies it. Free text otherwise.
        preprocessing: kept as it is.
    """

    format: Literal["bevcask-spool"] = "bevcask-spool"
    layout: int = LAYOUT
    recorder: str = ""
    taps: dict[str, SpoolTap] = Field(min_length=1)
    classes: tuple[str, ...] = CLASSES
    cameras: tuple[str, ...] = CAMERAS
    boxes: SpoolBoxes = SpoolBoxes()
    memory: str = Field("none", pattern=r"^(none|scene|window of [1-9]\d*)$")
    teacher: dict[str, Any] = Field(default_factory=dict)
    preprocessing: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_nuscenes(self) -> "Manifest":
        if sorted(self.classes) != sorted(CLASSES):
            raise ValueError(
                f"classes {list(self.classes)}: expected the ten of nuScenes, in the order of the "
                f"recorded labels: {', '.join(CLASSES)}"
            )
        if sorted(self.cameras) != sorted(CAMERAS):
            raise ValueError(
                f"cameras {list(self.cameras)}: expected all of {', '.join(CAMERAS)}, in the order "
                "of the recorded image features"
            )
        return self

    def tap(self, name: str) -> TapInfo:
        """Return a tap as methods read it: canonical axes, classes and columns."""
        said = self.taps[name]
        shape, grid = said.shape, None
        if said.kind in DENSE:
            size = {axis.lstrip("-"): n for axis, n in zip(said.order, said.shape, strict=True)}
            shape = tuple(size[axis] for axis in "CZYX" if axis in size)
            assert said.grid is not None
            own = said.grid
            grid = Grid(own.x_min, own.y_min, own.cell, size["X"], size["Y"])
        if said.of in self.taps and self.taps[said.of].of is None:
            grid = self.tap(said.of).grid
        if said.kind == "box_set":
            shape = (MAX_BOXES, len(BOX_FIELDS) + 2)
        return TapInfo(
            name=name,
            kind=said.kind,
            shape=shape,
            grid=grid,
            nonnegative=said.nonnegative or said.kind in ("heatmap", *LAYERED),
            classes=CLASSES if said.kind in _NAMED else said.classes,
            depends_on_images=said.depends_on_images,
            bins=said.bins,
            given=said.given,
            context="none" if said.kind == "image_feature" else self.memory,
        )


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a spool.

    Raises:
        DataError: it is not there, damaged, of another format or a later layout, or says what
            cannot be; the field is named.
    """
    path = folder / "manifest.json"
    try:
        tree = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(
            f"{path}: not there. teacher.folder is the folder that a recorder fills (`bevcask "
            "recorder` prints one)."
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise DataError(f"{path}: no manifest of a spool: format is not {FORMAT!r}.")
    if tree.get("layout") != LAYOUT:
        raise DataError(
            f"{path}: layout {tree.get('layout')}, this bevcask reads {LAYOUT}. Record with the "
            "file that its own `bevcask recorder` prints."
        )
    try:
        manifest = Manifest.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise DataError(
            f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}."
        ) from error
    for name in manifest.taps:
        tap = manifest.tap(name)
        if found := kind_of(tap).describe_problems(tap):
            raise DataError(f"{path}: {'; '.join(found)}.")
    return manifest

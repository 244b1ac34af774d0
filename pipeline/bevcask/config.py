"""Configuration: frozen validated models of every section. `verbs.py` says which verb reads what.

Plug-in sections (`teacher.detector`, `student.detector`, `method`) stay plain mappings here: their
models live beside torch code, and the stage that builds a plug-in validates its section with
`build_config`.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializationInfo,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bevcask.errors import ConfigError, UnknownNameError
from bevcask.groups import group_members
from bevcask.registry import load_class
from bevcask.wording import in_words, takes_number

_LARGEST = 2**63 - 1  # what torch, numpy and zarr count with


class Config(BaseModel):
    """Base of every configuration model: frozen, no unknown keys, no numbers without a value.

    Empty text (`key=`) is None where that may be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_said(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[str(info.field_name)].annotation
        if value == "" and type(None) in get_args(kind):
            return None
        if not takes_number(kind):
            return value
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(number, bool) for number in numbers):
            raise PydanticCustomError("number_type", "true and false are no numbers")
        if any(isinstance(number, int) and abs(number) > _LARGEST for number in numbers):
            raise ValueError(f"expected at most {_LARGEST}")
        return value


def _at_home(names: str) -> str:
    if not names.strip():  # an unset variable of a shell; a Path of it is the working folder
        raise ValueError("expected a path. Leave the key out for its default")
    return ",".join(os.path.expanduser(name) for name in names.split(","))


def _as_asked(names: str, info: SerializationInfo) -> str:
    spell = (info.context or {}).get("spell")
    return ",".join(map(spell, names.split(","))) if spell else names


PathText = Annotated[str, AfterValidator(_at_home), PlainSerializer(_as_asked)]
"""A path, a URL or `catalog:NAME`, or several separated by commas; `~` is the home folder.

Dumped with `context={"spell": function}`, each of them is what the function makes of it.
"""


Resampling = Literal["fast", "pillow"]


class DatasetConfig(Config):
    """Which frames, and how they are read."""

    root: PathText = Field(
        "data/nuscenes", description="folder with samples/, maps/ and the version folder"
    )
    version: str = Field("v1.0-trainval", description="name of the folder with the 13 tables")
    split: str = Field("train", description="a devkit split, a name in splits.json, or `all`")
    scenes: tuple[str, ...] | None = Field(None, description="only these scenes, e.g. [scene-0916]")
    limit: int | None = Field(None, ge=1, description="only the first N frames of the selection")
    infos: PathText | None = Field(
        None, description="mmdet3d info file (.pkl) to read instead of the tables; empty: tables"
    )
    trust_pickle: bool = Field(
        False, exclude=True, description="read the info file, which is a pickle; never recorded"
    )
    virtual_points: PathText | None = Field(
        None,
        description="folder with SAMPLE_TOKEN.npy, for detectors of 17 point_channels; empty: none",
    )

    resampling: Resampling = Field(
        "fast",
        description="camera images: fast decodes them smaller and interpolates once; pillow "
        "resizes whole ones as the releases do, bicubic and antialiased, and turns none",
    )

    def over(self, recorded: Mapping[str, Any]) -> "DatasetConfig":
        """Return this dataset; keys nobody gave here are those of a record, consent never is."""
        given = {key: getattr(self, key) for key in self.model_fields_set}
        return validate(DatasetConfig, {**recorded, **given}, "dataset")

    def whole(self) -> "DatasetConfig":
        """Return the dataset without any selection of its frames."""
        return self.model_copy(update={"split": "all", "scenes": None, "limit": None})


Precision = Literal["float32", "tf32", "bf16", "fp16"]


class NativeTeacherConfig(Config):
    """A bevcask detector, ours or mmdet3d's, and its checkpoint."""

    checkpoint: PathText = Field(
        "random", description="FILE | catalog:NAME | random (seeded, recorded)"
    )
    trust_checkpoint: bool = Field(
        False, description="read a pickle (.pth), which can run any code that is in it"
    )
    memory: Literal["window", "scene"] | None = Field(
        None,
        description="of a detector that remembers: scene (the default) carries memory from a "
        "scene's first frame on; window begins anew before the history of each frame, so that any "
        "frame can be asked about",
    )
    history: int | None = Field(
        None, ge=1, description="memory=window: keyframes before each; none: as the detector says"
    )
    precision: Precision = Field(
        "float32",
        description="how it reckons, part of a cache's identity: float32 without TF32, tf32 on "
        "CUDA, bf16 or fp16 by autocast",
    )
    deterministic: bool = Field(
        True,
        description="on CUDA the same bits each time; false where an operation has no way to",
    )
    parts: int | None = Field(
        None,
        ge=1,
        description="memory=scene: pieces of a scene at which memory begins anew, as in training "
        "with loader.scene_parts; none: whole scenes",
    )
    detector: dict[str, Any] = Field(
        default_factory=dict, description="architecture, see configs/detector"
    )


class TeacherConfig(NativeTeacherConfig):
    """Who is imitated. Other teachers than `native` have keys of their own."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(
        "native",
        description="native: a bevcask detector and its checkpoint | spool: ran elsewhere, "
        "teacher.folder=DIR | ensemble: teacher.of=CACHE,CACHE | module:Class",
    )

    @model_validator(mode="after")
    def _keys_are_known(self) -> "TeacherConfig":
        unknown = list(self.model_extra or {})
        if unknown and self.type == "native":
            raise PydanticCustomError("extra_forbidden", "unknown key", {"key": unknown[0]})
        return self


class CheckpointConfig(Config):
    """Whose weights."""

    checkpoint: PathText | None = Field(
        None, description="start from, or evaluate, this file or catalog:NAME"
    )


class DetectorConfig(CheckpointConfig):
    """A trained detector."""

    detector: dict[str, Any] = Field(
        default_factory=dict, description="architecture, see configs/detector"
    )


Inherit = Literal["none", "surviving_subset", "full_head"]


class StudentConfig(DetectorConfig):
    """Who is trained."""

    init: PathText | None = Field(
        None,
        description="ImageNet weights for the image backbone, or another detector's weights for "
        "the modules it can start; FILE or catalog:NAME, several separated by commas",
    )
    head: PathText | None = Field(
        None, description="head file exported at extraction (head inheritance)"
    )
    inherit: Inherit = Field(
        "full_head",
        description="what of it: all that fits, or, of bevformer, what survived in "
        "FocalDistiller's release, whose initialisation ran behind it; none: nothing",
    )


class StoreOptions(Config):
    """How a cache that is not on a disk is reached."""

    options: dict[str, Any] = Field(
        default_factory=dict,
        exclude=True,
        description="of the fsspec driver of cache=URL, e.g. store.options.endpoint_url=URL or "
        "store.options.anon=true; secrets go into the usual AWS variables; never recorded",
    )


CodecName = Literal[
    "auto", "uint8", "uint6", "uint5", "uint4", "int8", "int6", "int5", "int4", "float16", "float32"
]


class StoreConfig(StoreOptions):
    """What targets are stored as."""

    codec: CodecName = Field("auto", description="auto: as each kind has it; see `plan probe=N`")
    bits: Literal[8, 6, 4] = Field(8, description="of the integers that auto picks")
    codecs: tuple[Annotated[str, Field(pattern=r"^[^:]+:[a-z0-9]+$")], ...] = Field(
        (),
        description="codecs of single targets, before codec and bits: "
        "[image.level0:int6,image.level1:int8]",
    )
    views: int = Field(
        0,
        ge=0,
        le=64,
        description="replayable image augmentations (augment.*) a frame for targets that change "
        "with the pixels; 0: the clean frame only",
    )


class WrittenStoreConfig(StoreConfig):
    """How targets are stored."""

    shard_rows: int = Field(8, ge=1, le=4096, description="frames a shard; scenes start on a shard")
    queue: int = Field(2, ge=1, description="shards waiting for the writer; bounds memory")
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="that compress and digest; none: the cores this process may use, less the "
        "loader's workers",
    )
    reuse: PathText | None = Field(
        None, description="take the shards that fit from this cache (URL)"
    )


class PlannedStoreConfig(WrittenStoreConfig):
    """How targets would be stored."""

    budget: float | None = Field(
        None, gt=0, description="in GB, for the whole selection; `plan probe=N` names what fits"
    )


class LoaderConfig(Config):
    """How samples are read."""

    batch_size: int = Field(4, ge=1)
    num_workers: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = Field(
        "auto",
        description="loader processes; 0 loads in this process; auto: as many as keep up with the "
        "first batches, at most the cores this process may use less one",
    )
    prefetch: int = Field(2, ge=1, le=1024, description="batches that each of them has ready")


_Side = Annotated[int, Field(ge=1)]


class ImageAugmentConfig(Config):
    """The image part of the student's augmentation; ranges are uniform. Defaults: none."""

    resize: tuple[float, float] = Field(
        (0.0, 0.0), description="added to the covering resize factor"
    )
    crop: bool = Field(False, description="random horizontal crop instead of the centre")
    image_flip: bool = False
    image_rotation: float = Field(0.0, ge=0, description="+- degrees")
    cameras_alike: bool = Field(
        False,
        description="one draw of the four above for all cameras of a frame, as in StreamPETR's "
        "release; else each its own, as in BEVDet's",
    )
    photometric: bool = Field(
        False,
        description="brightness, contrast, saturation, hue and order of the channels, camera by "
        "camera, as in BEVFormer's release",
    )
    grid_mask: float = Field(
        0.0, ge=0, le=1, description="share of frames that keep the stripes of a grid alone"
    )
    image_size_HW: tuple[_Side, _Side] | None = Field(
        None,
        description="network input that this is drawn for, where teacher and student differ: the "
        "smaller one; larger ones see the same, enlarged. null: each draws for its own",
    )

    @field_validator("resize")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        return _low_then_high(value)


def _low_then_high(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("expected [low, high] with low <= high")
    return value


class AugmentConfig(ImageAugmentConfig):
    """The student's augmentation."""

    bev_rotation: float = Field(0.0, ge=0, description="+- radians")
    bev_scale: tuple[float, float] = (1.0, 1.0)
    bev_flip_x: bool = Field(False, description="x becomes -x half of the time")
    bev_flip_y: bool = Field(False, description="y becomes -y half of the time")
    frame_gap: tuple[int, int] = Field(
        (3, 3),
        description="keyframes from the earlier frame of a two-frame detector to this one; nothing "
        "tells it which of a range was drawn, so velocities blur",
    )
    approximate: bool = Field(
        False,
        description="accept what a teacher says of image features of clean frames for a student "
        "whose images are augmented, rather than replay views",
    )
    drop_history: bool = Field(
        False,
        description="windows of a detector that remembers reach one keyframe further back, and one "
        "of their frames, drawn, is left out (BEVFormer's release)",
    )

    @field_validator("bev_scale", "frame_gap")
    @classmethod
    def _positive_and_rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] <= 0:
            raise ValueError("must be above 0")
        return _low_then_high(value)


ConfigT = TypeVar("ConfigT", bound=Config)


def build_config(table: str, section: Mapping[str, Any], where: str) -> tuple[type, Config]:
    """Validate a plug-in section `{type: NAME, ...}` with the plug-in's own nested Config.

    Args:
        table: registry table, e.g. `detector`.
        section: the mapping; `type` names the plug-in.
        where: dotted path for messages, e.g. `student.detector`.

    Returns:
        The plug-in class and its validated config.
    """
    values = dict(section)
    name = values.pop("type", None)
    if name is None:
        group = where.partition(".")[0]
        raise ConfigError(
            f"{where}: no type given. Pick one with {group}=NAME; known: "
            f"{', '.join(group_members(group))}."
        )
    try:
        plugin = load_class(table, str(name))
    except UnknownNameError as error:
        raise ConfigError(f"{where}.type: {error}") from error
    model = getattr(plugin, "Config", None)
    if not (isinstance(model, type) and issubclass(model, Config)):
        raise ConfigError(
            f"{where}.type={name}: no {table} of bevcask's. Expected a class with a nested "
            "Config(bevcask.config.Config) that says its keys."
        )
    return plugin, validate(model, values, where)


def validate(model: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """Validate plain data with a model; all problems in one ConfigError, with suggestions."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(in_words(error, model, values, where)) from None

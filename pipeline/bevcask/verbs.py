"""What each verb of the command line reads: one model a verb, from which its help is made.

`compose(PlanConfig, ["dataset=mini", "seed=3"])` picks one YAML a group, merges the other
`key=value` words over it (OmegaConf dotlist) and validates the whole. A YAML may speak to several
verbs: what this one does not read is left out. A word may not: it was said to this verb.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field

from bevcask.config import (
    AugmentConfig,
    CheckpointConfig,
    Config,
    ConfigT,
    DatasetConfig,
    DetectorConfig,
    ImageAugmentConfig,
    LoaderConfig,
    OnlineConfig,
    PathText,
    PlannedStoreConfig,
    StoreConfig,
    StudentConfig,
    TeacherConfig,
    TrainerConfig,
    TrainingLoaderConfig,
    WrittenStoreConfig,
    validate,
)
from bevcask.errors import ConfigError
from bevcask.groups import EXPERIMENT, GROUPS, assign, group_members, load_group, sort_words

CacheUrl = Annotated[PathText | None, Field(description="cache URL or catalog:NAME")]
Device = Annotated[str, Field(description="auto | cpu | cuda | cuda:N")]
Seed = Annotated[int, Field(ge=0, description="of random weights and of augmentation")]
DryRun = Annotated[bool, Field(description="say what would happen and stop")]
Method = Annotated[dict[str, Any], Field(description="the loss, see configs/method")]
_NO_METHOD = {"type": "none"}


class PlanConfig(Config):
    """What `plan` reads."""

    dataset: DatasetConfig = DatasetConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    method: Method = _NO_METHOD
    store: PlannedStoreConfig = PlannedStoreConfig()
    augment: AugmentConfig = AugmentConfig()
    cache: CacheUrl = None
    probe: int = Field(
        0, ge=0, description="run the teacher on this many frames and compare codecs"
    )
    device: Device = "auto"
    seed: Seed = 0


class ExtractConfig(Config):
    """What `teacher-extract` reads."""

    dataset: DatasetConfig = DatasetConfig()
    teacher: TeacherConfig = TeacherConfig()
    method: Method = _NO_METHOD
    store: WrittenStoreConfig = WrittenStoreConfig()
    augment: ImageAugmentConfig = ImageAugmentConfig()
    loader: LoaderConfig = LoaderConfig()
    cache: CacheUrl = None
    part: str | None = Field(None, description="i/n: fill part i of n; the last to end seals")
    repair: PathText | None = Field(
        None, description="write again what this list of `verify repair=FILE` names"
    )
    device: Device = "auto"
    seed: Seed = 0
    dry_run: DryRun = False


class DistillConfig(Config):
    """What `student-distill` reads."""

    dataset: DatasetConfig = DatasetConfig()
    val: DatasetConfig | None = Field(
        None, description="frames to validate on; none: no validation"
    )
    student: StudentConfig = StudentConfig()
    method: Method = _NO_METHOD
    teacher: TeacherConfig = TeacherConfig()
    online: OnlineConfig = OnlineConfig()
    store: StoreConfig = StoreConfig()
    augment: AugmentConfig = AugmentConfig()
    loader: TrainingLoaderConfig = TrainingLoaderConfig()
    trainer: TrainerConfig = TrainerConfig()
    cache: PathText | None = Field(None, description="cache URL or catalog:NAME; several: a,b")
    run: PathText = Field("runs/latest", description="folder for checkpoints, logs, results")
    targets: Literal["cache", "online"] = Field("cache", description="where targets come from")
    on_missing: Literal["raise", "skip"] = Field(
        "raise",
        description="selected frames without a cached row: raise names how many, skip trains on "
        "the others and records how many were left out",
    )
    device: Device = "auto"
    seed: Seed = 0
    resume: bool = Field(True, description="go on from the last checkpoint in run")
    dry_run: DryRun = False


class EvaluateConfig(Config):
    """What `evaluate` reads."""

    dataset: DatasetConfig = DatasetConfig()
    student: DetectorConfig = DetectorConfig()
    loader: LoaderConfig = LoaderConfig()
    cache: CacheUrl = None
    run: PathText = Field("runs/latest", description="folder for the scores and the submission")
    device: Device = "auto"


class InspectConfig(Config):
    """What `inspect` reads."""

    dataset: DatasetConfig = DatasetConfig()
    cache: CacheUrl = None
    sample: str | None = Field(None, description="sample token of the picture; `first`")
    picture: PathText | None = Field(None, description="write the picture to this PNG")


class VerifyConfig(Config):
    """What `verify` reads."""

    dataset: DatasetConfig = DatasetConfig()
    teacher: TeacherConfig = TeacherConfig()
    cache: CacheUrl = None
    check: Literal["bytes", "meaning"] = Field(
        "bytes", description="the digest of every file; meaning: values and frames too"
    )
    resample: int = Field(0, ge=0, description="ask the teacher again about N frames")
    equivariance: int = Field(0, ge=0, description="study the gap on N augmented frames")
    repair: PathText | None = Field(
        None, description="write what another extraction can mend to this file, a JSON line each"
    )
    device: Device = "auto"
    seed: Seed = 0


class ExportConfig(Config):
    """What `export` reads."""

    student: CheckpointConfig = CheckpointConfig()
    teacher: TeacherConfig = TeacherConfig()
    run: PathText = Field("runs/latest", description="folder of a training")
    out: PathText | None = Field(None, description="write the weights to this file")
    half: bool = Field(False, description="write float16, which any detector here loads as float32")


class SynthesizeConfig(Config):
    """What `synthesize` reads: how large the toy city is and how it is seen."""

    out: PathText = Field(
        description="folder to write; must be empty or an older synthetic dataset"
    )
    seed: int = Field(0, ge=0, description="same seed, same bytes")
    version: str = Field("v1.0-synthetic", description="name of the folder with the tables")
    num_scenes: int = Field(10, ge=1)
    num_keyframes: int = Field(40, ge=1, description="keyframes a scene, two a second")
    val_scenes: int = Field(2, ge=0, description="how many of the scenes are for validation")
    num_sweeps: int = Field(2, ge=0, le=8, description="LiDAR sweeps between two keyframes")
    image_width: int = Field(800, ge=64, le=1600)
    image_height: int = Field(450, ge=36, le=900)
    jpeg_quality: int = Field(90, ge=10, le=100)
    workers: int | None = Field(
        None, ge=0, description="processes; none: one a core; 0 and 1 work in this one"
    )


class CatalogConfig(Config):
    """What `catalog` reads."""

    name: str | None = Field(None, description="show this entry")


@dataclass(frozen=True)
class Verb:
    """One verb.

    Attributes:
        config: every key it reads.
        stage: module of `bevcask.stages` whose `run` does it.
        summary: for `bevcask --help`.
        url: the key that a leading word without `=` stands for; None where there is none.
        groups: group members that are picked where nobody picks another.
    """

    config: type[Config]
    stage: str
    summary: str
    url: str | None = "cache"
    groups: Mapping[str, str] = field(default_factory=dict)


VERBS = {
    "plan": Verb(
        PlanConfig,
        "plan",
        "Say what would be stored: GB and teacher passes, without data or GPU.",
        None,
        {"dataset": "nuscenes", "teacher": "centerpoint", "method": "distillbev"},
    ),
    "teacher-extract": Verb(
        ExtractConfig,
        "teacher_extract",
        "Run the teacher once over a selection of frames and write its targets to a Zarr cache. "
        "Safe to interrupt: the same command resumes.",
        groups={"method": "distillbev"},
    ),
    "inspect": Verb(
        InspectConfig,
        "inspect_cache",
        "Show what a cache holds, who made it, and a picture of a sample.",
    ),
    "verify": Verb(
        VerifyConfig,
        "verify",
        "Check a cache: every stored byte against its digest; with check=meaning what the bytes "
        "say, with resample=N against the teacher. Exit code 1 where something is damaged.",
    ),
    "student-distill": Verb(
        DistillConfig,
        "student_distill",
        "Train a detector, imitating cached targets (or none: method=none trains a teacher).",
        groups={"method": "distillbev", "trainer": "default"},
    ),
    "evaluate": Verb(
        EvaluateConfig,
        "evaluate",
        "Official nuScenes mAP and NDS of a detector or of a cache's boxes.",
    ),
    "export": Verb(
        ExportConfig,
        "export",
        "Write a trained student without its adapters, or a teacher's checkpoint, as safetensors.",
        "out",
    ),
    "synthesize": Verb(
        SynthesizeConfig,
        "synthesize",
        "Write a synthetic nuScenes-format dataset: bevcask synthesize OUT [key=value ...]",
        "out",
    ),
    "catalog": Verb(
        CatalogConfig, "catalog", "List known datasets, checkpoints and caches.", "name"
    ),
}


def compose(
    model: type[ConfigT], words: Sequence[str], groups: Mapping[str, str] | None = None
) -> ConfigT:
    """Turn `key=value` words into the validated configuration of a verb.

    Args:
        model: the verb's.
        words: `group=name` picks a YAML (a path ending in .yaml works too).
        groups: picks used where the words and the experiment name none.

    Raises:
        ConfigError: a word without `=`, an unknown key or group member, a key of another verb, a
            value out of range; all problems in one message.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    picks, values, literals = sort_words(words, lambda key: takes_text(model, key))
    _refuse_unread(model, [*picks, *literals, *(word.partition("=")[0] for word in values)])
    overlay: dict[str, Any] = {}
    if EXPERIMENT in picks:
        overlay = load_group(EXPERIMENT, picks.pop(EXPERIMENT))
        picks = {**overlay.pop("groups", {}), **picks}
    chosen = {**(groups or {}), **picks}
    shared = {group: load_group(group, name) for group, name in chosen.items()}
    try:
        merged = OmegaConf.merge(
            OmegaConf.create(_read_part(model, shared)),
            OmegaConf.create(_read_part(model, overlay)),
            OmegaConf.from_dotlist(values),
        )
        plain = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"cannot read {' '.join(values)}: {error}") from error
    assert isinstance(plain, dict)
    named = {str(key): value for key, value in plain.items()}
    for key, value in literals.items():
        assign(named, key, value)
    return validate(model, named, where="")


def words_for(model: type[Config], words: Iterable[str]) -> list[str]:
    """Return those of several verbs' words that one verb reads."""
    return [word for word in words if reads(model, word.partition("=")[0])]


def reads(model: type[Config], key: str) -> bool:
    """Tell whether a verb reads a dotted key, or anything of a group."""
    if key == EXPERIMENT:
        return any(reads(model, group) for group in GROUPS if group != EXPERIMENT)
    if key in GROUPS and (members := group_members(key)):
        return bool(_read_part(model, {key: load_group(key, members[0])}).get(key))
    return _field_type(model, key) is not None


def takes_text(model: type[Config], key: str) -> bool:
    """Tell whether the value of a key is text, and so taken literally, never as YAML."""
    if key.startswith(("teacher.detector.", "student.detector.")):
        return key.endswith(".detector.config")  # a path; the section is a plug-in's own
    kinds = _alternatives(_field_type(model, key))
    return str in kinds and all(kind in (str, type(None)) for kind in kinds)


def _field_type(model: type[Config], key: str) -> Any:
    """Return the annotation of a dotted key; None where the model has no such key."""
    name, _, rest = key.partition(".")
    if name not in model.model_fields:
        return None
    annotation = model.model_fields[name].annotation
    if not rest:
        return annotation
    for kind in _alternatives(annotation):
        if isinstance(kind, type) and issubclass(kind, Config):
            return _field_type(kind, rest)
        if get_origin(kind) is dict:
            return Any
    return None


def _alternatives(annotation: Any) -> list[Any]:
    """Return what a union may hold, `Annotated` taken off."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    return [annotation]


def section_of(annotation: Any) -> type[Config] | None:
    """Return the model of a section; None for a plain value or a plug-in's mapping."""
    models = [a for a in _alternatives(annotation) if isinstance(a, type) and issubclass(a, Config)]
    return models[0] if models else None


def _refuse_unread(model: type[Config], keys: Iterable[str]) -> None:
    """Raise for keys that another verb reads and this one does not."""
    mine = next((name for name, verb in VERBS.items() if verb.config is model), "this verb")
    lines = []
    for key in keys:
        known = (
            key if any(reads(verb.config, key) for verb in VERBS.values()) else key.split(".")[0]
        )
        others = [name for name, verb in VERBS.items() if reads(verb.config, known)]
        if others and mine not in others:
            lines.append(f"{key}: {mine} does not read this key; it is for {', '.join(others)}.")
    if lines:
        raise ConfigError("\n".join(lines))


def _readers(key: str) -> list[str]:
    return [name for name, verb in VERBS.items() if reads(verb.config, key)]


def _read_part(model: type[Config], tree: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return a tree without what only other verbs read; what none reads stays, and is refused."""
    part = {}
    for name, value in tree.items():
        key = f"{where}{name}"
        kind = _field_type(model, key)
        if kind is not None:
            below = isinstance(value, dict) and section_of(kind) is not None
            part[name] = _read_part(model, value, f"{key}.") if below else value
        elif all(_field_type(verb.config, key) is None for verb in VERBS.values()):
            part[name] = value
    return part

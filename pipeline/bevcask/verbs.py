"""What each verb of the command line reads: one model a verb, from which its help is made."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from bevcask.config import (
    AugmentConfig,
    CheckpointConfig,
    Config,
    DatasetConfig,
    DetectorConfig,
    ImageAugmentConfig,
    LoaderConfig,
    PathText,
    PlannedStoreConfig,
    Resampling,
    StoreConfig,
    StoreOptions,
    StudentConfig,
    TeacherConfig,
    WrittenStoreConfig,
)
from bevcask.page_config import PageConfig, SceneConfig
from bevcask.trainer_config import OnlineConfig, TrainerConfig, TrainingLoaderConfig

CacheUrl = Annotated[PathText | None, Field(description="cache URL or catalog:NAME")]
Device = Annotated[str, Field(description="auto | cpu | cuda | cuda:N")]
Seed = Annotated[int, Field(ge=0, description="of random weights and of augmentation")]
DryRun = Annotated[bool, Field(description="say what would happen and stop")]
TrustCode = Annotated[
    bool,
    Field(
        exclude=True,
        description="run code that is not bevcask's: plug-ins named module:Class, mmdet3d config "
        "files; never recorded",
    ),
]
Method = Annotated[dict[str, Any], Field(description="the loss, see configs/method")]
_NO_METHOD = {"type": "none"}


class EngineConfig(Config):
    """Where pieces of work run."""

    engine: Literal["here", "dask"] = Field(
        "here", description="dask: on the workers of a dask.distributed cluster"
    )
    scheduler: str | None = Field(
        None, description="engine=dask: tcp://HOST:PORT of a cluster that runs already"
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="engine=dask: processes on this machine; none: one a GPU, or one a core",
    )

    @model_validator(mode="after")
    def _cluster_is_asked_for(self) -> "EngineConfig":
        if self.engine != "dask" and (self.scheduler or self.workers):
            raise ValueError(
                f"scheduler={self.scheduler}, workers={self.workers}: for engine=dask. Say it, or "
                "leave them out"
            )
        if self.scheduler and self.workers:
            raise ValueError(
                f"scheduler={self.scheduler} has workers of its own. Leave workers out"
            )
        return self


class ExpectConfig(Config):
    """What must hold; exit code 1 where it does not."""

    map: float | None = Field(
        None, gt=0, le=1, description="official mAP of the boxes, on their own frames, at least"
    )


class PlanConfig(EngineConfig):
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
    step: bool = Field(
        False,
        description="count the operations of a training step, and how much of one a cache saves",
    )
    time: int = Field(
        0,
        ge=0,
        description="extract this many frames for real, beside `cache`, and say how long all of "
        "them take, and from which epoch on a cache is faster than a teacher in the loop; at least "
        "6 batches of loader.batch_size, or all frames there are",
    )
    loader: LoaderConfig = LoaderConfig()
    device: Device = "auto"
    seed: Seed = 0
    trust_code: TrustCode = False


class ExtractConfig(EngineConfig):
    """What `teacher-extract` reads."""

    dataset: DatasetConfig = DatasetConfig()
    teacher: TeacherConfig = TeacherConfig()
    method: Method = _NO_METHOD
    store: WrittenStoreConfig = WrittenStoreConfig()
    augment: ImageAugmentConfig = ImageAugmentConfig()
    loader: LoaderConfig = LoaderConfig()
    cache: CacheUrl = None
    on_missing: Literal["raise", "skip"] = Field(
        "raise",
        description="selected frames whose files are not there: raise says which scenes are, skip "
        "leaves them out of the cache",
    )
    part: str | None = Field(
        None,
        description="i/n: fill part i of n; the last to end seals. None: as SLURM's job array or "
        "torchrun's ranks say, else everything",
    )
    name: str | None = Field(None, description="keep the sealed cache as catalog:NAME")
    expect: ExpectConfig = ExpectConfig()
    repair: PathText | None = Field(
        None, description="write again what this list of `verify repair=FILE` names"
    )
    device: Device = "auto"
    seed: Seed = 0
    dry_run: DryRun = False
    trust_code: TrustCode = False


def _held_out(split: str) -> str:
    """Return the split beside one that is trained on."""
    name, train, rest = split.rpartition("train")
    if not train or rest or name[-1:] not in ("", "_"):
        raise ValueError(
            f"val.split: needed where dataset.split={split}: no split is known to be held out from "
            "it. Say which frames to validate on, val.split=NAME (val, mini_val)"
        )
    return f"{name}val"


class ValConfig(DatasetConfig):
    """Which frames a student is validated on; what is not said follows the training frames."""

    root: PathText = Field(description="any val.* key asks for validation; as dataset.root")
    version: str = Field(description="as dataset.version")
    split: str = Field(
        description="of dataset.split=train: val, of mini_train: mini_val, and so on; to be said "
        "for others"
    )
    resampling: Resampling = Field(description="as dataset.resampling")


class DistillConfig(Config):
    """What `student-distill` reads."""

    dataset: DatasetConfig = DatasetConfig()
    val: ValConfig | None = None
    student: StudentConfig = StudentConfig()
    method: Method = _NO_METHOD
    teacher: TeacherConfig = TeacherConfig()
    teachers: dict[str, TeacherConfig] = Field(
        default_factory=dict,
        description="several, by the labels of their caches: teachers=LABEL=NAME,..., then "
        "teachers.LABEL.KEY= for the keys of each",
    )
    online: OnlineConfig = OnlineConfig()
    store: StoreConfig = StoreConfig()
    augment: AugmentConfig = AugmentConfig()
    loader: TrainingLoaderConfig = TrainingLoaderConfig()
    trainer: TrainerConfig = TrainerConfig()
    cache: PathText | None = Field(None, description="cache URL or catalog:NAME; several: a,b")
    run: PathText = Field("runs/latest", description="folder for checkpoints, logs, results")
    targets: Literal["cache", "online"] = Field("cache", description="where targets come from")
    on_missing: Literal["raise", "skip", "generate"] = Field(
        "raise",
        description="selected frames without files or without a cached row: raise names how many, "
        "skip trains on the others and records how many have no row; generate asks teacher= in "
        "this process for the rows, writes them to the cache, and reads them there ever after",
    )
    device: Device = "auto"
    seed: Seed = 0
    resume: bool = Field(True, description="go on from the last checkpoint in run")
    dry_run: DryRun = False
    trust_code: TrustCode = False

    @model_validator(mode="before")
    @classmethod
    def _val_follows_dataset(cls, values: dict[str, Any]) -> dict[str, Any]:
        dataset, val = values.get("dataset", {}), values.get("val")
        if isinstance(dataset, DatasetConfig):
            dataset = dataset.model_dump()
        if not isinstance(dataset, Mapping) or not isinstance(val, Mapping):
            return values
        followed = {
            key: dataset.get(key, DatasetConfig.model_fields[key].default)
            for key in ("root", "version", "resampling")
        }
        if "split" not in val:
            followed["split"] = _held_out(str(dataset.get("split", "train")))
        return {**values, "val": {**followed, **val}}

    @model_validator(mode="after")
    def _one_word_for_teachers(self) -> "DistillConfig":
        if self.teachers and self.teacher != TeacherConfig():
            raise ValueError("teachers= names several, teacher= the only one. Leave one out")
        if self.teachers and self.on_missing == "generate":
            raise ValueError(
                "on_missing=generate fills the cache of one teacher. Extract theirs one by one"
            )
        return self


class EvaluateConfig(Config):
    """What `evaluate` reads."""

    dataset: DatasetConfig = DatasetConfig()
    student: DetectorConfig = DetectorConfig()
    loader: LoaderConfig = LoaderConfig()
    store: StoreOptions = StoreOptions()
    cache: CacheUrl = None
    run: PathText = Field(
        "runs/latest", description="folder that scores and submission are always written to"
    )
    expect: ExpectConfig = ExpectConfig()
    device: Device = "auto"
    trust_code: TrustCode = False


class InspectConfig(EngineConfig, PageConfig, SceneConfig):
    """What `inspect` reads."""

    dataset: DatasetConfig = DatasetConfig()
    store: StoreOptions = StoreOptions()
    cache: CacheUrl = None
    sample: str | None = Field(None, description="sample token of the picture; `first`")
    picture: PathText | None = Field(None, description="write the picture to this PNG")


class ReportConfig(Config):
    """What `report` reads."""

    run: tuple[PathText, ...] = Field(
        (), description="folder of a training (its run=DIR); say it once a training"
    )
    html: PathText | None = Field(None, description="write the comparison to this page")


class VerifyConfig(EngineConfig):
    """What `verify` reads."""

    dataset: DatasetConfig = DatasetConfig()
    teacher: TeacherConfig = TeacherConfig()
    store: StoreOptions = StoreOptions()
    cache: CacheUrl = None
    check: Literal["bytes", "meaning"] = Field(
        "bytes", description="the digest of every file; meaning: values and frames too"
    )
    resample: int = Field(0, ge=0, description="ask the teacher again about N frames")
    equivariance: int = Field(0, ge=0, description="study the gap on N augmented frames")
    windows: int = Field(
        0, ge=0, description="study the gap between memory of scenes and of windows on N frames"
    )
    repair: PathText | None = Field(
        None, description="write what another extraction can mend to this file, a JSON line each"
    )
    device: Device = "auto"
    seed: Seed = 0
    trust_code: TrustCode = False


class ExportConfig(Config):
    """What `export` reads."""

    student: CheckpointConfig = CheckpointConfig()
    teacher: TeacherConfig = TeacherConfig()
    run: PathText = Field("runs/latest", description="folder of a training")
    out: PathText | None = Field(None, description="write the weights to this file")
    half: bool = Field(False, description="write float16, which any detector here loads as float32")
    names: Literal["native", "official"] = Field(
        "native",
        description="official: names, layout and constants of the detector's published files, for "
        "the code that was released with them (bevformer, streampetr, raydn, centerpoint_mmdet3d, "
        "bevdet_r50_released)",
    )
    trust_code: TrustCode = False


class WeightsConfig(Config):
    """What `weights` reads."""

    file: PathText = Field(description="weights, .safetensors or what torch wrote")
    trust_checkpoint: bool = Field(
        False,
        exclude=True,
        description="read a pickle of more than tensors and plain values, which can run any code "
        "that is in it",
    )


class DoctorConfig(Config):
    """What `doctor` looks at beside the machine."""

    cache: PathText | None = Field(
        None, description="URL of a cache that is or will be: its disk is timed"
    )
    dataset: DatasetConfig | None = None


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


Directive = Annotated[str, Field(pattern=r"^\S+$")]


class SlurmConfig(Config):
    """What `submit` asks of SLURM, for each task of a job array."""

    tasks: int = Field(1, ge=1, description="that share the work of teacher-extract")
    hours: float = Field(4.0, gt=0, description="then the task is asked to end, and queued again")
    gpus: int = Field(1, ge=0, description="of a task")
    cpus: int | None = Field(None, ge=1, description="of a task; none: as the queue says")
    memory_gb: int | None = Field(None, ge=1, description="of a task; none: as the queue says")
    partition: Directive | None = None
    account: Directive | None = None
    options: tuple[Annotated[str, Field(pattern=r"^--\S+$")], ...] = Field(
        (), description="others of sbatch: [--qos=low,--constraint=a100]"
    )
    folder: Annotated[Directive, AfterValidator(os.path.expanduser)] = Field(
        "runs/slurm", description="for the script and the logs, on every node"
    )


class SubmitConfig(Config):
    """What `submit` reads beside the words of the verb it submits."""

    slurm: SlurmConfig = SlurmConfig()

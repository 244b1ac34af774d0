"""The verbs of the command line: the configuration and the stage of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bevcask.config import Config
from bevcask.verbs import (
    CatalogConfig,
    DistillConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    ExtractConfig,
    InspectConfig,
    PlanConfig,
    ReportConfig,
    SynthesizeConfig,
    VerifyConfig,
    WeightsConfig,
)


@dataclass(frozen=True)
class Verb:
    """One verb.

    Attributes:
        config: every key it reads.
        stage: module of `bevcask.stages` whose `run` does it.
        summary: for `bevcask --help`.
        url: the key that a leading word without `=` stands for; None where there is none.
        groups: group members that are picked where nobody picks another.
        resumes: goes on from what it saved where it was interrupted.
    """

    config: type[Config]
    stage: str
    summary: str
    url: str | None = "cache"
    groups: Mapping[str, str] = field(default_factory=dict)
    resumes: bool = False


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
        resumes=True,
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
        resumes=True,
    ),
    "report": Verb(
        ReportConfig,
        "report",
        "Compare trainings: curves, terms, official scores, classes, seconds, memory: "
        "bevcask report run=A run=B html=FILE",
        None,
    ),
    "evaluate": Verb(
        EvaluateConfig,
        "evaluate",
        "Official nuScenes mAP and NDS of a detector or of a cache's boxes. The scores and a "
        "submission are also written to run=DIR, runs/latest where none is named.",
    ),
    "export": Verb(
        ExportConfig,
        "export",
        "Write a trained student without its adapters, or a teacher's checkpoint, as safetensors.",
        "out",
    ),
    "weights": Verb(
        WeightsConfig,
        "weights",
        "Tell what a file of weights is: whose, how wrapped, and which detectors here it fits: "
        "bevcask weights FILE",
        "file",
    ),
    "synthesize": Verb(
        SynthesizeConfig,
        "synthesize",
        "Write a synthetic nuScenes-format dataset: bevcask synthesize OUT [key=value ...]",
        "out",
    ),
    "doctor": Verb(
        DoctorConfig,
        "doctor",
        "Look at this machine: versions, GPU, memory, disk, dataset, each with ok or what to do.",
    ),
    "catalog": Verb(
        CatalogConfig, "catalog", "List known datasets, checkpoints and caches.", "name"
    ),
}

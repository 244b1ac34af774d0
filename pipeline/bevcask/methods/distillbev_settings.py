"""DistillBEV's settings: which maps and queries meet, weights, and where it looks."""

from typing import Literal, Self

from pydantic import Field, model_validator

from bevcask.config import Config
from bevcask.methods.adapters import AdapterName
from bevcask.methods.base import Mode
from bevcask.methods.regions import Claimant

_WORD = "^[a-z][a-z0-9_]*$"


class Level(Config):
    """A pair of maps that meet."""

    name: str = Field(pattern=_WORD, description="its word in the loss names")
    student: str = Field(description="student tap, a dense_bev")
    teacher: str = Field(description="teacher tap, a dense_bev")
    adapter: AdapterName = Field(default="stack", description="stack | linear | identity")
    false_positives: bool = Field(
        default=False, description="treat cells apart where a detector alone is confident"
    )


class Queries(Config):
    """A pair of query sets that meet; only a student that inherits the decoder has such a pair."""

    name: str = Field(pattern=_WORD, description="its word in the loss names")
    student: str = Field(description="student tap, a query_set")
    teacher: str = Field(
        description="teacher tap, a query_set; for similarity alone, one row that holds their sum"
    )
    states: float = Field(0.0, ge=0, description="weight of squared gaps, query by query")
    similarity: float = Field(
        0.0, ge=0, description="weight of squared gaps between BEV maps dotted with the queries"
    )
    level: str | None = Field(None, description="whose maps the similarity reads")


class Settings(Config):
    """Settings; defaults are those of the released BEVDepth scripts."""

    mode: Mode = Field("clean", description="clean | compat (released bugs; tests only)")
    levels: tuple[Level, ...] = Field(
        (
            Level(name="block1", student="bev.block1", teacher="bev.block1"),
            Level(name="block2", student="bev.block2", teacher="bev.block2"),
            Level(
                name="neck",
                student="bev.neck",
                teacher="bev.neck",
                adapter="linear",
                false_positives=True,
            ),
        ),
        min_length=1,
        description="block 1, block 2 and neck: the best row of the published ablation",
    )
    queries: tuple[Queries, ...] = Field(
        (), description="query sets that meet"
    )  # none in the released scripts
    attention: Literal["both", "teacher"] = Field(
        "both", description="whose maps say where to look: both (CNN line) | teacher (Transformer)"
    )
    unmoved: bool = Field(
        False, description="refuse BEV augmentation: the Transformer line is trained without"
    )
    heatmap: str = Field("head.heatmap", description="teacher tap that marks false positives")
    student_heatmap: str = Field(
        "head.heatmap", description="student tap that does, where its claims count"
    )
    false_positives_by: Claimant = Field(
        "teacher", description="teacher | student | student_alone (teacher silent) | union"
    )
    false_positive_scale: Literal["count", "component"] = Field(
        "count", description="1 / cells of all | of the connected component"
    )
    foreground: float = Field(6e-3, ge=0)  # released training script
    background: float = Field(4e-2, ge=0)  # released training script
    false_positive: float = Field(6e-2, ge=0)  # released script; head level only
    spatial: float = Field(2.5e-3, ge=0)  # released training script
    temperature: float = Field(0.5, gt=0)  # tau, paper supplement (quoted in issue 7)
    threshold: float = Field(0.1, gt=0, lt=1)  # gamma, paper supplement (issue 7)

    @property
    def reads_teacher_heatmap(self) -> bool:
        """True if some level asks where the teacher is confident."""
        return self._has_false_positives and self.false_positives_by != "student"

    @property
    def reads_student_heatmap(self) -> bool:
        """True if some level asks where the student is confident."""
        return self._has_false_positives and self.false_positives_by != "teacher"

    @property
    def _has_false_positives(self) -> bool:
        return any(level.false_positives for level in self.levels)

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        levels = [level.name for level in self.levels]
        names = levels + [queries.name for queries in self.queries]
        if len(set(names)) < len(names):
            raise ValueError(f"names of levels and queries must differ, got {', '.join(names)}")
        for queries in self.queries:
            if not (queries.states or queries.similarity):
                raise ValueError(f"queries {queries.name}: give states or similarity a weight")
            if queries.similarity and queries.level not in levels:
                raise ValueError(
                    f"queries {queries.name}: similarity reads the maps of a level; level must be "
                    f"one of {', '.join(levels)}, got {queries.level}"
                )
        return self

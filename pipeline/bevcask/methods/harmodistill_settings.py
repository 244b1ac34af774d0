"""HarmoDistill's settings: which terms are on, what they weigh, what they read."""

from typing import Literal

from pydantic import Field, PositiveInt

from bevcask.config import Config
from bevcask.methods.base import Mode
from bevcask.methods.focaldistiller import ImageLevel
from bevcask.methods.harmodistill_queries import Duplicates, Start

Corner = tuple[float, float, float]


class Level(ImageLevel):
    """A pair of image feature maps that meet; the teacher's is resized to the student's size."""

    teacher: str = Field(description="teacher tap, an image_feature of any size")
    share: float = Field(1.0, gt=0, description="of the term's weight")
    size_HW: tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="rows and columns of the student's map, at which a larger one of the teacher "
        "is stored: the loss resizes it to them anyway; null: as the teacher says it",
    )


def levels_of(tap: str) -> tuple[Level, ...]:
    """Return the four released levels of taps numbered from 0; the last weighs a tenth."""
    return tuple(
        Level(
            name=f"level{i}", student=f"{tap}{i}", teacher=f"{tap}{i}", share=0.1 if i == 3 else 1.0
        )
        for i in range(4)
    )


class Settings(Config):
    """Settings; defaults are those of the released configuration."""

    mode: Mode = Field("clean", description="clean | compat (released bugs; tests only)")
    levels: tuple[Level, ...] = Field(
        levels_of("image.level"), description="image maps that meet"
    )  # released config: outputs of the four FPN convolutions; the last at 0.01
    balanced: float = Field(
        0.1, ge=0, description="weight of a level; 0: no image level is needed"
    )  # released config
    balance: float = Field(
        7.0, gt=0, description="rho: of both divergences; without a schedule, of the reverse one"
    )  # released config
    forward_temperature: float = Field(4.0, gt=0)  # tau_f, released config ("temp_stu")
    reverse_temperature: float = Field(4.0, gt=0)  # tau_r, released config ("temp_tea")
    schedule: bool = Field(
        True, description="forward divergence alone at the first step, reverse alone at the last"
    )  # released config

    # Other modules of the release. Its configuration has them off, so here they weigh nothing;
    # what they would weigh is in methods/README.md.
    modulated: float = Field(
        0.0, ge=0, description="weight of a camera-modulated level; 0: off"
    )  # released code, TFPN: 0.1
    modulated_levels: tuple[Level, ...] = Field(
        levels_of("image.modulated"), description="camera-modulated image maps that meet"
    )  # released code: tokens of all four levels
    modulated_temperature: float = Field(2.0, gt=0)  # released code, both directions
    response: float = Field(
        0.0, ge=0, description="weight of a level's responses to queries; 0: off"
    )  # released code, ATTN: 0.1
    response_loss: Literal["balanced", "square"] = Field(
        "balanced", description="balanced divergences | mean of squared gaps"
    )  # released code has both
    response_temperature: float = Field(2.0, gt=0)  # released code, both directions
    local: float = Field(
        0.0, ge=0, description="weight of maps of query states; 0: off"
    )  # released code, BEVATTN: 0.1
    local_layers: Literal["all", "last"] = Field(
        "all", description="decoder layers that are compared, the mean of them"
    )  # inferred
    local_temperature: float = Field(4.0, gt=0)  # released code, both directions
    cells: int = Field(128, ge=5, description="rows and columns of these maps")  # released code
    duplicates: Duplicates = Field(
        "score",
        description="which of several queries fills a cell: the one whose best class is most "
        "probable | the last; of equals the last",
    )  # released: the last that happens to be written
    start: Start = Field(
        "own", description="a convolution of these maps starts by summing: its own channel | all"
    )  # released: all, and then all channels are one and the same for ever
    teacher_mixer: Literal["trained", "frozen"] = Field(
        "trained", description="the convolution of the teacher's maps"
    )  # released: trained
    denoising: bool = Field(
        False, description="the teacher's best boxes join the student's denoising queries"
    )  # released code, DN: off
    reach: Corner = Field(
        (61.2, 61.2, 10.0), description="metres in x, y, z; boxes beyond join nothing"
    )  # released code
    low: Corner = Field(
        (-51.2, -51.2, -5.0), description="metres, corner of the range of references and maps"
    )  # released code
    high: Corner = Field((51.2, 51.2, 3.0), description="metres, its other corner")
    layers: int = Field(6, ge=1, description="decoder layers, stacked in the rows of the queries")
    states: str = Field("query.states", description="tap of both: query_set, layers x queries")
    references: str = Field("query.references", description="tap of both: query_points, queries")
    offsets: str = Field("query.offsets", description="tap of both: query_points, layers x queries")
    scores: str = Field("query.scores", description="tap of both: query_set, layers x queries")
    boxes: str = Field("head.boxes", description="teacher tap, a box_set")

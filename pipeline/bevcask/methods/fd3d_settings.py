"""FD3D's settings: every choice that no public text settles has a name here."""

from typing import Literal, Self

from pydantic import Field, model_validator

from bevcask.methods.focaldistiller import FocalDistiller


class Settings(FocalDistiller.Config):
    """Settings of a reconstruction; "inferred" marks what neither paper abstract nor code says."""

    head: Literal["trained", "frozen"] = Field(
        "trained",
        description="trained: a distillation head learns on the teacher's dense map | frozen: the "
        "teacher's own decoder, of which the cache holds what its queries read",
    )  # the released tree has a head of its own; which of the two is inferred
    generative_image: float = Field(
        0.25, ge=0, description="each level's weight; 0: no generators of image levels"
    )  # inferred: the weight of channelwise
    generative_bev: float = Field(
        0.1, ge=0, description="0: the generated BEV map serves the focal term alone"
    )  # inferred: the weight of masked
    focal: float = Field(
        0.1, ge=0, description="of what the same queries read of both BEV maps"
    )  # inferred: the weight of masked
    detection: float = Field(
        1.0, gt=0, description="of the trained head's own losses"
    )  # inferred: any loss of the release is summed with weight 1
    boxes_by: Literal["predicted", "truth"] = Field(
        "predicted", description="whose boxes say where: the head's | ground truth's"
    )  # the authors' figure shows predicted ones
    generate_over: Literal["boxes", "everywhere"] = Field(
        "boxes", description="where generated and teacher's maps are compared"
    )  # inferred
    score: float = Field(
        0.3, ge=0, lt=1, description="predicted boxes above it say where"
    )  # inferred
    most_boxes: int = Field(100, ge=1, description="of the best ones above it")  # inferred
    blank: tuple[float, float] = Field(
        (0.5, 0.65), description="share of the cells in boxes that is blanked, drawn between these"
    )  # inferred; 0.65 is that of MGD
    by_score: bool = Field(
        True, description="focal term: queries weigh as much as their best class is probable"
    )  # inferred
    stop_gradient: Literal["teacher", "head"] = Field(
        "teacher",
        description="focal term, trained head: teacher: what is read of his map is a constant, the "
        "value projection learns from the student's side | head: the head learns nothing from it",
    )  # inferred; with both sides free the projection can shrink
    seed: int = Field(0, description="of the blanks")
    reads: str = Field("query.reads", description="teacher tap, frozen head: what queries read")
    places: str = Field("query.places", description="teacher tap, frozen head: where they do")
    scores: str = Field("query.scores", description="teacher tap, frozen head: class probabilities")
    values: str = Field("query.values", description="teacher tap, frozen head: value projections")
    boxes: str = Field("head.boxes", description="teacher tap, frozen head, predicted boxes")
    queries: int = Field(900, ge=1, description="of the trained head")  # leftover code
    layers: int = Field(6, ge=1, description="of the trained head")  # leftover code
    heads: int = Field(8, ge=1, description="attention heads, of either head")  # leftover code
    points: int = Field(4, ge=1, description="places a head reads, trained head")  # leftover code
    width: int = Field(512, ge=1, description="of its feed-forward layers")  # released config
    heights: tuple[float, float] = Field(
        (-5.0, 3.0), description="metres, lowest and highest centre of its boxes"
    )  # released config

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.mode == "compat":
            raise ValueError("fd3d was never released: there is no code to be compatible with")
        low, high = self.blank
        if not 0 <= low <= high < 1:
            raise ValueError(f"blank must be 0 <= low <= high < 1, got {low} and {high}")
        if not self.generative_bev and not self.focal and not self.generative_image:
            raise ValueError(
                "generative_image, generative_bev and focal are 0: that is method=focaldistiller"
            )
        return self

"""HarmoDistill's settings: which terms are on, what they weigh, what they read."""

from pydantic import Field

from bevcask.config import Config
from bevcask.methods.base import Mode
from bevcask.methods.focaldistiller import ImageLevel


class Level(ImageLevel):
    """A pair of image feature maps that meet; the teacher's is resized to the student's size."""

    teacher: str = Field(description="teacher tap, an image_feature of any size")
    share: float = Field(1.0, gt=0, description="of the term's weight")


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

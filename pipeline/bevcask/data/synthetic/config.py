"""What a synthetic dataset is made of."""

from typing import Self

from pydantic import Field, model_validator

from bevcask.config import Config
from bevcask.errors import ConfigError


class SynthesizeConfig(Config):
    """How large the toy city is and how it is seen."""

    out: str = Field(description="folder to write; must be empty or an older synthetic dataset")
    seed: int = Field(0, ge=0, description="same seed, same bytes")
    version: str = Field("v1.0-synthetic", description="name of the folder with the tables")
    num_scenes: int = Field(10, ge=1)
    num_keyframes: int = Field(40, ge=1, description="keyframes a scene, two a second")
    val_scenes: int = Field(2, ge=0, description="how many of the scenes are for validation")
    num_sweeps: int = Field(2, ge=0, le=8, description="LiDAR sweeps between two keyframes")
    image_width: int = Field(800, ge=64, le=1600)
    image_height: int = Field(450, ge=36, le=900)
    jpeg_quality: int = Field(90, ge=10, le=100)
    workers: int = Field(0, ge=0, description="processes; 0 and 1 work in this one")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.val_scenes > self.num_scenes:
            raise ConfigError(
                f"val_scenes: expected at most num_scenes={self.num_scenes}, "
                f"got {self.val_scenes}. Ask for more scenes or fewer of them for validation."
            )
        if self.version.endswith(("-trainval", "-mini", "-test")) or "/" in self.version:
            raise ConfigError(
                f"version: expected a name of its own such as v1.0-synthetic, got "
                f"{self.version!r}, which the devkit takes for a real nuScenes split."
            )
        return self

"""What a synthetic dataset is made of."""

from pydantic import Field

from bevcask.config import Config


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
    workers: int | None = Field(
        None, ge=0, description="processes; none: one a core; 0 and 1 work in this one"
    )

"""Keys of files that show a cache: a report as one HTML file, a scene for Foxglove."""

from typing import Literal

from pydantic import Field

from bevcask.config import Config, PathText


class PageConfig(Config):
    """What is in the file, and how large it may become."""

    html: PathText | None = Field(
        None, description="write a report of the cache to this HTML file, which opens offline"
    )
    html_frames: int = Field(
        1000, ge=1, description="frames in the report at most; of more, evenly spaced ones"
    )
    html_mb: float = Field(
        20.0, ge=1, description="size of the report at most; camera images give way first"
    )
    run: PathText | None = Field(
        None, description="folder of a training: its student, beside the teacher in the report"
    )
    html_augment: Literal["flip x", "flip y", "rotate 5", "rotate 22.5", "scale 1.05"] = Field(
        "rotate 22.5", description="BEV augmentation that the student is also shown, and aligned"
    )


class SceneConfig(Config):
    """A scene for other viewers."""

    mcap: PathText | None = Field(
        None, description="write a scene to this MCAP file, for Foxglove; needs bevcask[mcap]"
    )
    scene: str | None = Field(None, description="of mcap=; none: the first of the cache")

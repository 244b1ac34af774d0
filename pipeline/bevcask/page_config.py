"""Keys of a report of a cache as one HTML file."""

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

"""What is said of StreamPETR and RayDN alike; defaults are those of the 428-query releases."""

from typing import Self

from pydantic import Field, model_validator

from bevcask.config import Config
from bevcask.detectors.blocks.frozen import BackboneConfig
from bevcask.detectors.blocks.levels import LEVELS, STRIDES, Level
from bevcask.detectors.blocks.set_loss import SetLossConfig
from bevcask.measures import Count


class StreamBackboneConfig(BackboneConfig):
    """A torchvision-style ResNet whose norms stay as they were loaded; defaults: R50."""

    blocks: tuple[Count, Count, Count, Count] = (3, 4, 6, 3)
    stride_first: bool = False
    deformable: tuple[int, ...] = ()
    levels: tuple[Level, ...] = Field(("c4", "c5"), min_length=1)
    frozen_stages: int = Field(-1, ge=-1, le=4)


class StreamLossConfig(SetLossConfig):
    """Weights in loss and matching cost, and decoding; defaults: both releases."""

    position_weight: float = Field(2.0, ge=0, description="of x and y, inside the box loss")
    velocity_weight: float = Field(1.0, ge=0, description="of both velocities, inside the box loss")

    @property
    def code_weights(self) -> tuple[float, ...]:
        plain = (1.0,) * 6
        return (self.position_weight,) * 2 + plain + (self.velocity_weight,) * 2


class DenoisingConfig(Config):
    """Queries made of disturbed ground truth, in training alone; defaults: both releases."""

    groups: int = Field(10, ge=0, description="copies of every box, each disturbed by its own draw")
    noise: float = Field(1.0, ge=0, description="of a draw at most, in half box sizes")
    split: float = Field(0.75, gt=0, description="disturbed farther a box is to be no object")
    weight: float = Field(1.0, ge=0, description="of both of its losses")
    ray_draws: int = Field(0, ge=0, description="copies along the ray of a camera; RayDN: 5")
    ray_reach: float = Field(3.0, gt=0, description="half box sizes along the ray at most")
    ray_shape: tuple[float, float] = Field((8.0, 2.0), description="of the beta distribution")


class StreamConfig(Config):
    """Architecture and losses of the family."""

    image_size_HW: tuple[Count, Count] = Field((256, 704), description="network input, pixels")
    camera_size_HW: tuple[int, int] = Field(
        (900, 1600), description="pixels of the original images, which boxes in them end at"
    )
    half_pixel: bool = Field(
        False, description="whether a resize maps pixel centres; the releases scale coordinates"
    )
    single_poses: bool = Field(
        True,
        description="poses and places of the memory in float32, as published weights were trained; "
        "false: float64, which moves logits by up to 2e-3",
    )
    camera_order: tuple[int, ...] = Field(
        (1, 2, 0, 4, 3, 5),
        description="released order of the cameras: FRONT, FRONT_RIGHT, FRONT_LEFT, BACK, "
        "BACK_LEFT, BACK_RIGHT; each as its index in ours",
    )
    released: bool = Field(
        False,
        description="repeat slips of the releases' training: a box on no camera's ray denies its "
        "own place, and without any box matching losses are reported a second time",
    )
    backbone: StreamBackboneConfig = StreamBackboneConfig()
    channels: int = Field(256, ge=4, multiple_of=4)
    heads: int = Field(8, ge=1)
    feed_forward: int = Field(2048, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    layers: int = Field(6, ge=1)
    queries: int = Field(300, ge=1, description="learned ones")
    propagated: int = Field(128, ge=1, description="newest remembered ones, which are queries too")
    memory: int = Field(512, ge=1, description="remembered queries in all")
    kept: int = Field(128, ge=1, description="queries of a frame that are remembered")
    low: tuple[float, float, float] = Field((-51.2, -51.2, -5.0), description="range of centres")
    high: tuple[float, float, float] = Field((51.2, 51.2, 3.0), description="its other corner")
    history: int = Field(0, ge=0, description="keyframes before, shown without gradient (window)")
    trained: int = Field(
        1, ge=1, description="frames of a window that are trained, this one and those before"
    )
    loss: StreamLossConfig = StreamLossConfig()
    denoising: DenoisingConfig = DenoisingConfig()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.channels % self.heads:
            raise ValueError(f"channels {self.channels} must divide by heads {self.heads}")
        if not self.propagated <= self.memory:
            raise ValueError(f"propagated {self.propagated} must be within memory {self.memory}")
        if self.kept > self.queries + self.propagated:
            raise ValueError(
                f"kept {self.kept}: there are {self.queries + self.propagated} queries"
            )
        if self.trained > 1 + self.history:
            raise ValueError(
                f"trained {self.trained}: a window has {self.history} frames before and this one"
            )
        if sorted(self.camera_order) != list(range(len(self.camera_order))):
            raise ValueError(f"camera_order {self.camera_order} is no permutation")
        return self

    @property
    def rows(self) -> int:
        """Queries that a frame says boxes for."""
        return self.queries + self.propagated

    def level_sizes(self, count: int) -> list[tuple[int, int]]:
        """Return rows and columns of so many maps of the pyramid, finest first."""
        sizes = []
        for level in LEVELS:
            if level in self.backbone.levels:
                height, width = (-(-side // STRIDES[level]) for side in self.image_size_HW)
                sizes.append((height, width))
        while len(sizes) < count:
            height, width = sizes[-1]
            sizes.append(((height + 1) // 2, (width + 1) // 2))
        return sizes[:count]

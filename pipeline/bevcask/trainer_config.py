"""Configuration of a training: the sections that `student-distill` alone reads."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from bevcask.config import Config, LoaderConfig, PathText


class TrainingLoaderConfig(LoaderConfig):
    """How training samples are drawn and read."""

    sampler: Literal["uniform", "cbgs"] = Field(
        "uniform",
        description="each frame once an epoch, or class-balanced (CBGS, 4.4 x as many)",
    )
    shuffle: Literal["full", "window"] = Field(
        "full",
        description="over everything, or within windows of a cache's shards: fewer reads "
        "of a remote store, less random batches",
    )
    window: int = Field(64, ge=1, description="shards a window of shuffle=window")
    order: Literal["frames", "scenes"] | None = Field(
        None,
        description="of a student that remembers: frames drawn at random, each behind a window of "
        "its history; or scenes side by side, memory carried along; none: as the student says",
    )
    scene_parts: int = Field(
        1, ge=1, description="order=scenes: pieces a scene is cut into, memory begins anew at each"
    )
    local: PathText | None = Field(
        None,
        description="folder on a disk near by that keeps what was read of a cache far away; none: "
        "each epoch reads it there",
    )
    local_gb: float = Field(
        50.0, gt=0, description="GB of loader.local, all runs that share it together"
    )


class TrainerConfig(Config):
    """How the student is trained."""

    max_steps: int = Field(1000, ge=1)
    lr: float = Field(2e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    backbone_lr: float = Field(
        1.0, gt=0, description="of the student's `backbone`, as a share of lr"
    )
    warmup_steps: int = Field(100, ge=0)
    schedule: Literal["constant", "cosine", "step", "one_cycle"] = "cosine"
    milestones: tuple[int, ...] = Field(
        (), description="step: the steps from which lr is a tenth of what it was"
    )
    cycle_ends: tuple[float, float] = Field(
        (0.04, 4e-6),
        description="one_cycle: lr at the first and the last step, as shares of lr; mmdet3d's "
        "cyclic schedule is 0.1,1e-5 with lr ten times its own",
    )
    cycle_momentum: tuple[float, float] | None = Field(
        None,
        description="one_cycle: AdamW's first beta at the ends of the cycle and at its peak, "
        "[0.9,0.80526] in mmdet3d's; none: 0.9 all along",
    )
    accumulate: int = Field(
        1, ge=1, description="batches whose gradients make one step; losses normalise over one"
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of the moving average that is validated and exported; 0: none",
    )
    clip: float = Field(5.0, gt=0, description="gradient norm")
    devices: int | Literal["auto"] | None = Field(
        None,
        description="processes on each host, one a device; auto: one a GPU; none: as torchrun or "
        "srun says, else 1. loader.batch_size is of each",
    )
    nodes: int = Field(1, ge=1, description="hosts; torchrun or srun starts the processes of each")
    sync_batchnorm: bool = Field(
        False, description="batch norms see the batches of all processes together"
    )
    precision: Annotated[Literal["32", "16-mixed", "bf16-mixed"], BeforeValidator(str)] = "32"
    deterministic: bool = Field(
        False, description="the same weights again on CUDA; slower, and not every operation can"
    )
    validate_every: int = Field(
        0, ge=0, description="steps between validations; 0: only at the end"
    )
    pictures: int = Field(
        1,
        ge=0,
        description="every so many validations one frame of them goes to TensorBoard, student "
        "beside teacher; 0: none",
    )
    checkpoint_every: int = Field(500, ge=1, description="steps between resumable checkpoints")
    log_every: int = Field(10, ge=1)
    profile: int = Field(
        0,
        ge=0,
        description="steps to trace with torch's profiler, into run/profile: what the device does",
    )

    @field_validator("devices")
    @classmethod
    def _some_device(cls, devices: int | str | None) -> int | str | None:
        if isinstance(devices, int) and devices < 1:
            raise ValueError(f"devices {devices}: expected a number above 0, or auto")
        return devices

    @model_validator(mode="after")
    def _milestones_fit(self) -> "TrainerConfig":
        wanted = self.schedule == "step"
        rising = list(self.milestones) == sorted(set(self.milestones))
        if wanted != bool(self.milestones) or not rising:
            raise ValueError(
                f"schedule {self.schedule} with milestones {list(self.milestones)}: `step` needs "
                "rising milestones, the other schedules take none"
            )
        return self

    @model_validator(mode="after")
    def _cycle_fits(self) -> "TrainerConfig":
        if self.schedule != "one_cycle":
            if self.cycle_momentum is not None:
                raise ValueError(
                    f"schedule {self.schedule} has no cycle; leave cycle_momentum out, or say "
                    "schedule one_cycle"
                )
            return self
        if self.warmup_steps == 0:
            raise ValueError("schedule one_cycle rises over warmup_steps, which must be above 0")
        if not all(0 < end <= 1 for end in self.cycle_ends):
            raise ValueError(f"cycle_ends {list(self.cycle_ends)} must be above 0 and at most 1")
        if self.cycle_momentum is not None:
            ends, peak = self.cycle_momentum
            if not 0 <= peak <= ends < 1:
                raise ValueError(
                    f"cycle_momentum {[ends, peak]}: expected 0 <= second <= first < 1"
                )
        return self


class OnlineConfig(Config):
    """The teacher-in-the-loop reference."""

    input: Literal["canonical", "augmented"] = Field(
        "augmented", description="canonical: the clean frame; augmented: what the student sees"
    )

"""What watches a training: the bar, the clock, the average of weights, the official score."""

import json
import math
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from torch import Tensor

from bevcask.evaluation.nuscenes import Evaluation
from bevcask.progress import Ticker, progress_bar
from bevcask.training.module import Distillation

_EMA_RAMP = 2000.0


class Bar(Callback):
    """A bar on stderr with loss, rate and remaining time; it makes room for validation's bar."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._stack = ExitStack()
        self._bar: Ticker | None = None
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._open("train", trainer.max_steps, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        note = None
        if batch_idx % self._every == 0:
            note = f"loss {float(outputs['loss']):.3f}"
        self._advance(trainer.global_step - self._step, note)
        self._step = trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("validate", int(sum(trainer.num_val_batches)), 0)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._advance(1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()
        if trainer.global_step < trainer.max_steps:
            self._open("train", trainer.max_steps, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _open(self, title: str, total: int, done: int) -> None:
        self._close()
        self._bar = self._stack.enter_context(progress_bar(title, total, done))

    def _advance(self, steps: int, note: str | None = None) -> None:
        if self._bar is not None:
            self._bar.advance(steps, note)

    def _close(self) -> None:
        self._bar = None
        self._stack.close()


class LastStep(Callback):
    """Ends the run at its last step, so that the weights it ends with are validated."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True


class LastCheckpoint(Checkpoint):
    """Writes the checkpoint a run goes on from.

    Where a step is also validated it is written behind the validation, so that a resumed run knows
    the best score; a run killed in between goes on from the checkpoint before.

    Args:
        path: the one file, replaced in one step.
        every: steps between checkpoints.
        validate_every: steps between validations; 0 for none before the last step.
    """

    def __init__(self, path: Path, every: int, validate_every: int) -> None:
        self._path = path
        self._every = every
        self._validate_every = validate_every
        self._saved = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        validated = self._validate_every > 0 and step % self._validate_every == 0
        due = step > self._saved and step % self._every == 0  # once, however many batches a step
        if due and step < trainer.max_steps and not validated:
            self._saved = step
            trainer.save_checkpoint(self._path)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self._path)


class MovingAverage(WeightAveraging):
    """The exponential moving average of weights and statistics: what is validated and exported.

    The decay rises as decay * (1 - exp(-n / 2000)), as in the release of BEVDepth (from YOLOX), so
    that the first weights are forgotten soon. Whole numbers are copied.

    Args:
        decay: in the long run.
        device: where the network trains.
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        def average(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
            if not averaged[0].is_floating_point():
                torch._foreach_copy_(averaged, current)
                return
            kept = decay * (1 - math.exp(-int(count) / _EMA_RAMP))
            torch._foreach_lerp_(averaged, current, 1 - kept)

        super().__init__(device=device, multi_avg_fn=average)


class StepClock(Callback):
    """Times steps from the end of one to the end of the next, validation and saving left out.

    Attributes:
        seconds: of each step of this process but the first.
        waits: the part of each spent waiting for the loader, seconds.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.waits: list[float] = []
        self._step = 0
        self._began: float | None = None  # the step under way
        self._ended: float | None = None  # the last batch
        self._wait = 0.0

    @property
    def seconds_per_step(self) -> float | None:
        """Median; None before the second step."""
        return median(self.seconds) if self.seconds else None

    @property
    def loader_share(self) -> float | None:
        """Median share of a step spent waiting for the loader."""
        if not self.seconds:
            return None
        return median(w / s for w, s in zip(self.waits, self.seconds, strict=True))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._ended is not None:
            self._wait += perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = self._ended = perf_counter()
        if trainer.global_step == self._step:
            return  # more batches make this step
        if self._began is not None:
            step = now - self._began
            self.seconds.append(step)
            self.waits.append(self._wait)
            share = self._wait / step
            pl_module.log_dict({"time/seconds_per_step": step, "time/loader_share": share})
        self._step, self._began, self._wait = trainer.global_step, now, 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._ended = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._began = self._ended = None


class OfficialScore(Callback):
    """Scores what validation collected with the nuScenes evaluation.

    Args:
        evaluation: of the validation frames.
        folder: receives a folder per validation, `step_000500`, with the devkit's files and
            `metrics.json`.

    Attributes:
        result: the last score.
    """

    def __init__(self, evaluation: Evaluation, folder: Path) -> None:
        self._evaluation = evaluation
        self._folder = folder
        self.result: dict[str, Any] = {}
        self.step = -1

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Distillation)
        folder = self._folder / f"step_{trainer.global_step:06d}"
        self.result = self._evaluation.score(pl_module.detections, folder)
        self.step = trainer.global_step
        pl_module.detections = {}
        (folder / "metrics.json").write_text(json.dumps(self.result, indent=2) + "\n")
        pl_module.log_dict({"val/mAP": self.result["mAP"], "val/NDS": self.result["NDS"]})

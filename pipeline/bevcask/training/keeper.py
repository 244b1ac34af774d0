"""What a run leaves behind on its way: checkpoints, scores of them, and the best of them.

A checkpoint is written first and validated then, so that nothing a validation meets costs a step.
A validation depends on the checkpoint alone: one that was cut off is made up for before the next
step. Which checkpoint is the best is read from the scores in the run folder, wherever it has moved.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import distributed

from bevcask.data.loader import AnyLoader
from bevcask.detectors.base import Batch, Detections, Detector
from bevcask.evaluation.detect import Watch, detect
from bevcask.evaluation.nuscenes import Evaluation, Sense
from bevcask.paths import write_whole
from bevcask.progress import Ticker
from bevcask.ranks import by_first, most, num_ranks, rank, to_first
from bevcask.signals import Stop
from bevcask.trainer_config import TrainerConfig
from bevcask.training.callbacks import Bar, MovingAverage
from bevcask.training.checkpoint import student_in
from bevcask.training.module import Distillation
from bevcask.training.panels import Pictures
from bevcask.training.record import RunFolder
from bevcask.training.saving import keep


class Validation:
    """Scores a student with the nuScenes evaluation.

    Each rank looks at its own batches; rank 0 scores what all of them found, in the frames' order.

    Args:
        batches: the validation frames of this rank, clean.
        tokens: of all of them.
        evaluation: of these frames; rank 0 has it.
        uses: what the student looks with.
        every: steps between validations; 0 for none but the last.
        last: the last step.
        pictures: drawn of a frame that is validated; None draws none.
    """

    def __init__(
        self,
        batches: AnyLoader[Batch],
        tokens: Sequence[str],
        evaluation: Evaluation | None,
        uses: Collection[Sense],
        every: int,
        last: int,
        pictures: Pictures | None = None,
    ) -> None:
        self._batches = batches
        self._tokens = tokens
        self._evaluation = evaluation
        self._uses = uses
        self._every = every
        self._last = last
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._batches)

    def due(self, step: int) -> bool:
        """Return whether the weights after a step are validated."""
        return step == self._last or (self._every > 0 and step > 0 and step % self._every == 0)

    def pictures(self, step: int) -> Pictures | None:
        """Return what is drawn of the validation after a step; rank 0 draws."""
        if self._pictures is None or rank():
            return None
        number = -(-step // self._every) if self._every else 1
        return self._pictures if step == self._last or self._pictures.due(number) else None

    def score(
        self,
        detector: Detector,
        device: torch.device,
        folder: Path,
        ticker: Ticker,
        stop: Stop,
        watch: Watch | None = None,
    ) -> dict[str, Any]:
        """Return the scores; also written to `metrics.json` in `folder`, with the devkit's files.

        Args:
            detector: on `device`.
            device: where it runs.
            folder: of this validation.
            ticker: moved by one a batch.
            stop: whether to end.
            watch: see `detect`.

        Raises:
            Stopped: a signal came.
        """
        batches = _watched(self._batches, ticker, stop)
        found = to_first(detect(detector, batches, device, watch=watch))

        def written() -> dict[str, Any]:
            assert self._evaluation is not None
            result = self._evaluation.score(self._in_order(found), folder, self._uses)
            write_whole(folder / "metrics.json", (json.dumps(result, indent=2) + "\n").encode())
            return result

        return by_first(written)

    def _in_order(self, found: Sequence[dict[str, Detections]]) -> dict[str, Detections]:
        if len(found) == 1:
            return found[0]
        boxes = {token: own for part in found for token, own in part.items()}
        return {token: boxes[token] for token in self._tokens}


def _watched(batches: AnyLoader[Batch], ticker: Ticker, stop: Stop) -> Iterator[Batch]:
    """Yield the batches; all ranks stop at the same one, also those that have one batch less."""
    own = iter(batches)
    for _ in range(most(len(batches))):
        agree(stop)
        stop.check("the same command goes on with this validation.")
        if (batch := next(own, None)) is not None:
            yield batch
        ticker.advance()
    next(own, None)  # nothing: lets the loader end


def agree(stop: Stop) -> None:
    """Let every rank be asked to end where one of them is."""
    if number := most(stop.asked or 0):
        stop.asked = Signals(number)


class Keeper(Checkpoint):
    """Writes the checkpoint a run goes on from, validates it, keeps the best, ends when asked to.

    Args:
        folder: of the run.
        config: intervals.
        validation: None without validation frames.
        stop: whether to end.
        bar: makes room for the validation's.
        average: what is validated; None for the weights themselves.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: TrainerConfig,
        validation: Validation | None,
        stop: Stop,
        bar: Bar,
        average: MovingAverage | None,
    ) -> None:
        self._folder = folder
        self._config = config
        self._validation = validation
        self._stop = stop
        self._bar = bar
        self._average = average
        self._seen = 0

    def catch_up(
        self, trainer: Trainer, module: Distillation, path: Path, saved: Mapping[str, Any]
    ) -> None:
        """Make up for a validation that was cut off, or did not get to keep the best.

        Args:
            trainer: has not begun.
            module: its student takes the weights.
            path: the checkpoint that the run goes on from.
            saved: what is in it.
        """
        step = int(saved["global_step"])
        if self._validation is None or not self._validation.due(step):
            return
        if not by_first(lambda: self._folder.validation_result(step)):
            module.student.load_state_dict(student_in(saved))
            device = trainer.strategy.root_device
            self._validate(trainer, module.student.to(device), step)
        self._keep_best(step, path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop.listen()  # Lightning has taken SIGTERM
        self._seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._seen:
            return  # more batches make this step
        self._seen = step
        agree(self._stop)
        ends = step >= trainer.max_steps
        validated = self._validation is not None and self._validation.due(step)
        every = step % self._config.checkpoint_every == 0
        if ends or validated or every or self._stop.asked is not None:
            trainer.save_checkpoint(self._folder.last)
        if not ends or validated:
            self._stop.check(f"step {step} is saved; the same command goes on from there.")
        if validated:
            assert isinstance(pl_module, Distillation)
            with self._average.applied(pl_module) if self._average else nullcontext():
                self._validate(trainer, pl_module.student, step)
            self._keep_best(step, self._folder.last)

    def _validate(self, trainer: Trainer, student: Detector, step: int) -> None:
        """Score the weights after a step and log it."""
        assert self._validation is not None
        for value in student.buffers() if num_ranks() > 1 else ():
            distributed.broadcast(value, 0)  # batch norms see other batches on other ranks
        pictures = self._validation.pictures(step)
        precision: AbstractContextManager[None] = trainer.precision_plugin.val_step_context()
        with self._bar.aside("validate", len(self._validation)) as ticker, precision:
            result = self._validation.score(
                student,
                trainer.strategy.root_device,
                self._folder.validation_at(step),
                ticker,
                self._stop,
                pictures.watch if pictures else None,
            )
        for logger in trainer.loggers:
            logger.log_metrics({"val/mAP": result["mAP"], "val/NDS": result["NDS"]}, step)
        if pictures:
            pictures.log(trainer.loggers, step)

    def _keep_best(self, step: int, path: Path) -> None:
        def kept() -> None:
            if self._folder.best_step(step) == step:
                keep(path, self._folder.best)

        by_first(kept)

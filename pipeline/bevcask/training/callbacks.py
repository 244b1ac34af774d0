"""What watches a training: the bar, the clock, the average of weights."""

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.profiler import profile, schedule

from bevcask.progress import Ticker, no_bar, progress_bar
from bevcask.ranks import rank
from bevcask.wall_time import wall_time

_EMA_RAMP = 2000.0
_WARM_STEPS = 5  # the loader measures in the first, the device chooses its kernels
_log = logging.getLogger(__name__)


class Bar(Callback):
    """A bar on stderr with loss, rate and remaining time."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._stack = ExitStack()
        self._bar: Ticker | None = None
        self._step = self._total = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step, self._total = trainer.global_step, trainer.max_steps
        self._open("train", trainer.max_steps, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        note = None
        if batch_idx % self._every == 0:
            note = f"loss {float(outputs['loss']):.3f}"
        self._advance(trainer.global_step - self._step, note)
        self._step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close()

    @contextmanager
    def aside(self, title: str, total: int) -> Iterator[Ticker]:
        """Show another bar while the block runs, then this one again."""
        mine = self._bar is not None
        self._close()
        with progress_bar(title, total) if rank() == 0 else no_bar(title, total) as ticker:
            yield ticker
        if mine and self._step < self._total:
            self._open("train", self._total, self._step)

    def _open(self, title: str, total: int, done: int) -> None:
        self._close()
        if rank():
            return
        self._bar = self._stack.enter_context(progress_bar(title, total, done))

    def _advance(self, steps: int, note: str | None = None) -> None:
        if self._bar is not None:
            self._bar.advance(steps, note)

    def _close(self) -> None:
        self._bar = None
        self._stack.close()


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

    @contextmanager
    def applied(self, module: LightningModule) -> Iterator[None]:
        """Put the average in the place of the weights while the block runs."""
        self._swap_models(module)
        try:
            yield
        finally:
            self._swap_models(module)


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

    def wall_time(self) -> dict[str, Any] | None:
        """Return where the time of all steps went; None before the second."""
        total, waited = sum(self.seconds), sum(self.waits)
        return wall_time(total, {"device": total - waited, "loader": waited}) if total else None

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
            times = {"seconds_per_step": step, "loader_share": self._wait / step}
            # As tensors of the host: Lightning would copy a number to the device and wait for it.
            pl_module.log_dict({f"time/{key}": torch.tensor(own) for key, own in times.items()})
        self._step, self._began, self._wait = trainer.global_step, now, 0.0

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._began = self._ended = None


class Trace(Callback):
    """Writes what host and device did in a few steps, for chrome://tracing or Perfetto.

    Args:
        steps: that are traced, once the first few have warmed everything up.
        folder: of the file, `steps_FIRST_LAST.json.gz`.
    """

    def __init__(self, steps: int, folder: Path) -> None:
        self._steps = steps
        self._folder = folder
        self._profiler: Any = None
        self._last = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = trainer.global_step
        left = trainer.max_steps - self._last
        warm = max(1, min(_WARM_STEPS, left - self._steps))
        plan = schedule(wait=warm - 1, warmup=1, active=self._steps, repeat=1)
        self._profiler = profile(schedule=plan, on_trace_ready=self._write)
        self._profiler.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._last:  # else more batches make this step
            self._last = trainer.global_step
            self._profiler.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._profiler.stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._profiler is not None:
            self._profiler.stop()

    def _write(self, profiler: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        first = max(1, self._last - self._steps + 1)
        path = self._folder / f"steps_{first:06d}_{self._last:06d}.json.gz"
        profiler.export_chrome_trace(str(path))
        _log.info("trace of %d steps: %s", self._steps, path)

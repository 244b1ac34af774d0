"""The Lightning trainer, set up for one run: one process a device, alone or as one of several."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from bevcask.data.join import TrainBatch
from bevcask.errors import ConfigError, DivergedError
from bevcask.ranks import by_first, num_ranks, rank
from bevcask.signals import Stop
from bevcask.trainer_config import TrainerConfig
from bevcask.training.callbacks import Bar, MovingAverage, StepClock, Trace
from bevcask.training.keeper import Keeper, Validation
from bevcask.training.loops import Steps
from bevcask.training.module import Distillation
from bevcask.training.record import RunFolder
from bevcask.training.saving import WholeFiles, read_checkpoint, resume_point

_PRECISION: dict[str, Any] = {"32": "32-true", "16-mixed": "16-mixed", "bf16-mixed": "bf16-mixed"}
_log = logging.getLogger(__name__)


class Ranks(LightningEnvironment):
    """The processes that `launch.joined` has joined, whatever the environment says.

    To Lightning each is a host with one device, so that it asks nobody which device that is.
    """

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def global_rank(self) -> int:
        return rank()

    def set_global_rank(self, rank: int) -> None:
        super().set_global_rank(self.global_rank())

    def world_size(self) -> int:
        return num_ranks()

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return rank()

    def teardown(self) -> None:
        """Leave the environment as it is."""


def fit(
    config: TrainerConfig,
    device: torch.device,
    folder: RunFolder,
    module: Distillation,
    steps: Steps[TrainBatch],
    validation: Validation | None,
) -> StepClock:
    """Train to the end, from the last checkpoint if there is one; return the times of the steps.

    Raises:
        ConfigError: float16 on a CPU.
        CheckpointError: the last checkpoint is damaged, or one cannot be written.
        DivergedError: a loss is not finite.
        Stopped: a signal came; what it says about the same command is so.
    """
    stop, bar, clock = Stop(), Bar(config.log_every), StepClock()
    average = MovingAverage(config.ema, device) if config.ema else None
    keeper = Keeper(folder, config, validation, stop, bar, average)
    watching: list[Callback] = [clock, *([average] if average else []), bar, keeper]
    if config.profile:
        watching.append(Trace(config.profile, folder.profile))
    trainer = _trainer(config, device, folder, watching)
    resumed = _resumed(folder)
    with warnings.catch_warnings(), stop.listening():
        # Lightning 2.6 asks torch 2.13 about its own pytrees in a way torch is giving up.
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec", FutureWarning)
        warnings.filterwarnings("ignore", ".*did not find any unused parameters", UserWarning)
        if resumed is not None:
            _log.info("going on from step %d, %s", resumed[1]["global_step"], resumed[0])
            keeper.catch_up(trainer, module, *resumed)
        try:
            trainer.fit(
                module,
                train_dataloaders=steps,
                ckpt_path=None if resumed is None else resumed[0],
            )
        except DivergedError as error:
            kept = "The last checkpoint is intact." if folder.last.is_file() else "None is saved."
            raise DivergedError(f"{error} {kept}") from error
    return clock


def _resumed(folder: RunFolder) -> tuple[Path, dict[str, Any]] | None:
    """Return the checkpoint to go on from as `resume_point` does, the same one on every rank."""
    if num_ranks() == 1:
        return resume_point(folder.last)
    path = by_first(lambda: (found := resume_point(folder.last)) and found[0])
    return None if path is None else (path, read_checkpoint(path))


def _trainer(
    config: TrainerConfig, device: torch.device, folder: RunFolder, callbacks: list[Callback]
) -> Trainer:
    """Return a trainer that asks nobody which process it is, and saves as we do.

    A batch may leave parts of a student without gradient, and another's batch not, hence DDP looks
    for them.
    """
    if config.precision == "16-mixed" and device.type == "cpu":
        raise ConfigError(
            "trainer.precision=16-mixed needs a CUDA device; on a CPU use 32 or bf16-mixed."
        )
    environment = Ranks()
    environment.set_global_rank(rank())  # else RANK of somebody's launcher silences the loggers
    for chatty in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        num_nodes=num_ranks(),
        strategy=DDPStrategy(find_unused_parameters=True) if num_ranks() > 1 else "auto",
        use_distributed_sampler=False,
        precision=_PRECISION[config.precision],
        deterministic=config.deterministic or None,
        max_steps=config.max_steps,
        gradient_clip_val=config.clip,
        accumulate_grad_batches=config.accumulate,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=min(config.log_every, config.max_steps),
        logger=_loggers(folder),
        callbacks=callbacks,
        plugins=[environment, WholeFiles()],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder.logs,
    )


def _loggers(folder: RunFolder) -> list[Any]:
    """One CSV a sitting (the logger starts its file anew), one TensorBoard folder a run."""
    sittings = len(list((folder.logs / "csv").glob("sitting_*")))
    return [
        CSVLogger(folder.logs, name="csv", version=f"sitting_{sittings}"),
        TensorBoardLogger(folder.logs, name="tensorboard", version=""),
    ]

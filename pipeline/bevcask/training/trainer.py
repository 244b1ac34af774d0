"""The Lightning trainer, set up for one run on one device."""

import logging
import signal
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from bevcask.config import TrainerConfig
from bevcask.data.join import TrainBatch
from bevcask.detectors.base import Batch
from bevcask.errors import ConfigError
from bevcask.training.callbacks import Bar, LastCheckpoint, LastStep, MovingAverage
from bevcask.training.loops import Pass, Steps
from bevcask.training.module import Distillation
from bevcask.training.record import RunFolder

_PRECISION: dict[str, Any] = {"32": "32-true", "16-mixed": "16-mixed", "bf16-mixed": "bf16-mixed"}


def build_trainer(
    config: TrainerConfig,
    device: torch.device,
    folder: RunFolder,
    validate: bool,
    callbacks: list[Callback],
) -> Trainer:
    """Return a trainer that logs, saves and validates as configured.

    Args:
        config: steps, precision and intervals.
        device: one device.
        folder: where logs and checkpoints go.
        validate: whether there are validation frames.
        callbacks: run before the checkpoints are written.

    Raises:
        ConfigError: float16 on a CPU.
    """
    if config.precision == "16-mixed" and device.type == "cpu":
        raise ConfigError(
            "trainer.precision=16-mixed needs a CUDA device; on a CPU use 32 or bf16-mixed."
        )
    for chatty in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=_PRECISION[config.precision],
        max_steps=config.max_steps,
        gradient_clip_val=config.clip,
        accumulate_grad_batches=config.accumulate,
        val_check_interval=(config.validate_every or config.max_steps) * config.accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if validate else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=min(config.log_every, config.max_steps),
        logger=_loggers(folder),
        callbacks=[
            *callbacks,
            *([MovingAverage(config.ema, device)] if config.ema else []),
            LastStep(),
            Bar(config.log_every),
            *_savers(config, folder, validate),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder.path,
    )


def _loggers(folder: RunFolder) -> list[Any]:
    """One CSV a sitting (the logger starts its file anew), one TensorBoard folder a run."""
    sittings = len(list((folder.logs / "csv").glob("sitting_*")))
    return [
        CSVLogger(folder.logs, name="csv", version=f"sitting_{sittings}"),
        TensorBoardLogger(folder.logs, name="tensorboard", version=""),
    ]


def _savers(config: TrainerConfig, folder: RunFolder, validate: bool) -> list[Callback]:
    """The best is noted before the last is written, which carries that note."""
    every = config.validate_every if validate else 0
    last = LastCheckpoint(folder.last, config.checkpoint_every, every)
    best = ModelCheckpoint(
        dirpath=folder.checkpoints,
        filename="best",
        monitor="val/NDS",
        mode="max",
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    return [best, last] if validate else [last]


def fit(
    trainer: Trainer,
    module: Distillation,
    steps: Steps[TrainBatch],
    validation: Pass[Batch] | None,
    last: Path,
) -> None:
    """Train to the end, from the last checkpoint if there is one, and write the last again.

    Raises:
        KeyboardInterrupt: the user stopped it; the same command goes on from the last checkpoint.
    """
    handler = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        # Lightning 2.6 asks torch 2.13 about its own pytrees in a way torch is giving up.
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec", FutureWarning)
        # A resumed run writes where the checkpoint it came from lies.
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        try:
            trainer.fit(
                module,
                train_dataloaders=steps,
                val_dataloaders=[] if validation is None else validation,
                ckpt_path=last if last.is_file() else None,
            )
        except SystemExit as error:  # how Lightning ends on Ctrl-C
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from error
    trainer.save_checkpoint(last)

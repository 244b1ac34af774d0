"""A teacher of somebody else's package that writes down when it is loaded, and takes its time."""

import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bevcask.detectors.base import Batch
from teachers.test_outside import Density

TYPE = "slow_teacher:Slow"


class Slow(Density):
    """Says what `Density` says."""

    class Config(Density.Config):
        log: str
        seconds: float = 0.0

    config: "Slow.Config"

    @classmethod
    def claims(cls, config: Any) -> dict[str, Any]:
        return Density.claims(config)

    def load(self, device: torch.device | str) -> None:
        if not vars(self).setdefault("loaded", False):
            self.loaded = True
            with Path(self.config.log).open("a") as log:
                log.write(f"{os.getpid()}\n")

    def __call__(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        time.sleep(self.config.seconds)
        return super().__call__(batch, names)

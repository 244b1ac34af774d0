"""Ways a training ends early, for tests that run it in this process."""

import os
import signal
from typing import Any

import pytest
import torch

from bevcask.training.module import Distillation


class Killed(BaseException):
    """What no code handles: as good as kill -9, seen from the disk."""


def at_step(
    patch: pytest.MonkeyPatch, step: int, number: signal.Signals | type[BaseException]
) -> None:
    """Make training get a signal in the middle of a step, or die there."""
    whole = Distillation.training_step
    sent = []

    def ended(self: Distillation, batch: Any, index: int) -> torch.Tensor:
        if self.global_step == step:
            if not isinstance(number, signal.Signals):
                raise number
            if not sent:  # a step may take several batches
                sent.append(number)
                os.kill(os.getpid(), number)
        return whole(self, batch, index)

    patch.setattr(Distillation, "training_step", ended)

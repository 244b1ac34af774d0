"""What layers begin as, where torch's own numbers are not those of the releases."""

import math

from torch import nn

_PRIOR = 0.01


def start_linear(*layers: nn.Linear | nn.Conv2d) -> None:
    """Fill weights with Xavier's uniform numbers, and biases with 0."""
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)


def start_weights(*layers: nn.Linear) -> None:
    """Fill weights with Xavier's uniform numbers; biases stay as torch's."""
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)


def start_improbable(*layers: nn.Linear | nn.Conv2d) -> None:
    """Let logits begin with a probability of 0.01 (Lin et al. 2017)."""
    for layer in layers:
        assert layer.bias is not None
        nn.init.constant_(layer.bias, -math.log(1 / _PRIOR - 1))

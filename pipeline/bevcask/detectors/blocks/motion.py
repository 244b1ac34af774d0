"""Codes of places, ages and motion, and the norm that they modulate (StreamPETR, RayDN)."""

import math

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.transformer import start_linear_as

OCTAVES = 6
MOTION_SIZE = 15  # velocity 2, age 1, three rows of a pose


def sine_code(place: Tensor, size: int) -> Tensor:
    """Return sines and cosines in turn, (..., size), of numbers (...); wave lengths 1 to 10000."""
    wave = 10000 ** (2 * torch.arange(size // 2, dtype=torch.float32, device=place.device) / size)
    angle = (2 * math.pi * place)[..., None] / wave
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def place_code(place: Tensor, size: int) -> Tensor:
    """Return the codes of y, x and z, (..., 3 * size), of places (..., 3); these 0 to 1."""
    return sine_code(place[..., [1, 0, 2]], size).flatten(-2)


def octaves(motion: Tensor) -> Tensor:
    """Return sines then cosines of 1, 2, 4 ... times every number, frequencies slowest."""
    waves = [own for n in range(OCTAVES) for own in ((2**n * motion).sin(), (2**n * motion).cos())]
    return torch.cat(waves, dim=-1)


class ModulatedNorm(nn.Module):
    """Scale and shift what comes, normalised or as it is, as a code says.

    Args:
        channels: of what comes.
        code_size: numbers of a code.
        normalise: by mean and deviation over the channels first.
    """

    def __init__(self, channels: int, code_size: int, normalise: bool = True) -> None:
        super().__init__()
        self.normalise = normalise
        self.reduce = nn.Linear(code_size, channels)
        self.gamma = nn.Linear(channels, channels)
        self.beta = nn.Linear(channels, channels)
        start_linear_as(self.gamma, 1.0)
        start_linear_as(self.beta, 0.0)

    def forward(self, given: Tensor, code: Tensor) -> Tensor:
        """Return (..., C) of (..., C) and codes (..., K) whose leading sizes broadcast."""
        hidden = torch.relu(self.reduce(code))
        if self.normalise:
            given = nn.functional.layer_norm(given, given.shape[-1:])
        return self.gamma(hidden) * given + self.beta(hidden)  # type: ignore[no-any-return]

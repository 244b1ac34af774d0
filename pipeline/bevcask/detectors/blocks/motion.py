"""Places, times and motion as a network reads them (StreamPETR)."""

import math

import torch
from torch import Tensor, nn

OCTAVES = (1, 2, 4, 8, 16, 32)
MOTION = 15  # velocity 2, age 1, relative pose 12


def sines(values: Tensor, width: int) -> Tensor:
    """Return (..., width): sine and cosine, in turn, of 2 pi values at falling frequencies.

    Computed in the precision of the values, then float32: ages are float64.
    """
    step = torch.arange(width // 2, device=values.device, dtype=values.dtype)
    angle = values[..., None] * (2 * math.pi) / 10000 ** (2 * step / width)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2).float()


def place_code(places_BQ3: Tensor, width: int) -> Tensor:
    """Return (B, Q, 3 width) of places, 0 to 1 over the range; order y, x, z as in DETR."""
    return torch.cat([sines(places_BQ3[..., axis], width) for axis in (1, 0, 2)], dim=-1)


def octave_code(values_BQE: Tensor) -> Tensor:
    """Return (B, Q, 12 E): per octave the sines of all values, then their cosines."""
    turns = [values_BQE * octave for octave in OCTAVES]
    return torch.cat([part for own in turns for part in (own.sin(), own.cos())], dim=-1)


def motion_code(velocity_BQ2: Tensor, age_BQ1: Tensor, pose_BQ44: Tensor) -> Tensor:
    """Return (B, Q, 180) of what moved since: velocity, age in seconds, pose to this frame."""
    pose_BQE = pose_BQ44[..., :3, :].flatten(-2)
    parts = [velocity_BQ2.float(), age_BQ1.float(), pose_BQE.float()]
    return octave_code(torch.cat(parts, dim=-1))


class Modulation(nn.Module):
    """Scale and shift features by what a code says of them; a layer norm before, or none.

    Starts as the layer norm alone.

    Args:
        code: numbers of the code.
        channels: of the features.
        norm: normalise first, without weights.
    """

    def __init__(self, code: int, channels: int, norm: bool = True) -> None:
        super().__init__()
        self.reduce = nn.Linear(code, channels)
        self.gamma = nn.Linear(channels, channels)
        self.beta = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels, elementwise_affine=False) if norm else nn.Identity()
        for layer in (self.gamma, self.beta):
            nn.init.zeros_(layer.weight)
        nn.init.ones_(self.gamma.bias)
        nn.init.zeros_(self.beta.bias)

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """Return features (..., C) under a code (..., E) that broadcasts over them."""
        read = torch.relu(self.reduce(code))
        modulated: Tensor = self.gamma(read) * self.norm(features) + self.beta(read)
        return modulated

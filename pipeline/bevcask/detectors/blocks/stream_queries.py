"""Queries of a frame from learned places and a queue of remembered ones (StreamPETR)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.memory_queue import Rows
from bevcask.detectors.blocks.motion import (
    MOTION,
    OCTAVES,
    Modulation,
    motion_code,
    place_code,
    sines,
)


class Asked(NamedTuple):
    """What a decoder starts from.

    Attributes:
        contents_BQC: denoising rows, learned ones, those that memory propagates.
        positions_BQC: added to queries and keys.
        references_BQ3: 0 to 1 over the range; those of memory may leave it.
        older_contents_BMC: the other rows of memory, that are only attended to.
        older_positions_BMC: their positions.
    """

    contents_BQC: Tensor
    positions_BQC: Tensor
    references_BQ3: Tensor
    older_contents_BMC: Tensor
    older_positions_BMC: Tensor


class StreamQueries(nn.Module):
    """Place, age and motion to contents and positions.

    Args:
        channels: of the queries.
        queries: learned ones.
        propagated: newest rows of memory, which are queries too.
        low: (x, y, z) of the range of centres, metres.
        high: its other corner.
    """

    starts_P3: Tensor
    low_3: Tensor
    high_3: Tensor

    def __init__(
        self,
        channels: int,
        queries: int,
        propagated: int,
        low: tuple[float, float, float],
        high: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.channels, self.propagated = channels, propagated
        self.references = nn.Parameter(torch.rand(queries, 3))
        self.register_buffer("starts_P3", torch.rand(propagated, 3))  # of a new scene
        self.register_buffer("low_3", torch.tensor(low), persistent=False)
        self.register_buffer("high_3", torch.tensor(high), persistent=False)
        self.position = nn.Sequential(
            nn.Linear(channels // 2 * 3, channels), nn.ReLU(), nn.Linear(channels, channels)
        )
        self.time = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels))
        width = 2 * len(OCTAVES) * MOTION
        self.content_motion = Modulation(width, channels)
        self.position_motion = Modulation(width, channels)

    def metres(self, share: Tensor) -> Tensor:
        """Return places (..., 3) of shares of the range."""
        return share * (self.high_3 - self.low_3) + self.low_3

    def share(self, metres: Tensor) -> Tensor:
        """Return shares of the range of places (..., 3)."""
        return (metres - self.low_3) / (self.high_3 - self.low_3)

    def forward(self, rows: Rows, noisy_BN3: Tensor) -> Asked:
        """Return what the decoder starts from.

        Args:
            rows: of memory, as this frame sees them.
            noisy_BN3: references of denoising rows, 0 to 1; none outside training.
        """
        samples, first = len(noisy_BN3), self.propagated
        own_BQ3 = torch.cat([noisy_BN3, self.references.expand(samples, -1, -1)], dim=1)
        eye_44 = torch.eye(4, device=own_BQ3.device)
        nothing_BQ1 = torch.zeros_like(own_BQ3[..., :1])
        still = motion_code(
            nothing_BQ1.expand(-1, -1, 2), nothing_BQ1, eye_44.expand(*own_BQ3.shape[:2], 4, 4)
        )
        blank_BQC = own_BQ3.new_zeros((*own_BQ3.shape[:2], self.channels))
        contents, positions = self._read(blank_BQC, own_BQ3, nothing_BQ1, still)
        moved = motion_code(rows.velocities_BM2, rows.ages_BM1, rows.poses_BM44)
        held_BM3 = self.share(rows.places_BM3).float()
        old_contents, old_positions = self._read(rows.states_BMC, held_BM3, rows.ages_BM1, moved)
        return Asked(
            torch.cat([contents, old_contents[:, :first]], dim=1),
            torch.cat([positions, old_positions[:, :first]], dim=1),
            torch.cat([own_BQ3, held_BM3[:, :first]], dim=1),
            old_contents[:, first:],
            old_positions[:, first:],
        )

    def _read(
        self, states_BQC: Tensor, places_BQ3: Tensor, ages_BQ1: Tensor, motion_BQE: Tensor
    ) -> tuple[Tensor, Tensor]:
        content = self.content_motion(states_BQC, motion_BQE)
        where = self.position(place_code(places_BQ3, self.channels // 2))
        when = self.time(sines(ages_BQ1[..., 0], self.channels))
        return content, self.position_motion(where, motion_BQE) + when

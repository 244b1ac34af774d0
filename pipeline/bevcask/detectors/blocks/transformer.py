"""What transformer layers of several detectors share."""

import torch
from torch import Tensor, nn

from bevcask.detectors.blocks.starts import start_weights

_EPS = 1e-5


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them, and the input added."""

    def __init__(self, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(channels, width)
        self.outer = nn.Linear(width, channels)
        self.dropout = nn.Dropout(dropout)
        start_weights(self.inner, self.outer)

    def forward(self, query_BQC: Tensor) -> Tensor:
        hidden = self.dropout(torch.relu(self.inner(query_BQC)))
        added_BQC: Tensor = query_BQC + self.dropout(self.outer(hidden))
        return added_BQC


def inverse_sigmoid(share: Tensor) -> Tensor:
    """Return the logit of numbers that are first brought into [0, 1]; at most log(1e5) in size."""
    share = share.clamp(0, 1)
    return (share.clamp(min=_EPS) / (1 - share).clamp(min=_EPS)).log()

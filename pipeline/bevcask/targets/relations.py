"""How alike vectors are, pair by pair: computed where a loss reads them, never stored.

N vectors take N numbers a channel, their relations N squared; and relations of what is read at the
same places are the same in both frames. A method reads its own map where the places went
(`Align.cells`, `Align.boxes`), the target where they are, and compares the two matrices.
"""

import torch
from torch import Tensor

from bevcask.targets.target import full_precision


def cosine_relations(vectors_BNC: Tensor, known_BN: Tensor | None = None) -> Tensor:
    """Return the cosine of the angle between every two vectors of a sample.

    Args:
        vectors_BNC: float; differentiable, also at zero, whose cosines are 0.
        known_BN: bool, vectors that count: valid cells, rows before a count. None for all.

    Returns:
        (B, N, N), float32 at least; 0 where either vector does not count.
    """
    exact_BNC = full_precision(vectors_BNC)
    square_BN1 = exact_BNC.square().sum(-1, keepdim=True)
    counts_BN1 = square_BN1 > 0 if known_BN is None else known_BN[..., None] & (square_BN1 > 0)
    length_BN1 = torch.where(counts_BN1, square_BN1, 1.0).sqrt()
    unit_BNC = torch.where(counts_BN1, exact_BNC / length_BN1, 0.0)
    return unit_BNC @ unit_BNC.transpose(1, 2)

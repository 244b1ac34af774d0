"""What a batch holds in numbers that differ: laid end to end, parted again, drawn into maps.

A device never waits to learn how many there are, but in `kept`.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor


def sample_of_box(boxes: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the sample of each box once the boxes of a batch are laid end to end, int64 (N,)."""
    counts_B = torch.tensor([len(own) for own in boxes])
    return torch.repeat_interleave(counts_B).to(device, non_blocking=True)


def kept(keep_N: Tensor, *lists: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
    """Return of each list the rows that are kept, in order.

    The host waits for the device once, however many samples and lists there are.

    Args:
        keep_N: bool, a row each, laid end to end.
        lists: per sample (N, ...), as many rows in each.
    """
    keep = keep_N.cpu().numpy()
    index_M = torch.from_numpy(np.flatnonzero(keep)).to(keep_N.device, non_blocking=True)
    ends = np.cumsum([len(own) for own in lists[0]])
    counts = [int(own.sum()) for own in np.split(keep, ends[:-1])]
    return tuple(list(torch.split(torch.cat(list(own))[index_M], counts)) for own in lists)


def scattered(
    value_NM: Tensor,
    flat_NM: Tensor,
    keep_NM: Tensor,
    num_cells: int,
    reduce: Literal["amax", "amin"],
    empty: int = 0,
) -> Tensor:
    """Return cells (num_cells,) that hold the largest or smallest of `empty` and the values there.

    Args:
        value_NM: what is drawn.
        flat_NM: int64, the cell of each; of those that are not kept, anything.
        keep_NM: bool, which count.
        num_cells: how many there are.
        reduce: which of several stays.
        empty: what a cell holds where nothing is drawn.
    """
    cells_P = value_NM.new_full((num_cells + 1,), empty)  # the last takes what is not kept
    index_M = flat_NM.where(keep_NM, num_cells).flatten()
    return cells_P.scatter_reduce(0, index_M, value_NM.flatten(), reduce)[:-1]

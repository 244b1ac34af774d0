"""Lists of a batch, one tensor a sample, laid end to end and parted again."""

from collections.abc import Sequence

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

"""Circle non-maximum suppression: a better box silences those whose centre is near."""

import torch
from torch import Tensor


def circle_nms(xy_N2: Tensor, radius: float) -> Tensor:
    """Greedy suppression by centre distance, blind to class.

    A box falls if a kept, better one lies at most `radius` away. The answer is the fixed point of
    "kept = no kept better box is near", reached from all-kept in as many rounds as the longest
    chain of suppressions; it is the greedy answer and needs no loop over boxes.

    Args:
        xy_N2: float (N, 2) centres, metres, best first.
        radius: metres. Released code compares its list with squared distances; ours is the root.

    Returns:
        bool (N,), True for boxes that stay.
    """
    delta_NN2 = xy_N2[:, None] - xy_N2[None]
    near_NN = (delta_NN2.square().sum(-1) <= radius**2).triu(diagonal=1)
    keep_N = torch.ones(len(xy_N2), dtype=torch.bool, device=xy_N2.device)
    while True:
        new_N = ~(near_NN & keep_N[:, None]).any(dim=0)
        if torch.equal(new_N, keep_N):
            return keep_N
        keep_N = new_N

"""The names of a published CenterHead (mmdet3d and what builds on it), and how its layout differs.

Its batch norms add 1e-5 where ours add `NORM_EPS`: running variances are shifted by the difference,
so that both compute the same. mmdet3d before 1.0 had boxes of (w, l, h) whose yaw is -yaw - pi/2 of
ours: channels of sizes and headings trade places, headings change sign.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from bevcask.detectors.blocks.second import NORM_EPS

_HEAD = "pts_bbox_head."
_EPS = 1e-5
_NAMES: tuple[tuple[str, str], ...] = (
    (r"head\.shared\.0\.0\.", f"{_HEAD}shared_conv.conv."),
    (r"head\.shared\.0\.1\.", f"{_HEAD}shared_conv.bn."),
    (r"head\.tasks\.(\d+)\.(\w+)\.(\d+)\.0\.", rf"{_HEAD}task_heads.\1.\2.\3.conv."),
    (r"head\.tasks\.(\d+)\.(\w+)\.(\d+)\.1\.", rf"{_HEAD}task_heads.\1.\2.\3.bn."),
    (r"head\.tasks\.", f"{_HEAD}task_heads."),
)
_LAST = re.compile(r"head\.tasks\.\d+\.(dim|rot)\.\d+\.(weight|bias)")


def renamed(name: str, names: tuple[tuple[str, str], ...] = ()) -> str:
    """Return what a tensor is called in published files, by the head's table and further rows.

    Args:
        name: ours.
        names: beginnings (regular expressions) and what stands for them there.
    """
    for pattern, replacement in (*names, *_NAMES):
        found, count = re.subn(rf"^{pattern}", replacement, name)
        if count:
            return found
    return name


def head_tensor(name: str, tensor: Tensor, old_boxes: bool, inward: bool) -> Tensor:
    """Return a tensor of the head in our layout, or in the published one.

    Args:
        name: ours; tensors elsewhere are returned as they are.
        tensor: float32 or wider.
        old_boxes: of mmdet3d before 1.0.
        inward: from a published file.
    """
    if name.startswith("head.") and name.endswith("running_var"):
        return tensor + (_EPS - NORM_EPS if inward else NORM_EPS - _EPS)
    last = _LAST.fullmatch(name)
    if not (last and old_boxes):
        return tensor
    return tensor[[1, 0, 2]] if last[1] == "dim" else -tensor[[1, 0]]


def with_counters(
    given: Mapping[str, Tensor], places: Mapping[str, str], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of a file, and own step counters of batch norms where it has none."""
    counters = {n: own[at] for n, at in places.items() if n.endswith("num_batches_tracked")}
    return counters | dict(given)

"""A teacher says otherwise: is that its own noise, another device, or damage?

Arithmetic differs everywhere and a little. Damage, or another frame, differs in a few places or by
a lot.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Verdict = Literal["agrees", "noise", "elsewhere", "damage"]
ORDER: tuple[Verdict, ...] = ("agrees", "noise", "elsewhere", "damage")

_NOISES = 4.0  # a gap may be so many times what two answers here differ by
_SPREAD = 1e-3  # of the values beyond the bound, where arithmetic was another
_TAIL = 20.0  # the largest gap, in gaps that one value in a thousand has
_FAR = 0.03  # of the norm: more than half precision changes
_BOXES_MOVED = 0.1  # of the boxes beyond the bound, where arithmetic was another
_BOXES_FOUND = 0.8  # of the boxes that have a partner
_PARTNER = 164.0  # units: a hundredth of a column's peak


@dataclass(frozen=True)
class Gap:
    """How far what is stored is from what the teacher says.

    Attributes:
        units: of each value, in what codec and arithmetic may change; above 1 is beyond it.
        relative: norm of the gap, as a share of the norm of what the teacher says.
    """

    units: Tensor
    relative: float

    @property
    def largest(self) -> float:
        """The largest gap."""
        return float(self.units.max()) if self.units.numel() else 0.0


def judge(gap: Gap, noise: float) -> Verdict:
    """Return what explains a gap between two maps or sets of rows.

    Args:
        gap: of values that either side stores.
        noise: the largest gap of two answers here, in the same units.
    """
    if gap.largest <= 1:
        return "agrees"
    if gap.largest <= _NOISES * noise:
        return "noise"
    beyond = float((gap.units > 1).float().mean())
    ranked = gap.units.flatten().sort().values
    common = float(ranked[int((1 - _SPREAD) * (len(ranked) - 1))])
    everywhere = beyond >= _SPREAD and gap.largest <= _TAIL * common
    return "elsewhere" if everywhere and gap.relative <= _FAR else "damage"


def judge_boxes(gap: Gap, noise: float, maps: Verdict) -> Verdict:
    """Return what explains that boxes are far from the nearest one of the other side.

    Args:
        gap: of each box of either side.
        noise: the largest gap of two answers here.
        maps: what was found of the maps of the frame, which boxes are made of: a little there may
            be other boxes here.
    """
    if gap.largest <= 1:
        return "agrees"
    if gap.largest <= _NOISES * noise:
        return "noise"
    if maps in ("noise", "elsewhere"):
        return maps
    moved = float((gap.units > 1).float().mean())
    found = float((gap.units <= _PARTNER).float().mean())
    return "elsewhere" if moved >= _BOXES_MOVED and found >= _BOXES_FOUND else "damage"


def worse(one: Verdict, other: Verdict) -> Verdict:
    """Return the worse of two."""
    return max(one, other, key=ORDER.index)


def norm_share(off: Tensor, exact: Tensor) -> float:
    """Return the norm of a gap as a share of the norm of what was said; infinite for nothing."""
    size = float(exact.double().norm())
    gap = float(torch.nan_to_num(off.double(), nan=float("inf")).norm())
    return gap / size if size else (0.0 if gap == 0 else float("inf"))

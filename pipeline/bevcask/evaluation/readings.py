"""Several readings of the same numbers: which fits ground truth, and is that more than chance?"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from bevcask.geometry import CLASSES

Floats = npt.NDArray[np.float64]
Verdict = Literal["ok", "wrong", "undecided"]
DECLARED = "as declared"
MARGIN = 0.05  # of the declared score: what a better reading must gain

_WORSE = "what is declared fits worse, and ground truth does not tell the others apart"
_ADVICE = "check the teacher's weights and what it is shown"
_MEASURES: dict[str, tuple[str, Callable[[float], float]]] = {
    "axes": ("energy in true boxes is {:.2f} deviations above the rest, {:.2f}", operator.neg),
    "place": ("the nearest box is {:.2f} m from a true one, {:.2f} m", float),
    "classes": ("{:.0%} of the boxes have the true class, {:.0%}", operator.neg),
    "size": ("sizes overlap with the true ones by {:.0%}, {:.0%}", lambda off: 1 - off),
    "z": ("heights are {:.2f} m off, {:.2f} m", float),
    "yaw": ("boxes are turned by {:.0f} degrees, {:.0f}", math.degrees),
    "heading": ("fronts are turned by {:.0f} degrees, {:.0f}", math.degrees),
    "velocity": ("the cosine to true velocities is {:.2f}, {:.2f}", lambda off: 1 - off),
}
"""What is read -> its error and what would do, in words; how a score becomes such a number."""

_ENOUGH = 10  # boxes
_CLEAR = 4.0  # standard errors of a mean difference, box by box


@dataclass(frozen=True)
class Finding:
    """What was found of one thing that a manifest says.

    Attributes:
        target: of the cache.
        what: axes, grid, shift, classes or values of a map; place, classes, size, z, yaw, heading,
            velocity or speed of boxes.
        verdict: `ok`: as declared, all others are clearly worse; `wrong`: another one is clearly
            better; `undecided`: ground truth does not tell.
        best: the reading that fits best; those that cannot be told from it follow.
        declared_score: mean over boxes, lower is better.
        best_score: the same of the best reading.
        boxes: how many were looked at.
        note: why it is undecided.
        meant: the best reading of what is wrong as plain data; None otherwise. Of axes, place and
            velocity the matrix: what is stored lies there, seen from what is true (x, y); of grid
            `cell` and `centre` in metres; of shift cells (x, y); of classes the channel of each
            class; of values what they are; of size the stored column of l, w and h; of z the share
            of the height to add; of yaw and heading a sign and degrees to add; of speed a factor.
    """

    target: str
    what: str
    verdict: Verdict
    best: tuple[str, ...]
    declared_score: float | None
    best_score: float | None
    boxes: int
    note: str = ""
    meant: Any = None

    @property
    def suspicious(self) -> bool:
        """Whether what is declared surely fits worse, and which other reading is right is open."""
        return self.note == _WORSE


def undecided(target: str, what: str, note: str, boxes: int = 0) -> Finding:
    """Return that something was not judged."""
    return Finding(target, what, "undecided", (), None, None, boxes, note)


def named(finding: Finding, meant: Mapping[str, Any]) -> Finding:
    """Return a finding with what its best reading is, by name, where that is not the declared."""
    return replace(finding, meant=meant[finding.best[0]]) if finding.verdict == "wrong" else finding


def decide(
    target: str,
    what: str,
    errors: Mapping[str, Floats],
    believable: float = math.inf,
    margin: float = MARGIN,
    graded: bool = False,
) -> Finding:
    """Choose between readings, box by box.

    Args:
        target: of the cache.
        what: is read.
        errors: reading -> (N,) error of each box, lower is better; `DECLARED` is one of them.
        believable: mean error of a reading that fits at all; where even the best is above it, the
            teacher does not know.
        margin: share of the size of the declared score that another must gain to be believed.
        graded: readings lie in a row, so that neighbours of the right one fit nearly as well; of
            others, several that fit alike leave the verdict open.
    """
    declared = errors[DECLARED]
    number = len(declared)
    if number < _ENOUGH:
        return undecided(target, what, f"{number} boxes to judge by, {_ENOUGH} needed", number)
    means = {name: float(own.mean()) for name, own in errors.items()}
    best = min(means, key=lambda name: means[name])
    close = [name for name in sorted(means, key=lambda name: means[name]) if name != best]
    close = [name for name in close if not _clearly_worse(errors[name], errors[best])]
    gained = means[DECLARED] - means[best] >= margin * abs(means[DECLARED])
    verdict: Verdict = "undecided"
    note = "ground truth does not tell these apart"
    if means[best] > believable:
        note = _misfit(what, means[best], believable)
    elif best == DECLARED and not close:
        verdict = "ok"
    elif best != DECLARED and DECLARED not in close and gained:
        if close and not graded:
            note = _WORSE
        else:
            verdict = "wrong"
    note = note if verdict == "undecided" else ""
    names = (best, *close)
    return Finding(target, what, verdict, names, means[DECLARED], means[best], number, note)


def _misfit(what: str, score: float, believable: float) -> str:
    words, measure = _MEASURES.get(what, ("the error is {:.3g}, {:.3g}", float))
    told = words.format(measure(score) + 0.0, measure(believable))
    return f"no reading fits: at best {told} would do; {_ADVICE}"


def _clearly_worse(one: Floats, other: Floats) -> bool:
    difference = one - other
    spread = float(difference.std()) / math.sqrt(len(difference))
    return float(difference.mean()) > _CLEAR * spread + 1e-12


def class_order(
    target: str,
    said_NK: Floats,
    classes_N: npt.NDArray[np.int64],
    believable: float = math.inf,
) -> tuple[Finding, npt.NDArray[np.int64]]:
    """Find which channel, or label, stands for which class.

    Args:
        target: of the cache.
        said_NK: how much of each channel is said at each box.
        classes_N: class of each box.
        believable: see `decide`.

    Returns:
        The finding, and int64 (K,): channel of each class that fits best.
    """
    number = len(CLASSES)
    own = np.arange(number)
    orders = {DECLARED: own}
    orders |= {f"class order rotated by {n}": (own + n) % number for n in range(1, number)}
    errors = {name: -_picked(said_NK, order[classes_N]) for name, order in orders.items()}
    if len(classes_N) >= _ENOUGH:
        total_KK = np.stack([said_NK[classes_N == k].sum(0) for k in range(number)])
        total_KK += 1e-9 * np.eye(number)  # classes without boxes stay where they are
        assigned = linear_sum_assignment(-total_KK)[1]
        error = -_picked(said_NK, assigned[classes_N])
        known = min(errors.values(), key=lambda one: float(one.mean()))
        gain = float((known - error).mean())
        if gain > MARGIN * abs(float(known.mean())) and _clearly_worse(known, error):
            name = _exchanges(assigned)
            orders[name], errors[name] = assigned, error
    finding = decide(target, "classes", errors, believable)
    believed = orders[finding.best[0] if finding.verdict == "wrong" else DECLARED]
    return named(finding, {name: order.tolist() for name, order in orders.items()}), believed


def _picked(said_NK: Floats, channel_N: npt.NDArray[np.int64]) -> Floats:
    picked: Floats = said_NK[np.arange(len(said_NK)), channel_N]
    return picked


def _exchanges(assigned: npt.NDArray[np.int64]) -> str:
    moved = [f"{CLASSES[k]} is {CLASSES[to]}" for k, to in enumerate(assigned) if k != to]
    return "classes exchanged: " + ", ".join(moved)


SYMMETRIES: dict[str, Floats] = {
    name: np.array(rows, np.float64)
    for name, rows in {
        DECLARED: [[1, 0], [0, 1]],
        "mirrored x": [[-1, 0], [0, 1]],
        "mirrored y": [[1, 0], [0, -1]],
        "turned by 180 degrees": [[-1, 0], [0, -1]],
        "x and y swapped": [[0, 1], [1, 0]],
        "x and y swapped, both mirrored": [[0, -1], [-1, 0]],
        "turned by 90 degrees": [[0, -1], [1, 0]],
        "turned by -90 degrees": [[0, 1], [-1, 0]],
    }.items()
}
"""How what is stored lies, seen from what is true: (x, y) -> matrix (x, y)."""


def matrices() -> dict[str, Any]:
    """Return `SYMMETRIES` as plain data."""
    return {name: matrix.astype(int).tolist() for name, matrix in SYMMETRIES.items()}

"""Boxes that a detector missed, and boxes that are none: what frames are ordered by.

As the official metrics match: within a class, best scores first, by the distance of centres in the
ground plane. Boxes that no sensor saw are neither found nor missed.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]
DISTANCE = 2.0  # metres


def match(
    truth_N9: Floats, classes_N: npt.NDArray[np.int64], seen_N: Flags, said_M11: Floats
) -> tuple[Flags, Flags]:
    """Match boxes of a frame.

    Args:
        truth_N9: ground truth, `geometry.BOX_FIELDS`, metres.
        classes_N: of it.
        seen_N: what some sensor saw of it.
        said_M11: nine box fields, score, class; best first.

    Returns:
        Which true boxes are found, (N,); which said ones are false alarms, (M,): those that match
        no true box, seen or not.
    """
    found_N = np.zeros(len(truth_N9), bool)
    alarm_M = np.ones(len(said_M11), bool)
    gap_MN = np.linalg.norm(said_M11[:, None, :2] - truth_N9[None, :, :2], axis=-1)
    gap_MN[said_M11[:, 10].astype(np.int64)[:, None] != classes_N[None]] = np.inf
    for m in range(len(said_M11)):
        left_N = np.where(found_N, np.inf, gap_MN[m])
        if len(left_N) and left_N.min() < DISTANCE:
            found_N[left_N.argmin()] = True
            alarm_M[m] = False
    return found_N | ~seen_N, alarm_M

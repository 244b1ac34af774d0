"""Boxes in images: what a camera sees of 3D boxes, as the devkit and StreamPETR's release do it."""

from typing import NamedTuple

import torch
from torch import Tensor

# The release numbers classes in images otherwise: car, truck, trailer, bus, construction vehicle,
# bicycle, motorcycle, pedestrian, traffic cone, barrier.
IMAGE_CHANNEL = (0, 1, 4, 3, 2, 9, 6, 5, 7, 8)
"""Channel of the head of each of `geometry.CLASSES`."""


class ImageBoxes(NamedTuple):
    """Boxes of one camera, network pixels.

    Attributes:
        corners_N4: left, top, right, bottom.
        centres_N2: (u, v) of the 3D centre; may lie outside the corners.
        classes_N: int64, index into `geometry.CLASSES`.
    """

    corners_N4: Tensor
    centres_N2: Tensor
    classes_N: Tensor


def channels_of(classes_N: Tensor) -> Tensor:
    """Return the channels of a head in the images that classes have."""
    return torch.tensor(IMAGE_CHANNEL, device=classes_N.device)[classes_N]

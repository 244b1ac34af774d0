"""Virtual points as a 2D detector might have led to: random points inside ground-truth boxes."""

from pathlib import Path

import numpy as np

from bevcask.data.index.frames import Frames
from bevcask.geometry import CLASSES

PER_BOX = 20


def write_virtual(folder: Path, frames: Frames, seed: int = 0) -> Path:
    """Write one file a frame; return the folder."""
    folder.mkdir(exist_ok=True)
    for number, token in enumerate(frames.tokens):
        np.save(folder / f"{token}.npy", virtual_points(frames, token, seed + number))
    return folder


def virtual_points(frames: Frames, token: str, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    boxes, classes, _ = frames.labels(token)
    owner = np.repeat(np.arange(len(boxes)), PER_BOX)
    offset = (random.random((len(owner), 3)) - 0.5) * boxes[owner, 3:6]
    cosine, sine = np.cos(boxes[owner, 6]), np.sin(boxes[owner, 6])
    points = np.zeros((len(owner), 17), np.float32)
    points[:, 0] = boxes[owner, 0] + cosine * offset[:, 0] - sine * offset[:, 1]
    points[:, 1] = boxes[owner, 1] + sine * offset[:, 0] + cosine * offset[:, 1]
    points[:, 2] = boxes[owner, 2] + offset[:, 2]
    points[np.arange(len(owner)), 5 + classes[owner]] = 1
    points[:, 15] = random.random(len(boxes))[owner]
    points[:, 16] = 1
    assert len(CLASSES) == 10
    return points

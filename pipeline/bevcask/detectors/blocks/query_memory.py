"""What queries of earlier frames leave behind: a queue of rows a lane (StreamPETR).

Rows are kept in the global frame, float32 as published, and read in the frame's own. Rows that
never held a query are read too: embedding 0, a pose of zeros, and the ego's place when the lane
began.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bevcask.detectors.base import Memory


class Frame(NamedTuple):
    """Where cameras and ego are; cameras in the published order. Float32, but for the time.

    Attributes:
        lidar_to_image_BV44: augmented LIDAR_TOP -> network pixels times depth.
        intrinsics_BV44: of the network image.
        extrinsics_BV44: canonical LIDAR_TOP -> camera.
        to_global_B44: augmented LIDAR_TOP -> global.
        from_global_B44: its inverse, rounded by itself.
        seconds_B: float64.
    """

    lidar_to_image_BV44: Tensor
    intrinsics_BV44: Tensor
    extrinsics_BV44: Tensor
    to_global_B44: Tensor
    from_global_B44: Tensor
    seconds_B: Tensor


class Rows(NamedTuple):
    """Rows as a frame sees them.

    Attributes:
        embedding_BMC: decoder states.
        reference_BM3: metres.
        time_BM1: float64, age in seconds; as kept minus the time of the frame.
        pose_BM44: from the LIDAR_TOP of the row's frame to this one.
        velocity_BM2: m/s, in the frame that said it.
    """

    embedding_BMC: Tensor
    reference_BM3: Tensor
    time_BM1: Tensor
    pose_BM44: Tensor
    velocity_BM2: Tensor

    def memory(self) -> Memory:
        return {name.rpartition("_")[0]: own for name, own in self._asdict().items()}


def recall(
    memory: Memory | None, known_B: Tensor | None, frame: Frame, start_BP3: Tensor, empty: Rows
) -> Rows:
    """Return the rows in a frame; of lanes that begin anew, the first are places to start from.

    Args:
        memory: what `remember` said of the frame before.
        known_B: bool, lanes that go on; None without memory.
        frame: the frame that looks back.
        start_BP3: places, metres, of the first P rows of a lane that begins.
        empty: rows of zeros, as many as are read.
    """
    first = _begun(empty, start_BP3)
    if memory is None or known_B is None:
        return first
    num_rows = empty.embedding_BMC.shape[1]
    kept = Rows(*(memory[name][:, :num_rows] for name in empty.memory()))
    moved = _moved(kept, frame.from_global_B44, frame.seconds_B)
    return Rows(
        *(
            torch.where(known_B.view(-1, *[1] * (own.ndim - 1)), own, anew)
            for own, anew in zip(moved, first, strict=True)
        )
    )


def remember(rows: Rows, new: Rows, frame: Frame) -> Memory:
    """Return what is kept: new rows before old ones, in the global frame, without gradient."""
    joined = Rows(*(torch.cat(pair, dim=1).detach() for pair in zip(new, rows, strict=True)))
    return _moved(joined, frame.to_global_B44, -frame.seconds_B).memory()


def empty_rows(num_samples: int, num_rows: int, channels: int, like: Tensor) -> Rows:
    """Return rows of zeros."""
    size = (num_samples, num_rows)
    return Rows(
        like.new_zeros((*size, channels)),
        like.new_zeros((*size, 3)),
        like.new_zeros((*size, 1), dtype=torch.float64),
        like.new_zeros((*size, 4, 4)),
        like.new_zeros((*size, 2)),
    )


def _moved(rows: Rows, matrix_B44: Tensor, seconds_B: Tensor) -> Rows:
    reference = torch.cat([rows.reference_BM3, torch.ones_like(rows.reference_BM3[..., :1])], -1)
    return rows._replace(
        reference_BM3=(matrix_B44[:, None] @ reference[..., None])[..., :3, 0],
        time_BM1=rows.time_BM1 + seconds_B[:, None, None],
        pose_BM44=matrix_B44[:, None] @ rows.pose_BM44,
    )


def _begun(empty: Rows, start_BP3: Tensor) -> Rows:
    num_first = start_BP3.shape[1]
    rest = empty.reference_BM3[:, num_first:]
    pose = empty.pose_BM44.clone()
    pose[:, :num_first] = torch.eye(4, dtype=pose.dtype, device=pose.device)
    return empty._replace(reference_BM3=torch.cat([start_BP3, rest], dim=1), pose_BM44=pose)

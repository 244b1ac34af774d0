"""The queue of objects that StreamPETR and RayDN remember, newest first, as plain tensors.

Kept in the global frame: places in metres, poses of the frames that wrote the rows, and minus the
time of writing, so that adding the time of a later frame gives an age.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bevcask.detectors.base import Memory


class Poses(NamedTuple):
    """Where augmented LIDAR_TOP of the frame is, and when.

    Attributes:
        to_global_B44: float32 as released, or float64.
        from_global_B44: its inverse.
        seconds_B: float64.
    """

    to_global_B44: Tensor
    from_global_B44: Tensor
    seconds_B: Tensor


class Rows(NamedTuple):
    """Rows of the queue as a frame sees them.

    Attributes:
        states_BMC: what was said of the object, without gradient.
        places_BM3: metres, augmented LIDAR_TOP of this frame.
        ages_BM1: float64 seconds since the row was written.
        poses_BM44: frame that wrote the row -> this frame; all 0 in rows that never held a query.
        velocities_BM2: m/s in the frame that wrote the row; never turned.
    """

    states_BMC: Tensor
    places_BM3: Tensor
    ages_BM1: Tensor
    poses_BM44: Tensor
    velocities_BM2: Tensor


def moved(places_BM3: Tensor, motion_B44: Tensor) -> Tensor:
    """Return points under a motion of each sample."""
    lifted = torch.cat([places_BM3, torch.ones_like(places_BM3[..., :1])], dim=-1)
    return (motion_B44[:, None] @ lifted[..., None])[..., :3, 0].to(places_BM3.dtype)


def recalled(
    memory: Memory | None, known_B: Tensor, poses: Poses, start_P3: Tensor, rows: int, channels: int
) -> Rows:
    """Return the queue as this frame sees it; samples that begin anew get rows of zeros.

    Their first rows stand at fixed places, with an identity for a pose.

    Args:
        memory: what `remembered` said of the frame before; None where nobody goes on.
        known_B: bool, who goes on.
        poses: of this frame.
        start_P3: places of the first rows of a new scene, metres.
        rows: of the queue.
        channels: of a state.
    """
    samples, start = len(known_B), len(start_P3)
    if memory is None:
        memory = _empty(poses, rows, channels)
        known_B = torch.zeros_like(known_B)
    keep_B11 = known_B[:, None, None]
    seen = (
        memory["states"],
        moved(memory["places"], poses.from_global_B44),
        memory["seconds"] + poses.seconds_B[:, None, None],
        poses.from_global_B44[:, None] @ memory["poses"],
        memory["velocities"],
    )
    kept = [
        torch.where(keep_B11[..., None] if own.ndim == 4 else keep_B11, own, torch.zeros_like(own))
        for own in seen
    ]
    found = Rows(*kept)
    eye_44 = torch.eye(4, device=found.poses_BM44.device, dtype=found.poses_BM44.dtype)
    places = start_P3.to(found.places_BM3.dtype).expand(samples, -1, -1)
    first = torch.where(keep_B11, found.places_BM3[:, :start], places)
    turns = torch.where(keep_B11[..., None], found.poses_BM44[:, :start], eye_44)
    return found._replace(
        places_BM3=torch.cat([first, found.places_BM3[:, start:]], dim=1),
        poses_BM44=torch.cat([turns, found.poses_BM44[:, start:]], dim=1),
    )


def _empty(poses: Poses, rows: int, channels: int) -> Memory:
    samples = len(poses.to_global_B44)
    exact = poses.to_global_B44
    return {
        "states": exact.new_zeros((samples, rows, channels), dtype=torch.float32),
        "places": exact.new_zeros((samples, rows, 3)),
        "seconds": exact.new_zeros((samples, rows, 1), dtype=torch.float64),
        "poses": exact.new_zeros((samples, rows, 4, 4)),
        "velocities": exact.new_zeros((samples, rows, 2), dtype=torch.float32),
    }


@torch.no_grad()
def remembered(
    rows: Rows,
    poses: Poses,
    states_BQC: Tensor,
    logits_BQK: Tensor,
    codes_BQE: Tensor,
    keep: int,
) -> Memory:
    """Return the queue with the most certain queries of this frame in front; the oldest leave.

    Args:
        rows: what `recalled` said.
        poses: of this frame.
        states_BQC: of the last layer, as the queries of the next frame are to start.
        logits_BQK: of the classes.
        codes_BQE: `targets.metric_code`.
        keep: queries to remember.
    """
    length = rows.states_BMC.shape[1]
    best_BK1 = logits_BQK.sigmoid().amax(-1).topk(keep, dim=1).indices[..., None]

    def chosen(values_BQE: Tensor) -> Tensor:
        return values_BQE.gather(1, best_BK1.expand(-1, -1, values_BQE.shape[-1])).float()

    codes_BKE = chosen(codes_BQE)
    eye_44 = torch.eye(4, device=rows.poses_BM44.device, dtype=rows.poses_BM44.dtype)
    new = Rows(
        chosen(states_BQC),
        codes_BKE[..., :3].to(rows.places_BM3.dtype),
        rows.ages_BM1.new_zeros((len(best_BK1), keep, 1)),
        eye_44.expand(len(best_BK1), keep, 4, 4),
        codes_BKE[..., 8:10],
    )
    states, places, ages, turns, velocities = (
        torch.cat([own, old], dim=1)[:, :length] for own, old in zip(new, rows, strict=True)
    )
    return {
        "states": states,
        "places": moved(places, poses.to_global_B44),
        "seconds": ages - poses.seconds_B[:, None, None],
        "poses": poses.to_global_B44[:, None] @ turns,
        "velocities": velocities,
    }

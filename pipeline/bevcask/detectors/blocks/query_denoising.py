"""Queries made of disturbed ground truth, which a decoder learns to set right (DN-DETR, RayDN).

Plain groups move every box by a draw within its size. The ray group moves it along the ray of a
camera that sees it: the shortest of its draws stays the object, the others are none. Random numbers
come as data (`Draws`), so that whoever has the same numbers gets the same queries.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bevcask.detectors.blocks.ray_positions import Cameras
from bevcask.detectors.stream_config import DenoisingConfig, StreamConfig
from bevcask.geometry import constant
from bevcask.ranks import each, rank
from bevcask.targets.ragged import sample_of_box

_EPS = 1e-6


class Draws(NamedTuple):
    """Random numbers for N boxes, float32.

    Attributes:
        plain_GN3: 0 to 1, one row a group and box.
        along_RN: 0 to 1, of the ray group's beta distribution, one row a draw.
        again_N: 0 to 1, one for every box whose shortest draw is too long, in the boxes' order.
    """

    plain_GN3: Tensor
    along_RN: Tensor
    again_N: Tensor


class Noisy(NamedTuple):
    """Denoising queries of a batch; R of them are of boxes, others fill up.

    Attributes:
        references_BN3: 0 to 1 over the range; 0 in rows that fill up.
        blocked_QM: bool, who may not hear whom; None without denoising rows.
        rows_R: sample and place of each, as an index into B * N.
        labels_R: class, or as many as there are classes for no object.
        boxes_R9: the box that each was made of.
    """

    references_BN3: Tensor
    blocked_QM: Tensor | None
    rows_R: Tensor
    labels_R: Tensor
    boxes_R9: Tensor

    def chosen(self, logits_LBQK: Tensor, codes_LBQE: Tensor) -> dict[str, Tensor]:
        """Return what the losses need of what was said, queries behind the denoising ones too."""
        count = self.references_BN3.shape[1]
        return {
            "denoising/logits": logits_LBQK[:, :, :count].flatten(1, 2)[:, self.rows_R],
            "denoising/codes": codes_LBQE[:, :, :count].flatten(1, 2)[:, self.rows_R],
            "denoising/labels": self.labels_R,
            "denoising/boxes": self.boxes_R9,
        }


def nothing_noisy(samples: int, device: torch.device) -> Noisy:
    """Return no queries."""
    none = torch.zeros(0, dtype=torch.int64, device=device)
    empty = torch.zeros((samples, 0, 3), device=device)
    return Noisy(empty, None, none, none, torch.zeros((0, 9), device=device))


def draw(boxes: int, settings: DenoisingConfig) -> Draws:
    """Return the numbers of a step, the same on every device.

    They come from a counter-based generator whose key is the next number of torch's own: a run that
    goes on from a checkpoint draws what it would have drawn. Ranks draw for all boxes of the batch,
    and take those of their own.
    """
    key, counts = int(torch.randint(2**62, ())), each(boxes)
    boxes, first = sum(counts), sum(counts[: rank()])
    rows = slice(first, first + counts[rank()])
    generator = np.random.Generator(np.random.Philox(key=key))
    plain = generator.random((settings.groups, boxes, 3), dtype=np.float32)
    along = generator.beta(*settings.ray_shape, (settings.ray_draws, boxes))
    again = generator.random(boxes, dtype=np.float32)
    turn = int(_too_long(along[:, :first], settings).sum())  # those before took theirs
    taken = plain[:, rows], along[:, rows], again[turn : turn + counts[rank()]]
    return Draws(*(torch.from_numpy(own.astype(np.float32)) for own in taken))


def _too_long(along_RN: npt.NDArray[np.float64], settings: DenoisingConfig) -> Any:
    """Return the boxes whose shortest draw is, as `ray_steps` finds."""
    steps_RN = (2 * along_RN.astype(np.float32) - 1) * np.float32(settings.ray_reach)
    return np.abs(steps_RN).min(axis=0, initial=np.inf) > settings.split


def disturb(
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    draws: Draws,
    config: StreamConfig,
    cameras: Cameras,
    nothing: int = 10,
) -> Noisy:
    """Return the denoising queries of a batch.

    Args:
        boxes: per sample (N, 9), augmented LIDAR_TOP.
        classes: per sample (N,).
        draws: for all boxes of the batch, sample after sample.
        config: ranges, and how much.
        cameras: of the frame; the ray group needs them.
        nothing: the label of no object.
    """
    settings, device = config.denoising, boxes[0].device
    all_N9, kinds_N = torch.cat([own.float() for own in boxes]), torch.cat(list(classes))
    draws = Draws(*(own.to(device) for own in draws))
    counts = [len(own) for own in boxes]
    if not sum(counts) or not settings.groups + settings.ray_draws:
        return nothing_noisy(len(boxes), device)
    lanes_N = sample_of_box(boxes, device)
    places_N = torch.cat([torch.arange(count, device=device) for count in counts])
    centres_GN3, labels_GN = plain_group(all_N9, kinds_N, draws.plain_GN3, settings, nothing)
    used_GN = torch.ones_like(labels_GN, dtype=torch.bool)
    if settings.ray_draws:
        steps_RN, best_N = ray_steps(draws, settings)
        along_RN3, on_ray_N = along_rays(all_N9, lanes_N, steps_RN, cameras, config.camera_order)
        right_RN = torch.arange(len(steps_RN), device=device)[:, None] == best_N
        centres_GN3 = torch.cat([centres_GN3, along_RN3])
        labels_GN = torch.cat([labels_GN, torch.where(right_RN, kinds_N, nothing)])
        used_GN = torch.cat([used_GN, right_RN | on_ray_N | config.released])
    low_3, high_3 = constant(config.low, all_N9), constant(config.high, all_N9)
    shares_GN3 = ((centres_GN3 - low_3) / (high_3 - low_3)).clamp(0, 1)
    groups, single = len(labels_GN), max(counts)
    row_GN = lanes_N * single * groups + places_N
    row_GN = row_GN + single * torch.arange(groups, device=device)[:, None]
    references = all_N9.new_zeros((len(boxes) * single * groups, 3))
    references[row_GN[used_GN]] = shares_GN3[used_GN]
    return Noisy(
        references.view(len(boxes), -1, 3),
        blocked(single, config, device),
        row_GN[used_GN],
        labels_GN[used_GN],
        all_N9.expand(groups, -1, -1)[used_GN],
    )


def plain_group(
    boxes_N9: Tensor, classes_N: Tensor, draws_GN3: Tensor, settings: DenoisingConfig, nothing: int
) -> tuple[Tensor, Tensor]:
    """Return disturbed centres (G, N, 3), metres, and what they are to be."""
    shift_GN3 = 2 * draws_GN3 - 1
    centres = boxes_N9[:, :3] + shift_GN3 * (boxes_N9[:, 3:6] / 2) * settings.noise
    labels = torch.where(shift_GN3.norm(dim=-1) > settings.split, nothing, classes_N)
    return centres, labels


def ray_steps(draws: Draws, settings: DenoisingConfig) -> tuple[Tensor, Tensor]:
    """Return steps along the ray (R, N), half box sizes, and which of a box's is the object."""
    steps_RN = (2 * draws.along_RN - 1) * settings.ray_reach
    best_N = steps_RN.abs().argmin(0)
    short_N = steps_RN.abs().amin(0)
    far_N = short_N > settings.split
    turn_N = (far_N.cumsum(0) - 1).clamp(min=0)
    again_N = torch.cat([draws.again_N, draws.again_N.new_zeros(1)])[turn_N]
    short_N = torch.where(far_N, (2 * again_N - 1) * settings.split, short_N)
    return steps_RN.scatter(0, best_N[None], short_N[None]), best_N


def along_rays(
    boxes_N9: Tensor,
    samples_N: Tensor,
    steps_RN: Tensor,
    cameras: Cameras,
    order: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return centres moved along the ray of the last camera that sees them, and who has one.

    Args:
        boxes_N9: where they start.
        samples_N: whose cameras.
        steps_RN: in half mean box sizes, away from the camera.
        cameras: of the frame.
        order: in which cameras come.
    """
    height, width = cameras.size_HW
    lifted_N4 = torch.cat([boxes_N9[:, :3], torch.ones_like(boxes_N9[:, :1])], dim=1)
    moved_RN3 = boxes_N9[:, :3].expand(len(steps_RN), -1, -1)
    found_N = torch.zeros_like(samples_N, dtype=torch.bool)
    reach_RN = steps_RN * boxes_N9[:, 3:6].mean(1) / 2
    for view in order:
        matrix_N44 = cameras.lidar_to_image_BV44[samples_N, view]
        seen_N4 = (matrix_N44 @ lifted_N4[..., None])[..., 0]
        depth_N = seen_N4[:, 2]
        u_N, v_N = (seen_N4[:, :2] / (depth_N[:, None] + _EPS)).unbind(1)
        inside_N = (u_N >= 0) & (u_N < width) & (v_N >= 0) & (v_N < height) & (depth_N > 0)
        new_RN = depth_N + reach_RN
        ones_RN = torch.ones_like(new_RN)
        pixel_RN4 = torch.stack([u_N * new_RN, v_N * new_RN, new_RN, ones_RN], dim=-1)
        back_RN4 = (torch.linalg.inv_ex(matrix_N44).inverse @ pixel_RN4[..., None])[..., 0]
        moved_RN3 = torch.where(inside_N[:, None], back_RN4[..., :3], moved_RN3)
        found_N = found_N | inside_N
    return moved_RN3, found_N


def blocked(single: int, config: StreamConfig, device: torch.device) -> Tensor:
    """Return who may not hear whom, bool (rows, columns); see `StreamDecoder.forward`.

    A plain group hears itself alone among denoising rows, the draws of the ray group one another.
    Nobody else hears denoising rows; all hear the others.
    """
    settings = config.denoising
    groups = torch.arange(settings.groups + settings.ray_draws, device=device)
    group_N = groups.clamp(max=settings.groups).repeat_interleave(single)
    others = config.queries + config.propagated
    row_Q = torch.cat([group_N, group_N.new_full((others,), -1)])
    blocked_QN = row_Q[:, None] != group_N
    rest = torch.zeros(
        (len(row_Q), config.queries + config.memory), dtype=torch.bool, device=device
    )
    return torch.cat([blocked_QN, rest], dim=1)

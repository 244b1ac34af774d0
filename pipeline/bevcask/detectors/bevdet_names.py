"""The names of published BEVDet files (HuangJunJie2017, one frame), and how their layout differs.

The release swaps red and blue and then takes the means of RGB, so that channels of the first
convolution are in the other order. Boxes are those of mmdet3d before 1.0. Files of its later
branches (`img_view_transformer.depth_net`) lift to the ego frame, and are not read.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bevcask.detectors.center_head_names import head_tensor, renamed, with_counters
from bevcask.detectors.published import alike, few, misfits
from bevcask.errors import CheckpointError

if TYPE_CHECKING:
    from bevcask.detectors.bevdepth import BEVDepth

_VIEW = "img_view_transformer."
_ENCODER = "img_bev_encoder_backbone."
_NECK = "img_bev_encoder_neck."
_NAMES: tuple[tuple[str, str], ...] = (
    (r"backbone\.", "img_backbone."),
    (r"pyramid\.laterals\.(\d+)\.", r"img_neck.lateral_convs.\1.conv."),
    (r"pyramid\.output\.", "img_neck.fpn_convs.0.conv."),
    (r"depth_net\.both\.", f"{_VIEW}depthnet."),
    (r"bev_backbone\.stages\.", f"{_ENCODER}layers."),
    (r"neck\.join\.", f"{_NECK}conv."),
    (r"neck\.output\.0\.", f"{_NECK}up2.1."),
    (r"neck\.output\.1\.", f"{_NECK}up2.2."),
    (r"neck\.output\.3\.", f"{_NECK}up2.4."),
)
_FIRST = "backbone.conv1.weight"
_LATER = f"{_VIEW}depth_net."
_SEVERAL_FRAMES = "pre_process_net."


def published_name(name: str) -> str:
    """Return what a tensor of `bevdepth` in the layout `bevdet` is called in published files."""
    return renamed(name, _NAMES)


def constants(detector: "BEVDepth") -> dict[str, Tensor]:
    """Return what published files hold beside weights and the configuration decides."""
    config = detector.config
    grid, (low, high) = config.grid, config.z_range
    rows_H, columns_W = (
        torch.linspace(0, side - 1, side // config.stride) for side in config.image_size_HW
    )
    depths_D = torch.tensor(config.bin_depths)
    d_DHW, v_DHW, u_DHW = torch.meshgrid(depths_D, rows_H, columns_W, indexing="ij")
    first = [grid.x_min + grid.cell / 2, grid.y_min + grid.cell / 2, (low + high) / 2]
    return {
        f"{_VIEW}dx": torch.tensor([grid.cell, grid.cell, high - low]),
        f"{_VIEW}bx": torch.tensor(first),
        f"{_VIEW}nx": torch.tensor([float(grid.num_x), float(grid.num_y), 1.0]),
        f"{_VIEW}frustum": torch.stack([u_DHW, v_DHW, d_DHW], dim=-1),
    }


def adopt_published(tensors: Mapping[str, Tensor], detector: "BEVDepth") -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under the names and in the layout of this network.

    Published files are known by their BEV encoder; others are returned as they are. Constants and
    step counters of batch norms may be missing.

    Args:
        tensors: of the file.
        detector: the network that is to be filled.

    Raises:
        CheckpointError: tensors are missing, surplus or of another shape, or constants are not
            those of the configuration, by name; or the network is of another layout.
    """
    if not any(name.startswith(_ENCODER) for name in tensors):
        return dict(tensors)
    own, fixed = detector.state_dict(), constants(detector)
    places = {published_name(name): name for name in own}
    given = with_counters(tensors, places, own)
    shapes = {name: tuple(own[place].shape) for name, place in places.items()}
    problems = _reasons(tensors, detector)
    problems += misfits(given, shapes, shapes, besides=fixed)
    problems = problems or [
        f"{name} is not that of the configuration (half_extent, cell, z_range, depth_range, "
        "image_size_HW)"
        for name, wanted in fixed.items()
        if name in given and not alike(given[name], wanted)
    ]
    if problems:
        raise CheckpointError(
            f"a published BEVDet that is not this one: {few(problems)}. bevdet_r50_released takes "
            "BEVDet-R50 of one frame, at 256 x 704 pixels."
        )
    return {place: _turned(place, given[name], inward=True) for name, place in places.items()}


def published_tensors(detector: "BEVDepth") -> dict[str, Tensor]:
    """Return all that a published file of this network holds, constants included.

    Raises:
        CheckpointError: BEVDet's release has no such network.
    """
    if not detector.config.as_released:
        raise CheckpointError(
            "a BEVDepth of layout own has no published names here: its lift and neck are not those "
            "of the release. Use names=native."
        )
    named = {
        published_name(name): _turned(name, tensor, inward=False)
        for name, tensor in detector.state_dict().items()
    }
    return named | constants(detector)


def _reasons(tensors: Mapping[str, Tensor], detector: "BEVDepth") -> list[str]:
    """Return what tells that the network computes something else, whatever its tensors."""
    found = []
    if any(name.startswith(_SEVERAL_FRAMES) for name in tensors):
        found.append(
            "it sees several frames, each through blocks with a 3x3 shortcut "
            f"({_SEVERAL_FRAMES}*), which those here lack"
        )
    if any(name.startswith(_LATER) for name in tensors):
        found.append(f"it is of a later branch ({_LATER}*), which lifts to the ego frame")
    if any(name.startswith((f"{_VIEW}dcn", f"{_VIEW}extra_depthnet")) for name in tensors):
        found.append(
            "its depth net has a deformable convolution and a network of its own "
            f"({_VIEW}extra_depthnet.*)"
        )
    if not detector.config.as_released:
        found.append(
            "its lift, its neck and its colours are those of the release, not of `layout: own`"
        )
    return found


def _turned(name: str, tensor: Tensor, inward: bool) -> Tensor:
    """Return a tensor in our layout, or in the published one."""
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.float()
    if name == _FIRST:
        return tensor.flip(1)
    return head_tensor(name, tensor, old_boxes=True, inward=inward)

"""The names of published CenterPoint files of mmdet3d (pillars), and how their layout differs.

The file's pillar layer tells its age: it reads 10 numbers of a point before mmdet3d 1.0, 11 since
(`centre_axes`), and boxes changed with 1.0 too. One difference is left: mmdet3d drops pillars
beyond the first 40,000 of a frame, here there is no such bound.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from bevcask.detectors.center_head_names import head_tensor, renamed, with_counters
from bevcask.detectors.published import few, misfits
from bevcask.errors import CheckpointError

if TYPE_CHECKING:
    from bevcask.detectors.centerpoint import CenterPoint

_ENCODER = "pts_voxel_encoder."
_LAYER = f"{_ENCODER}pfn_layers.0."
_NAMES: tuple[tuple[str, str], ...] = (
    (r"encoder\.linear\.", f"{_LAYER}linear."),
    (r"encoder\.norm\.", f"{_LAYER}norm."),
    (r"neck\.branches\.", "pts_neck.deblocks."),
)
_STAGE = re.compile(r"backbone\.stages\.(\d+)\.(\d+)\.(\d+)\.(\w+)")
_ACTIVATIONS = 3  # modules a convolution takes there: itself, its norm, its activation


def published_name(name: str) -> str:
    """Return what a tensor of `centerpoint` is called in mmdet3d's files."""
    stage = _STAGE.fullmatch(name)
    if stage:
        place = _ACTIVATIONS * int(stage[2]) + int(stage[3])
        return f"pts_backbone.blocks.{stage[1]}.{place}.{stage[4]}"
    return renamed(name, _NAMES)


def adopt_published(tensors: Mapping[str, Tensor], detector: "CenterPoint") -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under the names and in the layout of this network.

    mmdet3d's files are known by their pillar encoder; others are returned as they are. Step
    counters of batch norms may be missing.

    Args:
        tensors: of the file.
        detector: the network that is to be filled.

    Raises:
        CheckpointError: tensors are missing, surplus or of another shape, by name; or the network
            sees its points otherwise than mmdet3d's does.
    """
    if not any(name.startswith(_ENCODER) for name in tensors):
        return dict(tensors)
    own = detector.state_dict()
    places = {published_name(name): name for name in own}
    given = with_counters(tensors, places, own)
    shapes = {
        name: tuple(_outward(place, own[place], detector).shape) for name, place in places.items()
    }
    problems = misfits(given, shapes, shapes)
    if detector.encoder.most_points is None:
        problems.insert(
            0,
            "its pillars see at most 20 points, and points of zeros where there are "
            "fewer (pillar_points); those here see all points and no others",
        )
    if problems:
        raise CheckpointError(
            f"a CenterPoint of mmdet3d that is not this one: {few(problems)}. Pick the detector "
            "that the file was trained as: centerpoint_mmdet3d for mmdet3d 1.x, "
            "centerpoint_mmdet3d_0x before."
        )
    return {place: _inward(place, given[name], detector) for name, place in places.items()}


def published_tensors(detector: "CenterPoint") -> dict[str, Tensor]:
    """Return the tensors of a network under the names and in the layout of mmdet3d's files.

    Raises:
        CheckpointError: mmdet3d has no such network.
    """
    if detector.encoder.most_points is None:
        raise CheckpointError(
            "mmdet3d's pillars see at most so many points, and points of zeros where there are "
            "fewer; a CenterPoint without pillar_points computes something else under the same "
            "names. Use names=native."
        )
    return {
        published_name(name): _outward(name, tensor, detector)
        for name, tensor in detector.state_dict().items()
    }


def _inward(name: str, tensor: Tensor, detector: "CenterPoint") -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.float()
    if name == "encoder.linear.weight":
        return tensor * tensor.new_tensor(detector.encoder.scales)
    if _is_turned(name, detector):
        return tensor.transpose(0, 1).contiguous()
    return head_tensor(name, tensor, _has_old_boxes(detector), inward=True)


def _outward(name: str, tensor: Tensor, detector: "CenterPoint") -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    if name == "encoder.linear.weight":
        return tensor / tensor.new_tensor(detector.encoder.scales)
    if _is_turned(name, detector):
        return tensor.transpose(0, 1)
    return head_tensor(name, tensor, _has_old_boxes(detector), inward=False)


def _has_old_boxes(detector: "CenterPoint") -> bool:
    return detector.encoder.centre_axes < 3


def _is_turned(name: str, detector: "CenterPoint") -> bool:
    """Tell a stage of the neck that keeps its size: a convolution there, a transposed one here."""
    found = re.fullmatch(r"(neck\.branches\.\d+\.0)\.weight", name)
    if not found:
        return False
    layer = detector.get_submodule(found[1])
    return isinstance(layer, nn.ConvTranspose2d) and layer.kernel_size == (1, 1)

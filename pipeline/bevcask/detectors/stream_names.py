"""The names of published StreamPETR, RayDN and HarmoDistill files, and what they are called here.

Both detectors share one table: neither has a tensor whose place the other would take.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bevcask.detectors.published import alike, few, misfits, unwrapped
from bevcask.errors import CheckpointError

if TYPE_CHECKING:
    from bevcask.detectors.stream_family import StreamDetector

_HEAD = "pts_bbox_head."
_LAYER = f"{_HEAD}transformer.decoder.layers."
_OTHERS = ("teacher.", "teacher_", "student_", "distill_losses.")
_COPIES = 6  # names of one branch, whatever the number of layers

_PUBLISHED: tuple[tuple[str, str], ...] = (
    (r"backbone\.", "img_backbone."),
    (r"pyramid\.laterals\.(\d+)\.", r"img_neck.lateral_convs.\1.conv."),
    (r"pyramid\.outputs\.(\d+)\.", r"img_neck.fpn_convs.\1.conv."),
    (r"pyramid\.output\.", "img_neck.fpn_convs.0.conv."),
    (r"image_head\.sort_tower\.", "img_roi_head.shared_cls."),
    (r"image_head\.place_tower\.", "img_roi_head.shared_reg."),
    (r"image_head\.sort_towers\.(\d+)\.", r"img_roi_head.multi_level_cls_convs.\1."),
    (r"image_head\.place_towers\.(\d+)\.", r"img_roi_head.multi_level_reg_convs.\1."),
    (r"image_head\.classes\.(\d+)\.", r"img_roi_head.multi_level_conv_cls.\1."),
    (r"image_head\.objects\.(\d+)\.", r"img_roi_head.multi_level_conv_obj.\1."),
    (r"image_head\.boxes\.(\d+)\.", r"img_roi_head.multi_level_conv_reg.\1."),
    (r"image_head\.centres\.(\d+)\.", r"img_roi_head.multi_level_conv_centers2d.\1."),
    (r"image_head\.classes\.", "img_roi_head.cls."),
    (r"image_head\.heat\.", "img_roi_head.centerness."),
    (r"image_head\.sides\.", "img_roi_head.ltrb."),
    (r"image_head\.centres\.", "img_roi_head.center2d."),
    (r"queries\.references", f"{_HEAD}reference_points.weight"),
    (r"queries\.starts_P3", f"{_HEAD}pseudo_reference_points.weight"),
    (r"queries\.position\.", f"{_HEAD}query_embedding."),
    (r"queries\.time\.", f"{_HEAD}time_embedding."),
    (r"queries\.content_motion\.reduce\.", f"{_HEAD}ego_pose_memory.reduce.0."),
    (r"queries\.content_motion\.", f"{_HEAD}ego_pose_memory."),
    (r"queries\.position_motion\.reduce\.", f"{_HEAD}ego_pose_pe.reduce.0."),
    (r"queries\.position_motion\.", f"{_HEAD}ego_pose_pe."),
    (r"(?:positions|modulation)\.align\.reduce\.", f"{_HEAD}spatial_alignment.reduce.0."),
    (r"(?:positions|modulation)\.align\.", f"{_HEAD}spatial_alignment."),
    (r"positions\.encode\.", f"{_HEAD}position_encoder."),
    (r"positions\.embed\.", f"{_HEAD}memory_embed."),
    (r"positions\.gate\.0\.", f"{_HEAD}featurized_pe.conv_reduce."),
    (r"positions\.gate\.2\.", f"{_HEAD}featurized_pe.conv_expand."),
    (r"decoder\.norm\.", f"{_HEAD}transformer.decoder.post_norm."),
    (r"decoder\.classify\.", f"{_HEAD}cls_branches.0."),
    (r"decoder\.regress\.", f"{_HEAD}reg_branches.0."),
    (r"decoder\.layers\.(\d+)\.attention\.", rf"{_LAYER}\1.attentions.0.attn."),
    (r"decoder\.layers\.(\d+)\.read\.attention\.", rf"{_LAYER}\1.attentions.1.attn."),
    (r"decoder\.layers\.(\d+)\.read\.offsets\.", rf"{_LAYER}\1.attentions.1.learnable_fc."),
    (r"decoder\.layers\.(\d+)\.read\.weights\.", rf"{_LAYER}\1.attentions.1.weights_fc."),
    (r"decoder\.layers\.(\d+)\.read\.cameras\.", rf"{_LAYER}\1.attentions.1.cam_embed."),
    (r"decoder\.layers\.(\d+)\.read\.output\.", rf"{_LAYER}\1.attentions.1.output_proj."),
    (r"decoder\.layers\.(\d+)\.feed_forward\.inner\.", rf"{_LAYER}\1.ffns.0.layers.0.0."),
    (r"decoder\.layers\.(\d+)\.feed_forward\.outer\.", rf"{_LAYER}\1.ffns.0.layers.1."),
    (r"decoder\.layers\.(\d+)\.norms\.", rf"{_LAYER}\1.norms."),
)
_TOWER = re.compile(r"(multi_level_(?:cls|reg)_convs\.\d+)\.(\d+)\.")


def published_name(name: str) -> str:
    """Return what a tensor of `streampetr` or `raydn` is called in published files.

    Branches have a name a layer there; this is that of layer 0.
    """
    for pattern, replacement in _PUBLISHED:
        found, count = re.subn(rf"^{pattern}", replacement, name)
        if count:
            return _TOWER.sub(_tower_name, found)
    return name


def _tower_name(found: re.Match[str]) -> str:
    block, part = divmod(int(found[2]), 3)  # convolution, norm, activation
    return f"{found[1]}.{block}.{('conv', 'bn')[part]}."


def published_copies(name: str) -> list[str]:
    """Return all published names of what `published_name` calls so."""
    found = re.match(rf"^{re.escape(_HEAD)}(cls|reg)_branches\.0\.(.*)", name)
    if not found:
        return [name]
    return [f"{_HEAD}{found[1]}_branches.{layer}.{found[2]}" for layer in range(_COPIES)]


def published_tensors(detector: "StreamDetector") -> dict[str, Tensor]:
    """Return all that a published file of this network holds, constants and copies included."""
    named = {
        copy: tensor
        for name, tensor in detector.state_dict().items()
        for copy in published_copies(published_name(name))
    }
    return named | detector.constants()


def adopt_published(tensors: Mapping[str, Tensor], detector: "StreamDetector") -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under the names of this network.

    Published files are known by their head; others are returned as they are. The student of a
    distillation checkpoint is taken. Step counters, constants and the head in the images, which
    only training has, may be missing.

    Args:
        tensors: of the file.
        detector: the network that is to be filled.

    Raises:
        CheckpointError: tensors are missing, surplus or of another shape, copies of a branch
            differ, or constants are not those of the configuration; by name.
    """
    given = unwrapped(tensors, _OTHERS)
    if not any(name.startswith(_HEAD) for name in given):
        return dict(tensors)
    own = detector.state_dict()
    places = {published_name(name): name for name in own}
    constants = detector.constants()
    copies = {name: published_copies(name) for name in places}
    shapes = {
        copy: tuple(own[places[name]].shape) for name, every in copies.items() for copy in every
    }
    may_lack = {n for n in places if n.startswith("img_roi_head.") or "num_batches" in n}
    if any(name.startswith("img_roi_head.") for name in given):
        may_lack = {name for name in may_lack if "num_batches" in name}
    needed = {copy for name, every in copies.items() if name not in may_lack for copy in every}
    problems = misfits(given, shapes, needed, besides=constants)
    problems = problems or _differing(given, copies, constants)
    if problems:
        raise CheckpointError(
            f"a published {type(detector).__name__} that is not this one: {few(problems)}. Pick "
            "the detector that the file was trained as, such as streampetr_r50, "
            "streampetr_r50_900q, raydn_r50, raydn_r34 or raydn_r18."
        )
    return {place: given[name] if name in given else own[place] for name, place in places.items()}


def _differing(
    given: Mapping[str, Tensor],
    copies: Mapping[str, list[str]],
    constants: Mapping[str, Tensor],
) -> list[str]:
    problems = [
        f"{copy} differs from {name}, whose copy it should be"
        for name, every in copies.items()
        for copy in every[1:]
        if not torch.equal(given[copy], given[name])
    ]
    return problems + [
        f"{name} should be {[round(float(v), 4) for v in wanted]}, is "
        f"{[round(float(v), 4) for v in given[name].flatten()]}"
        for name, wanted in constants.items()
        if name in given and not alike(given[name], wanted)
    ]


def published_start(
    tensors: Mapping[str, Tensor], detector: "StreamDetector"
) -> dict[str, Tensor] | None:
    """Return what another published detector starts: the backbone.

    Made for nuImages detectors of mmdet (`backbone.`), and for files of the family
    (`img_backbone.`) of another head. None for files without a backbone beside other parts.

    Args:
        tensors: of the file.
        detector: the network that is to be started.

    Raises:
        CheckpointError: the backbone is another one; by name.
    """
    prefixes = [p for p in ("img_backbone.", "backbone.") if any(n.startswith(p) for n in tensors)]
    if not prefixes or all(name.startswith(prefixes[0]) for name in tensors):
        return None
    own = {n: t for n, t in detector.state_dict().items() if n.startswith("backbone.")}
    given = {
        f"backbone.{name.removeprefix(prefixes[0])}": tensor
        for name, tensor in tensors.items()
        if name.startswith(prefixes[0]) and "num_batches" not in name
    }
    shapes = {name: tuple(t.shape) for name, t in own.items() if "num_batches" not in name}
    problems = misfits(given, shapes, shapes)
    if problems:
        raise CheckpointError(
            f"the image backbone of this file is another one: {few(problems)}. Give weights of "
            "the same network."
        )
    return given

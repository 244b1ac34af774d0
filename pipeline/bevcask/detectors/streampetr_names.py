"""The names of published StreamPETR and RayDN files, and what they are called here."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from bevcask.errors import CheckpointError

_SHOWN = 3
_HEAD = "pts_bbox_head."
_DECODER = f"{_HEAD}transformer.decoder."
_2D_HEAD = "img_roi_head."
_WRAPPING = "student."  # a checkpoint of HarmoDistill holds its student so, and much else
_OTHERS = ("teacher.", "teacher_", "student_", "distill_losses.")
_COPY = re.compile(rf"^({re.escape(_HEAD)}(?:cls|reg)_branches)\.(\d+)\.")

_PUBLISHED: tuple[tuple[str, str], ...] = (
    (r"backbone\.", "img_backbone."),
    (r"pyramid\.laterals\.(\d+)\.", r"img_neck.lateral_convs.\1.conv."),
    (r"pyramid\.outputs\.(\d+)\.", r"img_neck.fpn_convs.\1.conv."),
    (r"head\.places", f"{_HEAD}reference_points.weight"),
    (r"head\.starts_P3", f"{_HEAD}pseudo_reference_points.weight"),
    (r"head\.classify\.", f"{_HEAD}cls_branches.0."),
    (r"head\.regress\.", f"{_HEAD}reg_branches.0."),
    (r"head\.place_embedding\.", f"{_HEAD}query_embedding."),
    (r"head\.age_embedding\.", f"{_HEAD}time_embedding."),
    (r"head\.motion_position\.", f"{_HEAD}ego_pose_pe."),
    (r"head\.motion_content\.", f"{_HEAD}ego_pose_memory."),
    (r"head\.view\.alignment\.", f"{_HEAD}spatial_alignment."),
    (r"head\.view\.position\.", f"{_HEAD}position_encoder."),
    (r"head\.view\.embed\.", f"{_HEAD}memory_embed."),
    (r"head\.view\.gate_(reduce|expand)\.", rf"{_HEAD}featurized_pe.conv_\1."),
    (r"head\.post_norm\.", f"{_DECODER}post_norm."),
    (r"head\.layers\.(\d+)\.attention\.", rf"{_DECODER}layers.\1.attentions.0.attn."),
    (r"head\.layers\.(\d+)\.read\.attention\.", rf"{_DECODER}layers.\1.attentions.1.attn."),
    (r"head\.layers\.(\d+)\.read\.weights\.", rf"{_DECODER}layers.\1.attentions.1.weights_fc."),
    (r"head\.layers\.(\d+)\.read\.output\.", rf"{_DECODER}layers.\1.attentions.1.output_proj."),
    (r"head\.layers\.(\d+)\.read\.points\.", rf"{_DECODER}layers.\1.attentions.1.learnable_fc."),
    (r"head\.layers\.(\d+)\.read\.camera\.", rf"{_DECODER}layers.\1.attentions.1.cam_embed."),
    (r"head\.layers\.(\d+)\.feed_forward\.inner\.", rf"{_DECODER}layers.\1.ffns.0.layers.0.0."),
    (r"head\.layers\.(\d+)\.feed_forward\.outer\.", rf"{_DECODER}layers.\1.ffns.0.layers.1."),
    (r"head\.layers\.", f"{_DECODER}layers."),
)


def published_name(name: str) -> str:
    """Return what a tensor of `streampetr` or `raydn` is called in published files."""
    for pattern, replacement in _PUBLISHED:
        found, count = re.subn(rf"^{pattern}", replacement, name)
        if count:
            return found.replace(".reduce.", ".reduce.0.")
    return name


def adopt_published(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], constants: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under the names of this network.

    Published files are known by their head; others are returned as they are. Of the branches, said
    once a layer, the first is taken, and the 2D head of training is left. Step counters of batch
    norms and constants may be missing.

    Args:
        tensors: of the file.
        own: the state of the network that is to be filled.
        constants: what the file may say of the config, by its name in the head.

    Raises:
        CheckpointError: published tensors are missing, surplus, of another shape, or say another
            config; by name.
    """
    given = _unwrapped(tensors)
    if not any(name.startswith(_HEAD) for name in given):
        return dict(tensors)
    given = {name: t for name, t in given.items() if not name.startswith(_2D_HEAD)}
    problems = _wrong_constants(given, constants) + _wrong_copies(given)
    said = {_HEAD + name for name in constants}
    given = {
        name: tensor
        for name, tensor in given.items()
        if name not in said and not _is_later_copy(name)
    }
    places = {published_name(name): name for name in own}
    for name, place in places.items():
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, own[place])
    problems += [f"{name} is missing" for name in sorted(places.keys() - given.keys())]
    problems += [f"{name} has no place" for name in sorted(given.keys() - places.keys())]
    problems += [
        f"{name} should have shape {tuple(own[places[name]].shape)}, has {tuple(given[name].shape)}"
        for name in sorted(places.keys() & given.keys())
        if given[name].shape != own[places[name]].shape
    ]
    if problems:
        more = f"; {len(problems)} in all" if len(problems) > _SHOWN else ""
        raise CheckpointError(
            f"a published StreamPETR or RayDN that is not this one: "
            f"{'; '.join(problems[:_SHOWN])}{more}. Give the detector the config that the file was "
            "trained with."
        )
    return {place: given[name] for name, place in places.items()}


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not any(name.startswith(_WRAPPING) for name in tensors):
        return dict(tensors)
    return {
        name.removeprefix(_WRAPPING): tensor
        for name, tensor in tensors.items()
        if not name.startswith(_OTHERS)
    }


def _wrong_constants(given: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> list[str]:
    problems = []
    for name, value in constants.items():
        said = given.get(_HEAD + name)
        if said is None or said.is_meta:
            continue
        if said.shape != value.shape or not torch.allclose(said.float().cpu(), value, atol=1e-4):
            problems.append(f"{_HEAD}{name} should be {_short(value)}, is {_short(said)}")
    return problems


def _short(values: Tensor) -> str:
    shown = ", ".join(f"{float(own):g}" for own in values.flatten()[:10])
    return f"({shown}{', ...' if values.numel() > 10 else ''})"


def _wrong_copies(given: Mapping[str, Tensor]) -> list[str]:
    """Say which branches differ from layer to layer: there is one module here."""
    problems = []
    for name in sorted(filter(_is_later_copy, given)):
        first = given.get(_COPY.sub(r"\1.0.", name))
        if first is None:
            problems.append(f"{name} has no place")
        elif first.shape != given[name].shape or not (
            first.is_meta or torch.equal(first, given[name])
        ):
            problems.append(f"{name} differs from that of layer 0")
    return problems


def _is_later_copy(name: str) -> bool:
    found = _COPY.match(name)
    return found is not None and found[2] != "0"

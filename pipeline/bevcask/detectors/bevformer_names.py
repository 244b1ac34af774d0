"""The names of published BEVFormer files, and what they are called here."""

import re
from collections.abc import Mapping

from torch import Tensor

from bevcask.detectors.published import few, misfits, unwrapped
from bevcask.errors import CheckpointError

_HEAD = "pts_bbox_head."
_TRANSFORMER = f"{_HEAD}transformer."
_OTHERS = ("teacher.", "bev_restore_layers.", "student_", "teacher_")

# Row n of a published camera embedding belongs to CAM_FRONT, FRONT_RIGHT, FRONT_LEFT, BACK,
# BACK_LEFT, BACK_RIGHT; this is where each of `geometry.CAMERAS` is among them.
_CAMERA_ROWS = (2, 0, 1, 4, 3, 5)
_CAMERAS = "encoder.camera_embeddings"

_LAYERS = {
    "offsets": "sampling_offsets",
    "weights": "attention_weights",
    "value": "value_proj",
    "output": "output_proj",
}
_FEED_FORWARD = {"inner": "layers.0.0", "outer": "layers.1"}

_PUBLISHED: tuple[tuple[str, str], ...] = (
    (r"backbone\.", "img_backbone."),
    (r"pyramid\.laterals\.(\d+)\.", r"img_neck.lateral_convs.\1.conv."),
    (r"pyramid\.outputs\.(\d+)\.", r"img_neck.fpn_convs.\1.conv."),
    (r"code_weights", f"{_HEAD}code_weights"),
    (r"encoder\.bev_queries", f"{_HEAD}bev_embedding.weight"),
    (r"encoder\.row_positions", f"{_HEAD}positional_encoding.row_embed.weight"),
    (r"encoder\.column_positions", f"{_HEAD}positional_encoding.col_embed.weight"),
    (r"encoder\.camera_embeddings", f"{_TRANSFORMER}cams_embeds"),
    (r"encoder\.level_embeddings", f"{_TRANSFORMER}level_embeds"),
    (r"encoder\.can_bus\.4\.", f"{_TRANSFORMER}can_bus_mlp.norm."),
    (r"encoder\.can_bus\.", f"{_TRANSFORMER}can_bus_mlp."),
    (r"encoder\.layers\.(\d+)\.temporal\.", rf"{_TRANSFORMER}encoder.layers.\1.attentions.0."),
    (
        r"encoder\.layers\.(\d+)\.spatial\.output\.",
        rf"{_TRANSFORMER}encoder.layers.\1.attentions.1.output_proj.",
    ),
    (
        r"encoder\.layers\.(\d+)\.spatial\.",
        rf"{_TRANSFORMER}encoder.layers.\1.attentions.1.deformable_attention.",
    ),
    (r"decoder\.queries", f"{_HEAD}query_embedding.weight"),
    (r"decoder\.references\.", f"{_TRANSFORMER}reference_points."),
    (r"decoder\.classify\.", f"{_HEAD}cls_branches."),
    (r"decoder\.regress\.", f"{_HEAD}reg_branches."),
    (
        r"decoder\.layers\.(\d+)\.attention\.",
        rf"{_TRANSFORMER}decoder.layers.\1.attentions.0.attn.",
    ),
    (r"decoder\.layers\.(\d+)\.read\.", rf"{_TRANSFORMER}decoder.layers.\1.attentions.1."),
    (r"(encoder|decoder)\.layers\.(\d+)\.feed_forward\.", rf"{_TRANSFORMER}\1.layers.\2.ffns.0."),
    (r"(encoder|decoder)\.layers\.", rf"{_TRANSFORMER}\1.layers."),
)


def published_name(name: str) -> str:
    """Return what a tensor of `bevformer` is called in published files."""
    for pattern, replacement in _PUBLISHED:
        found, count = re.subn(rf"^{pattern}", replacement, name)
        if count:
            return _last_parts(found) if found.startswith(_TRANSFORMER) else found
    return name


def _last_parts(name: str) -> str:
    head, part, leaf = ([*name.rsplit(".", 2), ""])[:3]
    renamed = (_FEED_FORWARD if head.endswith("ffns.0") else _LAYERS).get(part, part)
    return f"{head}.{renamed}.{leaf}"


def adopt_published(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under the names and in the layout of this network.

    Published files are known by their head; others are returned as they are. Step counters of batch
    norms may be missing; offsets of deformable convolutions may have their older name.

    Args:
        tensors: of the file.
        own: the state of the network that is to be filled.

    Raises:
        CheckpointError: published tensors are missing, surplus or of another shape; by name.
    """
    given = _renamed(unwrapped(tensors, _OTHERS))
    if not any(name.startswith(_HEAD) for name in given):
        return dict(tensors)
    places = {published_name(name): name for name in own}
    for name, place in places.items():
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, own[place])
    shapes = {name: _published_shape(place, own[place]) for name, place in places.items()}
    problems = misfits(given, shapes, shapes)
    if problems:
        raise CheckpointError(
            f"a published BEVFormer that is not this one: {few(problems)}. Pick the "
            "detector that the file was trained as: bevformer_base, bevformer_small, "
            "bevformer_tiny_published, bevformer_focal_small or bevformer_r50."
        )
    found = {place: given[name].reshape(own[place].shape) for name, place in places.items()}
    found[_CAMERAS] = found[_CAMERAS][list(_CAMERA_ROWS)]
    return found


def published_tensors(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a network under the names and in the layout of published files."""
    rows = sorted(range(len(_CAMERA_ROWS)), key=_CAMERA_ROWS.__getitem__)
    ordered = dict(own) | {_CAMERAS: own[_CAMERAS][rows]}
    return {
        published_name(name): tensor.reshape(_published_shape(name, tensor))
        for name, tensor in ordered.items()
    }


def published_start(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Return what a published detector of the family starts: the backbone, and levels of the neck.

    Made for the FCOS3D network that BEVFormer's training begins with. Its heads have no place here,
    and levels of the neck are taken where their shapes agree, as its release does.

    Args:
        tensors: of the file; without `img_backbone.` it is not one of the family.
        own: the state of the network that is to be started.

    Raises:
        CheckpointError: the backbone is another one; by name.
    """
    given = _renamed(tensors)
    if not any(name.startswith("img_backbone.") for name in given):
        return None
    places = {published_name(name): name for name in own}
    wanted = {name: tuple(own[places[name]].shape) for name in places if _of_the_backbone(name)}
    theirs = {name: tensor for name, tensor in given.items() if _of_the_backbone(name)}
    problems = misfits(theirs, wanted, wanted)
    if problems:
        raise CheckpointError(
            f"the image backbone of this file is another one: {few(problems)}. Give weights of "
            "the same network."
        )
    neck = {n for n in places.keys() & given.keys() if n.startswith("img_neck.")}
    fits = {n for n in neck if given[n].shape == own[places[n]].shape}
    return {places[name]: given[name] for name in wanted.keys() | fits}


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with the older name of offset convolutions brought up to date."""
    return {name.replace("conv2_offset.", "conv2.conv_offset."): t for name, t in tensors.items()}


def _of_the_backbone(name: str) -> bool:
    """Tell whether a published name is of the backbone, and more than a step counter."""
    return name.startswith("img_backbone.") and not name.endswith("num_batches_tracked")


def _published_shape(name: str, own: Tensor) -> tuple[int, ...]:
    """Return a tensor's shape in published files: values of attention are linear layers there."""
    shape = tuple(own.shape)
    return shape[:2] if name.endswith(".value.weight") else shape

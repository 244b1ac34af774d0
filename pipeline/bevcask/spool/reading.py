"""From what a spool holds to what methods read: axes, classes, boxes. The border of conventions."""

import math

import torch
from torch import Tensor

from bevcask.geometry import BOX_FIELDS, CAMERAS, CLASSES
from bevcask.spool.manifest import DENSE, MAX_BOXES, Manifest, SpoolBoxes, SpoolTap

_ZERO = {"x": 0.0, "y": math.pi / 2, "-x": math.pi, "-y": -math.pi / 2}


def canonical_map(value: Tensor, said: SpoolTap, classes: tuple[str, ...]) -> Tensor:
    """Return a dense map (C, [Z,] Y, X), axes rising with metres; a view where nothing is turned.

    A heatmap's channels are put in the order of `geometry.CLASSES`. Logits go through a sigmoid,
    those of several classes of a voxel through a softmax.
    """
    letters = [axis.lstrip("-") for axis in said.order]
    if against := [place for place, axis in enumerate(said.order) if axis.startswith("-")]:
        value = value.flip(against)
    map_CYX = value.permute([letters.index(axis) for axis in "CZYX" if axis in letters])
    if said.kind == "heatmap" and classes != CLASSES:
        map_CYX = map_CYX[[classes.index(name) for name in CLASSES]]
    if said.values == "logits" and said.kind == "occupancy" and len(map_CYX) > 1:
        return map_CYX.float().softmax(0)
    if said.values == "logits" and said.kind in ("heatmap", "occupancy"):
        return map_CYX.float().sigmoid()
    return map_CYX


def canonical_boxes(rows: Tensor, said: SpoolBoxes, classes: tuple[str, ...]) -> Tensor:
    """Return boxes (N, 11) float32: `geometry.BOX_FIELDS`, score, class; best first, 500 at most.

    Args:
        rows: (N, columns) as recorded.
        said: what the columns are.
        classes: name of each recorded label.
    """
    rows = rows.double()
    column = {name: rows[:, place] for place, name in enumerate(said.columns)}
    sign = 1.0 if said.yaw_turns == "counterclockwise" else -1.0
    yaw = _ZERO[said.yaw_zero] + sign * column["yaw"]
    column["yaw"] = torch.atan2(yaw.sin(), yaw.cos())
    if said.z == "bottom":
        column["z"] = column["z"] + column["h"] / 2
    nothing = rows.new_zeros(len(rows))
    fields = [column.get(name, nothing) for name in BOX_FIELDS]
    order = torch.tensor([CLASSES.index(name) for name in classes])
    fields += [column["score"], order[column["label"].long()].double()]
    boxes_N11 = torch.stack(fields, dim=1).float()
    return boxes_N11[boxes_N11[:, 9].argsort(descending=True, stable=True)][:MAX_BOXES]


def canonical(values: dict[str, Tensor], manifest: Manifest, names: list[str]) -> dict[str, Tensor]:
    """Return the named taps of one sample in any float dtype; sets are not padded."""
    found = {}
    for name in names:
        said = manifest.taps[name]
        if said.kind in DENSE:
            found[name] = canonical_map(values[name], said, manifest.classes)
        elif said.kind == "box_set":
            found[name] = canonical_boxes(values[name], manifest.boxes, manifest.classes)
        elif said.kind == "polylines":
            rows = values[name]
            found[name] = rows[rows[:, -2].argsort(descending=True, stable=True)]
        elif said.kind == "image_feature" and manifest.cameras != CAMERAS:
            found[name] = values[name][[manifest.cameras.index(camera) for camera in CAMERAS]]
        else:
            found[name] = values[name]
    return found

"""Short tap names of known mmdet3d models: one plain table. Anything else is a module path.

A model is looked up as `TYPE/MIDDLE_ENCODER`, then as `TYPE`; of its row, the taps whose modules
the model has are offered. PETR, DETR3D and BEVFusion live in mmdet3d's `projects/` folder, which
its wheel lacks: their rows were written from the sources and not run.
"""

from typing import Any

from pydantic import Field

from bevcask.config import Config

# What each letter means is in geometry.py; N is B * V, L the layers of a decoder (the last is read)
_AXES = {"dense_bev": "BCYX", "heatmap": "BCYX", "query_set": "BQC", "image_feature": "NCHW"}


class Tap(Config):
    """Where a tap is read, and what it is.

    `at` is the dotted path of a module, with indices or keys into its output: `pts_neck[0]`.
    """

    at: str = Field(pattern=r"^\w+(\.\w+)*(\[\w+\])*$", description="module path, e.g. pts_neck[0]")
    kind: str = Field("dense_bev", description=f"one of {', '.join(_AXES)}")
    axes: str | None = Field(
        None, description="order of the tensor's axes; default: that of the kind, e.g. BCYX"
    )
    nonnegative: bool = Field(False, description="values are >= 0 by construction (after a ReLU)")

    @property
    def order(self) -> str:
        return self.axes or _AXES[self.kind]


def _bev(at: str, **more: Any) -> Tap:
    return Tap(at=at, nonnegative=True, **more)


def _images(num_levels: int, module: str) -> dict[str, Tap]:
    return {
        f"image.fpn{level}": Tap(at=f"{module}[{level}]", kind="image_feature")
        for level in range(num_levels)
    }


_NECK = _bev("pts_neck[0]")
_PILLARS = {f"bev.block{level}": _bev(f"pts_backbone[{level}]") for level in range(3)}
# A sparse encoder has strided before SECOND does: its stages lie on the grids of blocks 1 and 2.
_VOXELS = {
    "bev.encoder": _bev("pts_middle_encoder"),
    "bev.block1": _bev("pts_backbone[0]"),
    "bev.block2": _bev("pts_backbone[1]"),
}
_CENTERS = {"head.heatmap": Tap(at="pts_bbox_head", kind="heatmap")}
_FPN = {f"bev.fpn{level}": _bev(f"pts_neck[{level}]") for level in range(3)}
_SECOND = {
    "bev.block0": _bev("backbone[0]"),
    "bev.block1": _bev("backbone[1]"),
    "bev.block2": _bev("backbone[2]"),
    "bev.neck": _bev("neck[0]"),
}

FAMILIES: dict[str, dict[str, Tap]] = {
    "CenterPoint": {**_PILLARS, "bev.neck": _NECK, **_CENTERS},
    "CenterPoint/SparseEncoder": {**_VOXELS, "bev.neck": _NECK, **_CENTERS},
    "MVXFasterRCNN": {**_PILLARS, "bev.neck": _NECK, **_FPN},
    "VoxelNet": _SECOND,
    "FCOSMono3D": _images(5, "neck"),
    "ImVoxelNet": {"bev.neck": _bev("neck_3d[0]"), **_images(4, "neck")},
    "PETR": {
        "query.last": Tap(at="pts_bbox_head.transformer[0]", kind="query_set", axes="LBQC"),
        **_images(2, "img_neck"),
    },
    "DETR3D": {
        "query.last": Tap(at="pts_bbox_head.transformer[0]", kind="query_set", axes="LQBC"),
        **_images(4, "img_neck"),
    },
    "BEVFusion": {
        "bev.camera": Tap(at="vtransform"),
        "bev.lidar": Tap(at="pts_middle_encoder"),
        "bev.fused": Tap(at="fusion_layer"),
        **{name: tap for name, tap in _VOXELS.items() if name != "bev.encoder"},
        "bev.neck": _NECK,
        "query.last": Tap(at="bbox_head.decoder.0", kind="query_set", axes="BCQ"),
        "head.heatmap": Tap(at="bbox_head[0][0][dense_heatmap]", kind="heatmap"),
        **_images(2, "img_neck"),
    },
}
IMAGE_AUG_APART = frozenset({"BEVFusion"})
"""Models that take camera matrices of the original image, and the augmentation beside them."""


def taps_of(model: Any) -> dict[str, Tap]:
    """Return the named taps of a model section; empty for an unknown family."""
    middle = model.get("pts_middle_encoder") or {}
    return FAMILIES.get(f"{model['type']}/{middle.get('type')}", FAMILIES.get(model["type"], {}))

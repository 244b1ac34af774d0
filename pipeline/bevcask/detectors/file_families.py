"""Families of weights files: what tells one, which detectors read it, why others are not read.

A file is known by names that no other family has. Where a family has no detector here, `lacks` says
what of it our networks do not compute; such a file is refused whole.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

_SPARSE = "sparse 3D convolutions need compiled operators, which plain torch does not have"
_ELSEWHERE = "Run it where it was made, or through mmdet3d (docs/bring_your_own_teacher.md)."


@dataclass(frozen=True)
class Family:
    """A kind of file.

    Attributes:
        name: for people.
        marks: each begins the name of a tensor in it.
        types: detectors here that read it, by their names in the registry.
        lacks: why no detector here reads it; None where one does.
    """

    name: str
    marks: tuple[str, ...]
    types: tuple[str, ...] = ()
    lacks: str | None = None

    def made(self, names: Collection[str]) -> bool:
        """Tell whether a file with tensors of these names is of the family."""
        return all(any(name.startswith(mark) for name in names) for mark in self.marks)


_HEAD = "pts_bbox_head."
_READ = f"{_HEAD}transformer.decoder.layers.0.attentions.1."
FAMILIES = (
    Family("RayDN", (f"{_READ}weights_fc.",), ("raydn",)),
    Family("StreamPETR", (f"{_HEAD}featurized_pe.",), ("streampetr",)),
    Family("BEVFormer", (f"{_HEAD}transformer.cams_embeds",), ("bevformer",)),
    Family(
        "CenterPoint of mmdet3d, pillars",
        ("pts_voxel_encoder.pfn_layers.", "pts_backbone.blocks.", f"{_HEAD}task_heads."),
        ("centerpoint",),
    ),
    Family(
        "CenterPoint of mmdet3d, voxels",
        ("pts_middle_encoder.conv_input.", f"{_HEAD}task_heads."),
        lacks=f"its middle encoder is a sparse network: {_SPARSE}. teacher=mmdet3d reads it: "
        "mmdet3d_centerpoint_voxel01 or mmdet3d_centerpoint_voxel0075",
    ),
    Family(
        "BEVDet family of HuangJunJie2017",
        ("img_view_transformer.", "img_bev_encoder_backbone.", f"{_HEAD}task_heads."),
        ("bevdepth",),
    ),
    Family(
        "BEVDepth of Megvii",
        ("backbone.depth_net.", "backbone.img_backbone.", "head."),
        lacks="its depth net normalises the camera numbers (backbone.depth_net.bn) and ends with a "
        "deformable convolution (backbone.depth_net.depth_conv.4), its ASPP begins with a 1x1 "
        "convolution, its BEV trunk is a ResNet-18 with a SECONDFPN on four levels, and its BEV "
        "lies in the ego frame; bevdepth here has none of these. " + _ELSEWHERE,
    ),
    Family(
        "BEVFusion of mit-han-lab",
        ("encoders.camera.", "fuser.", "decoder.", "heads."),
        lacks=f"its LiDAR branch (encoders.lidar.backbone) is a sparse network: {_SPARSE}; its "
        "camera neck joins levels by concatenation and its depth transform reads LiDAR depth; "
        "bevfusion here has dense pillars, an adding pyramid and no such input. " + _ELSEWHERE,
    ),
    Family(
        "PillarNeXt of qcraftai",
        ("reader.pfn_layers.", "backbone.blocks.", "backbone.mapping.", "head.tasks."),
        lacks=f"its stages convolve occupied pillars alone: {_SPARSE}, and the dense stages here "
        "give other numbers from the same weights. " + _ELSEWHERE,
    ),
    Family(
        "CenterPoint of tianweiy",
        ("reader.", "neck.", "bbox_head.tasks."),
        lacks="its names and class order are not known here. " + _ELSEWHERE,
    ),
)
_STUDENT = "student."


def family_of(tensors: Mapping[str, Tensor]) -> Family | None:
    """Return which family a file is of; None for native files and those nobody knows here.

    Of a distiller's file the student is asked about.
    """
    names = {name.removeprefix(_STUDENT) for name in tensors}
    return next((family for family in FAMILIES if family.made(names)), None)

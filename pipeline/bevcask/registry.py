"""Plain tables from a name to `module:Class`, loaded when first asked.

Adding a plug-in is one line here. Nothing is discovered, nothing registers itself.
"""

import difflib
import importlib
from collections.abc import Iterable

from bevcask.errors import UnknownNameError

DETECTORS = {
    "bevdepth": "bevcask.detectors.bevdepth:BEVDepth",
    "bevfusion": "bevcask.detectors.bevfusion:BEVFusion",
    "bevsimdet": "bevcask.detectors.bevsimdet:BEVSimDet",
    "centerpoint": "bevcask.detectors.centerpoint:CenterPoint",
    "mmdet3d": "bevcask.detectors.mmdet3d.detector:Mmdet3dDetector",
    "pillarnext": "bevcask.detectors.pillarnext:PillarNeXt",
}
TEACHERS = {
    "native": "bevcask.teachers.native:NativeTeacher",
}
METHODS = {
    "none": "bevcask.methods.none:NoDistillation",
    "distillbev": "bevcask.methods.distillbev:DistillBEV",
    "tigdistill": "bevcask.methods.tigdistill:TiGDistill",
    "simdistill": "bevcask.methods.simdistill:SimDistill",
}
KINDS = {
    "dense_bev": "bevcask.targets.kinds:DenseBEV",
    "heatmap": "bevcask.targets.kinds:Heatmap",
    "box_code": "bevcask.targets.kinds:BoxCode",
    "box_set": "bevcask.targets.kinds:BoxSet",
    "query_set": "bevcask.targets.kinds:QuerySet",
    "point_set": "bevcask.targets.pixels:PointSet",
    "image_feature": "bevcask.targets.kinds:ImageFeature",
    "image_transform": "bevcask.targets.kinds:ImageTransform",
}
_TABLES = {
    "detector": DETECTORS,
    "teacher": TEACHERS,
    "method": METHODS,
    "kind": KINDS,
}


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def load_class(table: str, name: str) -> type:
    """Import the class a name stands for.

    Args:
        table: one of `detector`, `teacher`, `method`, `kind`.
        name: a key of that table.

    Raises:
        UnknownNameError: the table has no such name.
    """
    entries = _TABLES[table]
    if name not in entries:
        raise UnknownNameError(
            f"unknown {table} {name!r}.{suggest(name, entries)} "
            f"Known: {', '.join(sorted(entries))}."
        )
    module, _, attribute = entries[name].partition(":")
    loaded: type = getattr(importlib.import_module(module), attribute)
    return loaded

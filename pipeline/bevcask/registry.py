"""Plain tables from a name to `module:Class`, loaded when first asked.

Adding a plug-in is one line here. Nothing is discovered, nothing registers itself. A plug-in of
somebody else's package is named in full, `their_package.module:Class`, wherever a detector, teacher
or method is named.
"""

import difflib
import importlib
from collections.abc import Iterable

from bevcask.errors import UnknownNameError

DETECTORS = {
    "bevdepth": "bevcask.detectors.bevdepth:BEVDepth",
    "bevformer": "bevcask.detectors.bevformer:BEVFormer",
    "bevfusion": "bevcask.detectors.bevfusion:BEVFusion",
    "bevsimdet": "bevcask.detectors.bevsimdet:BEVSimDet",
    "centerpoint": "bevcask.detectors.centerpoint:CenterPoint",
    "mmdet3d": "bevcask.detectors.mmdet3d.detector:Mmdet3dDetector",
    "pillarnext": "bevcask.detectors.pillarnext:PillarNeXt",
    "raydn": "bevcask.detectors.raydn:RayDN",
    "streampetr": "bevcask.detectors.streampetr:StreamPETR",
}
TEACHERS = {
    "native": "bevcask.teachers.native:NativeTeacher",
    "spool": "bevcask.teachers.spool:SpoolTeacher",
    "ensemble": "bevcask.teachers.ensemble:EnsembleTeacher",
}
METHODS = {
    "none": "bevcask.methods.none:NoDistillation",
    "distillbev": "bevcask.methods.distillbev:DistillBEV",
    "tigdistill": "bevcask.methods.tigdistill:TiGDistill",
    "simdistill": "bevcask.methods.simdistill:SimDistill",
    "focaldistiller": "bevcask.methods.focaldistiller:FocalDistiller",
    "fd3d": "bevcask.methods.fd3d:FD3D",
    "harmodistill": "bevcask.methods.harmodistill:HarmoDistill",
    "several": "bevcask.methods.several:Several",
}
KINDS = {
    "dense_bev": "bevcask.targets.map_kinds:DenseBEV",
    "heatmap": "bevcask.targets.map_kinds:Heatmap",
    "occupancy": "bevcask.targets.map_kinds:Occupancy",
    "voxel_labels": "bevcask.targets.map_kinds:VoxelLabels",
    "box_code": "bevcask.targets.map_kinds:BoxCode",
    "box_set": "bevcask.targets.set_kinds:BoxSet",
    "polylines": "bevcask.targets.set_kinds:Polylines",
    "query_set": "bevcask.targets.set_kinds:QuerySet",
    "query_layers": "bevcask.targets.set_kinds:QueryLayers",
    "track_ids": "bevcask.targets.set_kinds:TrackIds",
    "query_places": "bevcask.targets.set_kinds:QueryPlaces",
    "query_points": "bevcask.targets.set_kinds:QueryPoints",
    "point_set": "bevcask.targets.pixels:PointSet",
    "channel_moments": "bevcask.targets.moments:ChannelMoments",
    "image_feature": "bevcask.targets.map_kinds:ImageFeature",
    "image_transform": "bevcask.targets.map_kinds:ImageTransform",
}
_ALIKE = 0.5
_TABLES = {
    "detector": DETECTORS,
    "teacher": TEACHERS,
    "method": METHODS,
    "kind": KINDS,
}


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest known name, or an empty string.

    Names with a dot must be alike behind the last one too: a shared `bev.` is no likeness.
    """
    end = name.rpartition(".")[2]
    likely = [
        own
        for own in known
        if difflib.SequenceMatcher(None, end, own.rpartition(".")[2]).ratio() >= _ALIKE
    ]
    near = difflib.get_close_matches(name, likely, n=1, cutoff=_ALIKE)
    return f" Did you mean {near[0]!r}?" if near else ""


def load_class(table: str, name: str) -> type:
    """Import the class a name stands for.

    Args:
        table: one of `detector`, `teacher`, `method`, `kind`.
        name: a key of that table; or, but for kinds, which a cache names, `module:Class`.

    Raises:
        UnknownNameError: the table has no such name, or the module no such class.
    """
    entries = _TABLES[table]
    if ":" in name and table != "kind":
        return _from_outside(table, name)
    if name not in entries:
        raise UnknownNameError(
            f"unknown {table} {name!r}.{suggest(name, entries)} "
            f"Known: {', '.join(sorted(entries))}."
        )
    module, _, attribute = entries[name].partition(":")
    loaded: type = getattr(importlib.import_module(module), attribute)
    return loaded


def _from_outside(table: str, name: str) -> type:
    module, _, attribute = name.partition(":")
    try:
        loaded = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownNameError(
            f"{table} {name!r} cannot be imported: {error}. Expected MODULE:CLASS of an installed "
            "package, or of one on PYTHONPATH."
        ) from error
    if not isinstance(loaded, type):
        raise UnknownNameError(f"{table} {name!r} is no class but a {type(loaded).__name__}.")
    return loaded

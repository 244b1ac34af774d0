"""How far is an aligned target from what the teacher would have said of the augmented frame?

A cached target is aligned, not asked anew: T(A x) is not A T(x), because grids, anchors and habit
are not symmetric. This is the gap a student trained on a cache lives with; a study, not a check.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor

from bevcask.cache.reader import Cache
from bevcask.data.loader import ViewSource
from bevcask.data.samples import collate
from bevcask.detectors.base import Batch
from bevcask.errors import ConfigError
from bevcask.geometry import Matrix, bev_matrix, transform_points
from bevcask.progress import Ticker
from bevcask.targets.align import Align
from bevcask.targets.region import box_mask
from bevcask.targets.spec import TargetSpec
from bevcask.teachers.base import Teacher

AUGMENTATIONS: Mapping[str, Matrix] = {
    "none": bev_matrix(),
    "flip x": bev_matrix(flip_x=True),
    "flip y": bev_matrix(flip_y=True),
    "flip x and y": bev_matrix(flip_x=True, flip_y=True),
    "rotate 5": bev_matrix(rotation=math.radians(5)),
    "rotate 10": bev_matrix(rotation=math.radians(10)),
    "rotate 22.5": bev_matrix(rotation=math.radians(22.5)),
    "scale 0.95": bev_matrix(scale=0.95),
    "scale 1.05": bev_matrix(scale=1.05),
}
_MAPS = ("dense_bev", "heatmap")


@dataclass
class _Gap:
    """Sums over frames, on valid cells and on those of them that belong to an object."""

    off: float = 0.0
    said: float = 0.0
    off_objects: float = 0.0
    said_objects: float = 0.0
    aligned: float = 0.0
    product: float = 0.0

    def __add__(self, other: "_Gap") -> "_Gap":
        pairs = zip(astuple(self), astuple(other), strict=True)
        return _Gap(*(one + more for one, more in pairs))

    def to_dict(self) -> dict[str, float | None]:
        return {
            "l2": math.sqrt(self.off / self.said) if self.said else None,
            "l2_objects": math.sqrt(self.off_objects / self.said_objects)
            if self.said_objects
            else None,
            "cosine": self.product / math.sqrt(self.said * self.aligned)
            if self.said and self.aligned
            else None,
        }


Gaps = dict[str, dict[str, _Gap]]
"""Augmentation -> tap -> sums."""


def equivariance_sums(
    cache: Cache, teacher: Teacher, source: ViewSource, tokens: Sequence[str],
    device: torch.device, bar: Ticker,
) -> Gaps:  # fmt: skip
    """Show the teacher augmented frames and compare with the aligned stored target.

    Dense maps are compared at the canonical cells: what the teacher says of the augmented frame,
    sampled where each cell went, against what is stored there. Heatmaps are compared in the
    augmented frame: what is stored, its peaks drawn where they went. Both are what methods see.
    `none` shows the codec alone.

    Args:
        cache: an open cache.
        teacher: the one that made it, loaded on `device`.
        source: gives clean frames, as the teacher wants them.
        tokens: which frames.
        device: where the teacher runs.
        bar: moved by one a frame and augmentation.

    Raises:
        ConfigError: the cache holds no clean BEV map.
    """
    maps = clean_maps(cache)
    gaps = {augmentation: {name: _Gap() for name in maps} for augmentation in AUGMENTATIONS}
    for token in tokens:
        clean = collate([source.read(token, 0)])
        for augmentation, matrix in AUGMENTATIONS.items():
            batch = augmented(clean, matrix)
            said = teacher(batch.to(device), list(maps))
            for name, spec in maps.items():
                _add(gaps[augmentation][name], cache, spec, batch, said[name].float().cpu())
            bar.advance()
    return gaps


def equivariance_gap(parts: Sequence[Gaps]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return the gap between aligned targets and an augmented teacher.

    Args:
        parts: `equivariance_sums` of some frames and of others.

    Returns:
        Augmentation -> tap -> `l2`: |aligned - said| / |said| over valid stored cells of all
        frames; `l2_objects`: the same on cells of ground-truth boxes; `cosine`: between both sides
        as one vector each, so that a cell counts as much as it says. None where there was nothing
        to compare.
    """
    return {
        augmentation: {
            name: sum((part[augmentation][name] for part in parts), _Gap()).to_dict()
            for name in by_tap
        }
        for augmentation, by_tap in parts[0].items()
    }


def clean_maps(cache: Cache) -> dict[str, TargetSpec]:
    """Return what can be compared: BEV maps that the teacher says of clean frames.

    Raises:
        ConfigError: there are none.
    """
    maps = {
        name: spec
        for name, spec in cache.specs.items()
        if spec.tap.kind in _MAPS and spec.view == 0
    }
    if not maps:
        raise ConfigError(
            f"equivariance= compares BEV maps of clean frames, and cache {cache.url} has none: "
            f"{', '.join(cache.specs)}. Targets of replayed views and of images have no BEV gap; "
            "leave equivariance out."
        )
    return maps


def augmented(batch: Batch, matrix: Matrix) -> Batch:
    """Return a clean batch under a BEV augmentation: points and history too."""
    matrix_B44 = torch.from_numpy(matrix).float() @ batch.bev_aug_B44
    history = tuple(augmented(earlier, matrix) for earlier in batch.history)
    points = None
    if batch.points is not None:
        points = [transform_points(own, matrix) for own in batch.points]
    return replace(batch, bev_aug_B44=matrix_B44, points=points, history=history)


def _add(gap: _Gap, cache: Cache, spec: TargetSpec, batch: Batch, said_1CYX: Tensor) -> None:
    """Add one frame of one tap to its gap."""
    grid = spec.tap.grid
    assert grid is not None
    stored = cache.read(batch.tokens[0], [spec.key])[spec.key]
    aligned_1CYX = torch.from_numpy(stored.floats())[None]
    kept_1YX = torch.ones((1, *grid.shape_YX), dtype=torch.bool)
    if stored.region is not None:
        kept_1YX = torch.from_numpy(stored.region)[None]
    align = Align(batch.bev_aug_B44)
    boxes = None if batch.labels is None else batch.labels.canonical_boxes
    if spec.tap.kind == "heatmap":
        aligned_1CYX = align.heatmap(aligned_1CYX, grid, grid)
        boxes = None if boxes is None else align.boxes(boxes)
        valid_1YX = torch.ones_like(kept_1YX)
        if stored.region is not None:
            valid_1YX = (aligned_1CYX > 0).any(1)
    else:
        said_1CYX, valid_1YX = align.cells(said_1CYX, grid, grid)
        valid_1YX = valid_1YX & kept_1YX
    objects_1YX = torch.zeros_like(valid_1YX)
    if boxes is not None:
        objects_1YX = box_mask(boxes, grid, margin=0.0, touched=False)
    off_1YX = (aligned_1CYX - said_1CYX).square().sum(1)
    said_1YX = said_1CYX.square().sum(1)
    gap.off += float(off_1YX[valid_1YX].sum())
    gap.said += float(said_1YX[valid_1YX].sum())
    gap.off_objects += float(off_1YX[valid_1YX & objects_1YX].sum())
    gap.said_objects += float(said_1YX[valid_1YX & objects_1YX].sum())
    gap.aligned += float(aligned_1CYX.square().sum(1)[valid_1YX].sum())
    gap.product += float((aligned_1CYX * said_1CYX).sum(1)[valid_1YX].sum())

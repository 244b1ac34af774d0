"""DistillBEV (Wang et al., ICCV 2023): imitate BEV features by region, at several levels.

Defaults are the CNN line, `configs/method/distillbev_transformer.yaml` is the other one. Formulas,
sources and what differs from the released code are in methods/README.md. Not here: starting the
student's head from the teacher's (`student.head=FILE`).
"""

import functools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from bevcask.detectors.base import Labels
from bevcask.geometry import Grid
from bevcask.methods import compat
from bevcask.methods.adapters import Adapter
from bevcask.methods.base import Method, Pair, Target, full_precision, require_unmoved
from bevcask.methods.distillbev_checks import across_pairs, level_misfits
from bevcask.methods.distillbev_settings import Level, Settings
from bevcask.methods.regions import (
    Owner,
    Regions,
    boxes_in_reach,
    claims,
    component_share,
    foreground,
    moved_mask,
    share,
    split,
)
from bevcask.targets.align import Align
from bevcask.targets.spec import Region, TapInfo, TargetSpec


class DistillBEV(Method):
    """Foreground, background, false-positive and spatial terms at each level; maybe query terms."""

    Config = Settings

    def __init__(self, config: Settings) -> None:
        super().__init__()
        self.config = config
        self.levels = nn.ModuleDict()

    def pairs(self) -> list[Pair]:
        config = self.config
        maps = [Pair(own.name, own.student, own.teacher, whole=True) for own in config.levels]
        queries = [Pair(own.name, own.student, own.teacher, "query_set") for own in config.queries]
        seen = Region("confident", config.threshold)
        his = [Pair("confidence", None, config.heatmap, "heatmap", seen)]
        own = [Pair("claims", config.student_heatmap, None, "heatmap")]
        return [
            *maps,
            *(his if config.reads_teacher_heatmap else ()),
            *(own if config.reads_student_heatmap else ()),
            *queries,
        ]

    def misfits(self, pair: Pair, near: TapInfo, far: TapInfo) -> Iterator[str]:
        for level in self.config.levels:
            if level.name == pair.role:
                yield from level_misfits(level, near, far)
        for queries in self.config.queries:
            if queries.name == pair.role and queries.states and near.shape != far.shape:
                yield (
                    f"states are compared query by query, but the student has {near.shape} and "
                    f"the teacher {far.shape} (queries, channels)"
                )

    def mismatches(
        self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]
    ) -> list[str]:
        return [
            *super().mismatches(student, specs),
            *across_pairs(self.config, student, specs),
        ]

    def create(self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]) -> None:
        for level in self.config.levels:
            self.levels[level.name] = LevelLoss(self.config, level, student, specs)

    def forward(
        self,
        student: Mapping[str, Tensor],
        targets: Mapping[str, Target],
        labels: Labels,
        align: Align,
        progress: float,
    ) -> dict[str, Tensor]:
        """Return `distillbev/LEVEL/TERM`: foreground, background, spatial, maybe false_positive.

        Query sets add `distillbev/LEVEL/similarity_QUERIES` and `distillbev/QUERIES/states`.
        Adapters run under the caller's autocast, the losses in float32.

        Raises:
            TargetMismatchError: BEV augmentation, where the settings refuse it.
        """
        if self.config.mode == "compat":
            require_unmoved(align, "distillbev (mode=compat)")
        if self.config.unmoved:
            require_unmoved(align, "distillbev (unmoved=true)")
        losses: dict[str, Tensor] = {}
        boxes_of = functools.cache(functools.partial(boxes_in_reach, labels))
        for level in self.config.levels:
            terms = self.levels[level.name](student, targets, boxes_of, align)
            losses |= {f"distillbev/{level.name}/{term}": loss for term, loss in terms.items()}
        for own in self.config.queries:
            if own.states:
                gap = squared_gap(student[own.student], targets[own.teacher])
                losses[f"distillbev/{own.name}/states"] = own.states * gap
        return losses


class LevelLoss(nn.Module):
    """The terms of one level, with the adapter and the convolution that are trained for it.

    Args:
        config: weights and temperatures.
        level: which maps, which adapter.
        student: the student's taps.
        specs: the targets.
    """

    def __init__(
        self,
        config: Settings,
        level: Level,
        student: Mapping[str, TapInfo],
        specs: Mapping[str, TargetSpec],
    ) -> None:
        super().__init__()
        near, far = student[level.student], specs[level.teacher].tap
        assert near.grid is not None
        assert far.grid is not None
        self._config, self._level = config, level
        self._compat = config.mode == "compat"
        self._grid = far.grid
        heatmap = student.get(config.student_heatmap)
        self._heatmap_grid = heatmap.grid if heatmap else None
        self._queries = [
            own for own in config.queries if own.similarity and own.level == level.name
        ]
        self.adapter = Adapter(level.adapter, near, far, align_corners=self._compat)
        self.smooth = nn.Conv2d(1, 1, 3, padding=1)

    def forward(
        self,
        student: Mapping[str, Tensor],
        targets: Mapping[str, Target],
        boxes_of: Callable[[Grid, Grid], list[Tensor]],
        align: Align,
    ) -> dict[str, Tensor]:
        """Return the weighted terms; false_positive only at levels that have them.

        `boxes_of` is `boxes_in_reach` of the labels.
        """
        teacher_BCYX = targets[self._level.teacher].values
        adapted_BCYX = self.adapter(student[self._level.student])
        with torch.autocast(adapted_BCYX.device.type, enabled=False):
            adapted_BCYX = full_precision(adapted_BCYX)
            smoothed_B1YX = self.smooth(adapted_BCYX.mean(1, keepdim=True))
            smoothed_B1YX, _ = align.cells(smoothed_B1YX, self.adapter.grid, self._grid)
            read_BCYX, valid_BYX = align.cells(adapted_BCYX, self.adapter.grid, self._grid)
            claimed_BYX = self._claimed(student, targets, align)
            boxes = boxes_of(self.adapter.grid, self._grid)
            parts = self._split(boxes, valid_BYX, claimed_BYX)
            terms = self._region_terms(read_BCYX, teacher_BCYX, parts, valid_BYX)
            spatial = spatial_loss(smoothed_B1YX[:, 0], teacher_BCYX, valid_BYX)
            terms["spatial"] = self._config.spatial * spatial
            for own in self._queries:
                near_BYX = similarity(read_BCYX, Target(student[own.student]))
                gap_BYX = (near_BYX - similarity(teacher_BCYX, targets[own.teacher])) ** 2
                loss = (gap_BYX * share(valid_BYX)).sum() / len(gap_BYX)
                terms[f"similarity_{own.name}"] = own.similarity * loss
        return terms

    def _claimed(
        self, student: Mapping[str, Tensor], targets: Mapping[str, Target], align: Align
    ) -> Tensor | None:
        """Return the canonical cells (B, Y, X) where an object is claimed; None if none matters."""
        config, teacher_BYX, student_BYX = self._config, None, None
        if not self._level.false_positives:
            return None
        if config.reads_teacher_heatmap:
            teacher_BYX = confident(targets[config.heatmap], config.threshold)
        if config.reads_student_heatmap:
            assert self._heatmap_grid is not None
            mask_BYX = student[config.student_heatmap].amax(1) > config.threshold
            student_BYX = moved_mask(mask_BYX, align, self._heatmap_grid, self._grid)
        return claims(config.false_positives_by, teacher_BYX, student_BYX)

    def _split(self, boxes: list[Tensor], valid_BYX: Tensor, claimed_BYX: Tensor | None) -> Regions:
        owner: Owner = foreground
        if self._compat:  # the two released lines test other points of a cell
            cnn_line = self._config.attention == "both"
            owner = compat.corner_foreground if cnn_line else compat.centre_foreground
        parts = split(boxes, self._grid, valid_BYX, claimed_BYX, self._config.threshold, owner)
        return compat.background_at_least(parts) if self._compat else parts

    def _region_terms(
        self, student_BCYX: Tensor, teacher_BCYX: Tensor, parts: Regions, valid_BYX: Tensor
    ) -> dict[str, Tensor]:
        config = self._config
        square_BCYX = (student_BCYX - teacher_BCYX) ** 2
        gap_BYX = square_BCYX.sum(1)
        with torch.no_grad():
            focus_BYX = attention(teacher_BCYX, valid_BYX, config.temperature)
            if config.attention == "both":
                own_BYX = attention(student_BCYX, valid_BYX, config.temperature)
                focus_BYX = (focus_BYX + own_BYX) / 2

        def total(scale_BYX: Tensor, error_BYX: Tensor) -> Tensor:
            return (scale_BYX * focus_BYX * error_BYX).sum() / len(scale_BYX)

        terms = {
            "foreground": config.foreground * total(parts.box_scale_BYX, gap_BYX),
            "background": config.background * total(share(parts.background_BYX), gap_BYX),
        }
        if self._level.false_positives:
            kappa_BC = channel_attention(teacher_BCYX, valid_BYX, config.temperature)
            weighted_BYX = torch.einsum("bc,bcyx->byx", kappa_BC, square_BCYX)
            divide = component_share if config.false_positive_scale == "component" else share
            scale_BYX = divide(parts.false_positive_BYX)
            terms["false_positive"] = config.false_positive * total(scale_BYX, weighted_BYX)
        return terms


def confident(heatmap: Target, threshold: float) -> Tensor:
    """Return the cells (B, Y, X) where the teacher sees something, as decided in float32."""
    if heatmap.region_BYX is not None:
        return heatmap.region_BYX
    return heatmap.values.amax(1) > threshold


def attention(map_BCYX: Tensor, valid_BYX: Tensor, temperature: float) -> Tensor:
    """Return the spatial attention (B, Y, X): a softmax over valid cells, times their number.

    a(i) = n softmax_i(mean_c |F| / tau); 0 on invalid cells; its mean over valid cells is 1.
    """
    energy_BYX = map_BCYX.abs().mean(1) / temperature
    energy_BYX = energy_BYX.masked_fill(~valid_BYX, torch.finfo(energy_BYX.dtype).min)
    weight_BYX = energy_BYX.flatten(1).softmax(1).reshape(valid_BYX.shape)
    return weight_BYX * valid_BYX.sum((1, 2), keepdim=True) * valid_BYX


def channel_attention(map_BCYX: Tensor, valid_BYX: Tensor, temperature: float) -> Tensor:
    """Return the channel attention (B, C): C softmax_c(mean over valid cells |F| / tau)."""
    total_BC = (map_BCYX.abs() * valid_BYX[:, None]).sum((2, 3))
    mean_BC = total_BC / valid_BYX.sum((1, 2)).clamp(min=1)[:, None]
    return (mean_BC / temperature).softmax(1) * mean_BC.shape[1]


def spatial_loss(smoothed_BYX: Tensor, teacher_BCYX: Tensor, valid_BYX: Tensor) -> Tensor:
    """Return (1/B) sum over valid cells |mean_c T - conv3x3(mean_c S)|."""
    difference_BYX = (teacher_BCYX.mean(1) - smoothed_BYX).abs()
    return (difference_BYX * valid_BYX).sum() / len(smoothed_BYX)


def squared_gap(student_BQC: Tensor, teacher: Target) -> Tensor:
    """Return (1/B) sum over queries and channels (S - T)^2; query q meets query q."""
    square_BQC = (full_precision(student_BQC) - teacher.values) ** 2
    return (square_BQC * _counted(teacher)).sum() / len(square_BQC)


def similarity(map_BCYX: Tensor, queries: Target) -> Tensor:
    """Return the sum over queries of a map's dot product with each (B, Y, X).

    The dot product is linear, so the queries are summed first: one row that holds their sum says
    the same as all of them.
    """
    sum_BC = (full_precision(queries.values) * _counted(queries)).sum(1)
    return torch.einsum("bcyx,bc->byx", map_BCYX, sum_BC)


def _counted(queries: Target) -> Tensor:
    """Return which rows of a padded set count, bool (B, Q, 1)."""
    rows_Q = torch.arange(queries.values.shape[1], device=queries.values.device)
    if queries.count_B is None:
        return torch.ones_like(rows_Q, dtype=torch.bool)[None, :, None]
    return (rows_Q < queries.count_B[:, None])[..., None]

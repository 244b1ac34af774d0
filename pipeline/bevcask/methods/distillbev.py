"""DistillBEV (Wang et al., ICCV 2023): imitate BEV features by region, at three levels.

The loss of the CNN line; formulas, sources and what differs from the released code are in
methods/README.md. Not here: starting the student's head from the teacher's (`student.head=FILE`).
"""

from collections.abc import Mapping
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bevcask import config as configuration
from bevcask.detectors.base import Labels
from bevcask.errors import TargetMismatchError
from bevcask.methods.adapters import Adapter, AdapterName, adapted_grid
from bevcask.methods.base import Method, Target, full_precision
from bevcask.methods.regions import Regions, boxes_in_reach, share, split
from bevcask.registry import suggest
from bevcask.targets.align import Align, same_cells
from bevcask.targets.spec import Need, Region, TapInfo, TargetSpec


class Level(configuration.Config):
    """A pair of maps that meet."""

    name: str = Field(pattern="^[a-z][a-z0-9_]*$", description="its word in the loss names")
    student: str = Field(description="student tap, a dense_bev")
    teacher: str = Field(description="teacher tap, a dense_bev")
    adapter: AdapterName = Field(default="stack", description="stack | linear | identity")
    false_positives: bool = Field(
        default=False, description="treat cells apart where the teacher alone is confident"
    )


class DistillBEV(Method):
    """Foreground, background, false-positive and spatial terms at each level."""

    class Config(configuration.Config):
        """Settings; defaults are those of the released BEVDepth scripts."""

        levels: tuple[Level, ...] = Field(
            (
                Level(name="block1", student="bev.block1", teacher="bev.block1"),
                Level(name="block2", student="bev.block2", teacher="bev.block2"),
                Level(
                    name="neck",
                    student="bev.neck",
                    teacher="bev.neck",
                    adapter="linear",
                    false_positives=True,
                ),
            ),
            min_length=1,
            description="block 1, block 2 and neck: the best row of the published ablation",
        )
        heatmap: str = Field("head.heatmap", description="teacher tap that marks false positives")
        foreground: float = Field(6e-3, ge=0)  # released training script
        background: float = Field(4e-2, ge=0)  # released training script
        false_positive: float = Field(6e-2, ge=0)  # released script; head level only
        spatial: float = Field(2.5e-3, ge=0)  # released training script
        temperature: float = Field(0.5, gt=0)  # tau, paper supplement (quoted in issue 7)
        threshold: float = Field(0.1, gt=0, lt=1)  # gamma, paper supplement (issue 7)

        @model_validator(mode="after")
        def _names_differ(self) -> Self:
            names = [level.name for level in self.levels]
            if len(set(names)) < len(names):
                raise ValueError(f"level names must differ, got {', '.join(names)}")
            return self

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.levels = nn.ModuleDict()

    def needs(self) -> list[Need]:
        dense = [
            Need(level.name, level.teacher, "dense_bev", normaliser="all")
            for level in self.config.levels
        ]
        return [*dense, self._heatmap_need()] if self._reads_heatmap else dense

    def _heatmap_need(self) -> Need:
        region = Region("confident", self.config.threshold)
        return Need("confidence", self.config.heatmap, "heatmap", region)

    @property
    def _reads_heatmap(self) -> bool:
        return any(level.false_positives for level in self.config.levels)

    def student_taps(self) -> list[str]:
        return list(dict.fromkeys(level.student for level in self.config.levels))

    def build(self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]) -> None:
        problems = self._mismatches(student, specs)
        if problems:
            raise TargetMismatchError(
                "\n- ".join(["distillbev cannot join this student and these targets:", *problems])
            )
        for level in self.config.levels:
            self.levels[level.name] = LevelLoss(
                self.config, level, student[level.student], specs[level.teacher].tap
            )

    def _mismatches(
        self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]
    ) -> list[str]:
        """Return everything that keeps the levels from meeting."""
        problems = []
        heatmap = specs.get(self.config.heatmap)
        if self._reads_heatmap:
            problems += _heatmap_problems(self._heatmap_need(), heatmap, specs)
        for level in self.config.levels:
            near, far = student.get(level.student), specs.get(level.teacher)
            if near is None:
                problems.append(
                    f"level {level.name}: the student has no tap {level.student!r}."
                    f"{suggest(level.student, student)} It has: {', '.join(sorted(student))}"
                )
            elif near.kind != "dense_bev" or near.grid is None:
                problems.append(
                    f"level {level.name}: student tap {level.student!r} is a {near.kind}, "
                    "expected a dense_bev with a grid"
                )
            if far is None:
                problems.append(_missing_target(f"level {level.name}", level.teacher, specs))
            elif far.tap.kind != "dense_bev" or far.tap.grid is None:
                problems.append(
                    f"level {level.name}: target {level.teacher!r} is a {far.tap.kind}, expected "
                    "a dense_bev with a grid"
                )
            elif far.region.name != "all":
                problems.append(
                    f"level {level.name}: target {level.teacher!r} is stored on region "
                    f"{far.region.name!r}; attention runs over all cells, extract it on 'all'"
                )
            if near is not None and far is not None and near.grid and far.tap.grid:
                problems += _shape_problems(level, near, far.tap)
                if level.false_positives and heatmap and heatmap.tap.grid:
                    problems += _grid_problems(level, heatmap.tap, far.tap)
        return problems

    def forward(
        self,
        student: Mapping[str, Tensor],
        targets: Mapping[str, Target],
        labels: Labels,
        align: Align,
        progress: float,
    ) -> dict[str, Tensor]:
        """Return `distillbev/LEVEL/TERM`: foreground, background, spatial, maybe false_positive.

        Adapters run under the caller's autocast, the losses in float32.
        """
        losses: dict[str, Tensor] = {}
        for level in self.config.levels:
            terms = self.levels[level.name](
                student[level.student],
                targets[level.teacher].values,
                self._confident(targets) if level.false_positives else None,
                labels,
                align,
            )
            losses |= {f"distillbev/{level.name}/{term}": loss for term, loss in terms.items()}
        return losses

    def _confident(self, targets: Mapping[str, Target]) -> Tensor:
        """Return the cells (B, Y, X) where the teacher sees something, as decided in float32."""
        heatmap = targets[self.config.heatmap]
        if heatmap.region_BYX is not None:
            return heatmap.region_BYX
        return heatmap.values.amax(1) > self.config.threshold


class LevelLoss(nn.Module):
    """The terms of one level, with the adapter and the convolution that are trained for it.

    Args:
        config: weights and temperatures.
        level: which adapter.
        student: the student's tap.
        target: the teacher's tap.
    """

    def __init__(
        self, config: DistillBEV.Config, level: Level, student: TapInfo, target: TapInfo
    ) -> None:
        super().__init__()
        assert student.grid is not None
        assert target.grid is not None
        self._config = config
        self._reach = student.grid
        self._grid = target.grid
        self.adapter = Adapter(level.adapter, student, target)
        self.smooth = nn.Conv2d(1, 1, 3, padding=1)

    def forward(
        self,
        student_BCYX: Tensor,
        teacher_BCYX: Tensor,
        confident_BYX: Tensor | None,
        labels: Labels,
        align: Align,
    ) -> dict[str, Tensor]:
        """Return the weighted terms; false_positive only where `confident_BYX` is given."""
        adapted_BCYX = self.adapter(student_BCYX)
        with torch.autocast(adapted_BCYX.device.type, enabled=False):
            adapted_BCYX = full_precision(adapted_BCYX)
            smoothed_B1YX = self.smooth(adapted_BCYX.mean(1, keepdim=True))
            smoothed_B1YX, _ = align.cells(smoothed_B1YX, self.adapter.grid, self._grid)
            read_BCYX, valid_BYX = align.cells(adapted_BCYX, self.adapter.grid, self._grid)
            boxes = boxes_in_reach(labels, self._reach, self._grid)
            threshold = self._config.threshold
            regions = split(boxes, self._grid, valid_BYX, confident_BYX, threshold)
            terms = self._region_terms(
                read_BCYX, teacher_BCYX, regions, valid_BYX, confident_BYX is not None
            )
            spatial = spatial_loss(smoothed_B1YX[:, 0], teacher_BCYX, valid_BYX)
            return {**terms, "spatial": self._config.spatial * spatial}

    def _region_terms(
        self,
        student_BCYX: Tensor,
        teacher_BCYX: Tensor,
        regions: Regions,
        valid_BYX: Tensor,
        with_false_positives: bool,
    ) -> dict[str, Tensor]:
        config = self._config
        square_BCYX = (student_BCYX - teacher_BCYX) ** 2
        gap_BYX = square_BCYX.sum(1)
        with torch.no_grad():
            focus_BYX = (
                attention(teacher_BCYX, valid_BYX, config.temperature)
                + attention(student_BCYX, valid_BYX, config.temperature)
            ) / 2

        def total(scale_BYX: Tensor, error_BYX: Tensor) -> Tensor:
            return (scale_BYX * focus_BYX * error_BYX).sum() / len(scale_BYX)

        terms = {
            "foreground": config.foreground * total(regions.box_scale_BYX, gap_BYX),
            "background": config.background * total(share(regions.background_BYX), gap_BYX),
        }
        if with_false_positives:
            kappa_BC = channel_attention(teacher_BCYX, valid_BYX, config.temperature)
            weighted_BYX = torch.einsum("bc,bcyx->byx", kappa_BC, square_BCYX)
            scale_BYX = share(regions.false_positive_BYX)
            terms["false_positive"] = config.false_positive * total(scale_BYX, weighted_BYX)
        return terms


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


def _missing_target(who: str, name: str, specs: Mapping[str, TargetSpec]) -> str:
    return (
        f"{who}: no target {name!r}.{suggest(name, specs)} "
        f"There are: {', '.join(sorted(specs)) or 'none'}"
    )


def _heatmap_problems(
    need: Need, spec: TargetSpec | None, specs: Mapping[str, TargetSpec]
) -> list[str]:
    if spec is None:
        return [_missing_target("false positives", need.tap, specs)]
    if spec.tap.kind != "heatmap":
        return [f"false positives: target {need.tap!r} is a {spec.tap.kind}, expected a heatmap"]
    if spec.region == need.region or (spec.region.name == "all" and spec.codec == "float32"):
        return []
    return [
        f"false positives: target {need.tap!r} is stored on region {spec.region.name!r} "
        f"(threshold {spec.region.threshold:g}) as {spec.codec}; the threshold "
        f"{need.region.threshold:g} must have been decided in float32: extract it on region "
        f"{need.region.name!r} with that threshold, or on 'all' as float32"
    ]


def _shape_problems(level: Level, near: TapInfo, far: TapInfo) -> list[str]:
    assert near.grid is not None
    assert far.grid is not None
    problems = []
    try:
        adapted_grid(near.grid, far.grid)
    except ValueError as error:
        problems.append(f"level {level.name}: {level.student!r} to {level.teacher!r}: {error}")
    if level.adapter == "identity" and near.shape[0] != far.shape[0]:
        problems.append(
            f"level {level.name}: adapter identity needs equal channels, student {near.shape[0]}, "
            f"teacher {far.shape[0]}; use linear or stack"
        )
    return problems


def _grid_problems(level: Level, heatmap: TapInfo, far: TapInfo) -> list[str]:
    assert heatmap.grid is not None
    assert far.grid is not None
    if same_cells(heatmap.grid, far.grid):
        return []
    return [
        f"level {level.name}: false positives need the heatmap on the level's own cells, but "
        f"{heatmap.name!r} lies on {heatmap.grid} and {level.teacher!r} on {far.grid}"
    ]

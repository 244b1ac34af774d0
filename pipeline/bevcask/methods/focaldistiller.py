"""FocalDistiller: BEVFormer teaches a smaller BEVFormer by its image levels and its BEV map.

The baseline that was released beside FD3D (CVPR 2023) as "HeatmapDistiller"; `methods.fd3d` is a
reconstruction of the paper's own method. Formulas, sources and what differs from the released code
are in methods/README.md.
"""

from collections.abc import Iterator, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from bevcask import config as configuration
from bevcask.detectors.base import Labels
from bevcask.geometry import Grid
from bevcask.methods.adapters import Restore, restored_grid
from bevcask.methods.base import Method, Mode, Pair, Target, full_precision, require_unmoved
from bevcask.ranks import per_rank
from bevcask.targets.align import Align
from bevcask.targets.focal import focal_map, mask_grid, truncated
from bevcask.targets.ragged import kept
from bevcask.targets.spec import Region, TapInfo, TargetSpec

_WORD = "^[a-z][a-z0-9_]*$"


class ImageLevel(configuration.Config):
    """A pair of image feature maps that meet."""

    name: str = Field(pattern=_WORD, description="its word in the loss names")
    student: str = Field(description="student tap, an image_feature")
    teacher: str = Field(description="teacher tap, an image_feature of the same size")


_LEVELS = tuple(
    ImageLevel(name=f"level{i}", student=f"image.level{i}", teacher=f"image.level{i}")
    for i in range(4)
)


class FocalDistiller(Method):
    """Channel-wise distillation of image levels; squared gaps of BEV maps around objects."""

    class Config(configuration.Config):
        """Settings; defaults are those of the released configuration."""

        mode: Mode = Field("clean", description="clean | compat (released bugs; tests only)")
        levels: tuple[ImageLevel, ...] = Field(
            _LEVELS, description="image maps that meet"
        )  # released config: outputs of the four FPN convolutions
        student: str = Field("bev.encoder", description="student tap, a dense_bev")
        teacher: str = Field("bev.encoder", description="teacher tap, a dense_bev")
        channelwise: float = Field(
            0.25, ge=0, description="each level's weight; 0: no image level is needed"
        )  # released config
        masked: float = Field(
            0.1, ge=0, description="0: the BEV map is not needed"
        )  # released config
        temperature: float = Field(2.0, gt=0)  # tau, released config
        cell: float = Field(
            0.8, gt=0, description="metres, cells that the Gaussians of the mask are drawn on"
        )  # released config: 102.4 m on 512 / 4 cells

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self._compat = config.mode == "compat"
        self._grids: tuple[Grid, Grid] | None = None
        self._channels: dict[str, int] = {}
        self.widen = nn.ModuleDict()
        self.restore: nn.Module = nn.Identity()

    @property
    def _word(self) -> str:
        """The first part of the loss names."""
        return type(self).__name__.lower()

    @property
    def _levels(self) -> tuple[ImageLevel, ...]:
        return self.config.levels if self.config.channelwise else ()

    def pairs(self) -> list[Pair]:
        config = self.config
        bev = [Pair("bev", config.student, config.teacher, region=self._mask_region)]
        return image_pairs(self._levels) + (bev if config.masked else [])

    @property
    def _mask_region(self) -> Region:
        return Region("focal", cell=self.config.cell)

    def misfits(self, pair: Pair, near: TapInfo, far: TapInfo) -> Iterator[str]:
        if pair.kind == "image_feature":
            sizes = [(tap.shape[0], *tap.shape[2:]) for tap in (near, far)]
            if sizes[0] != sizes[1]:
                yield (
                    f"student tap {pair.student!r} has (cameras, rows, columns) {sizes[0]}, target "
                    f"{pair.teacher!r} {sizes[1]}; spatial softmaxes need the same positions"
                )
        elif pair.kind == "dense_bev":
            assert near.grid is not None
            assert far.grid is not None
            if restored_grid(near.grid, far.grid) is None:
                yield (
                    f"cells of student tap {pair.student!r} are {near.grid.cell:g} m, of target "
                    f"{pair.teacher!r} {far.grid.cell:g} m; each stage of the restore net halves a "
                    "cell, so the quotient must be 1, 2, 4, ..."
                )

    def create(self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]) -> None:
        config = self.config
        for own in self._levels:
            near, far = student[own.student].shape[1], specs[own.teacher].tap.shape[1]
            self._channels[own.name] = near
            self.widen[own.name] = widened(near, far) if near != far else nn.Identity()
        if config.masked:
            tap, target = student[config.student], specs[config.teacher].tap
            assert tap.grid is not None
            assert target.grid is not None
            grid = restored_grid(tap.grid, target.grid)
            assert grid is not None
            self._grids = grid, target.grid
            self.restore = Restore(tap.shape[0], target.shape[0], tap.grid, grid)

    def forward(
        self,
        student: Mapping[str, Tensor],
        targets: Mapping[str, Target],
        labels: Labels,
        align: Align,
        progress: float,
    ) -> dict[str, Tensor]:
        """Return `focaldistiller/LEVEL/channelwise` a level and `focaldistiller/bev/masked`.

        The mask is summed over the batches of all ranks; the release sums each process's by itself.
        The adapters run under the caller's autocast, the losses in float32.

        Raises:
            TargetMismatchError: mode `compat` meets BEV augmentation.
        """
        if self._compat:
            require_unmoved(align, f"{self._word} (mode=compat)")
        terms = {
            f"{self._word}/{own.name}/channelwise": self._channelwise(
                own.name, student[own.student], targets[own.teacher].values
            )
            for own in self._levels
        }
        if self.config.masked:
            terms[f"{self._word}/bev/masked"] = self._masked(
                student[self.config.student], targets[self.config.teacher].values, labels, align
            )
        return terms

    def _channelwise(self, level: str, near_BVCHW: Tensor, far_BVCHW: Tensor) -> Tensor:
        wide_NCHW = self.widen[level](near_BVCHW.flatten(0, 1))
        with torch.autocast(wide_NCHW.device.type, enabled=False):
            near_NCP = full_precision(wide_NCHW).flatten(2)
            far_NCP = full_precision(far_BVCHW).flatten(0, 1).flatten(2)
            loss = channelwise(near_NCP, far_NCP, self.config.temperature, cross=self._compat)
            return self.config.channelwise * loss / (len(near_NCP) * self._channels[level])

    def _masked(self, near_BCYX: Tensor, far_BCYX: Tensor, labels: Labels, align: Align) -> Tensor:
        assert self._grids is not None
        source, target = self._grids
        restored_BCYX = self.restore(near_BCYX)
        with torch.autocast(restored_BCYX.device.type, enabled=False):
            read_BCYX, valid_BYX = align.cells(full_precision(restored_BCYX), source, target)
            weight_BYX = focal_map(
                drawn_in_both(labels, source, target, self.config.cell), target, self.config.cell
            )
            return self.config.masked * masked_square(read_BCYX, far_BCYX, weight_BYX * valid_BYX)


def image_pairs(levels: tuple[ImageLevel, ...]) -> list[Pair]:
    """Return a pair a level, read whole."""
    return [Pair(own.name, own.student, own.teacher, "image_feature", whole=True) for own in levels]


def channelwise(
    student_NCP: Tensor, teacher_NCP: Tensor, temperature: float, cross: bool
) -> Tensor:
    """Return tau^2 sum KL(p_T, p_S) of softmaxes over positions, summed over images and channels.

    Args:
        student_NCP: one map of P positions an image and channel.
        teacher_NCP: the same of the teacher.
        temperature: tau.
        cross: leave the teacher's entropy in, as released: a constant with no gradient.
    """
    log_p_NCP = (student_NCP / temperature).log_softmax(2)
    log_t_NCP = (teacher_NCP / temperature).log_softmax(2)
    if cross:
        return -(log_t_NCP.exp() * log_p_NCP).sum() * temperature**2
    return (
        functional.kl_div(log_p_NCP, log_t_NCP, reduction="sum", log_target=True) * temperature**2
    )


def masked_square(student_BCYX: Tensor, teacher_BCYX: Tensor, weight_BYX: Tensor) -> Tensor:
    """Return sum (m S - m T)^2 / sum m over batch, channels and cells; 0 where sum m is.

    The sum of m is that of all ranks.
    """
    weight_B1YX = weight_BYX[:, None]
    gap_BCYX = student_BCYX * weight_B1YX - teacher_BCYX * weight_B1YX
    total = per_rank(weight_BYX.sum(), least=0)
    return gap_BCYX.square().sum() / torch.where(total > 0, total, torch.ones_like(total))


def drawn_in_both(labels: Labels, student: Grid, target: Grid, cell: float) -> list[Tensor]:
    """Return the canonical boxes (N, 9) of each sample that a mask shows in both frames."""
    near, far = mask_grid(student, cell), mask_grid(target, cell)
    drawn_N = truncated(torch.cat(labels.canonical_boxes), far)
    drawn_N &= truncated(torch.cat(labels.boxes), near)
    return kept(drawn_N, labels.canonical_boxes)[0]


def widened(channels: int, wanted: int) -> nn.Module:
    """Return BN, ReLU and a 1x1 convolution, the released alignment of channels."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, wanted, 1))

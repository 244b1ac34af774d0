"""SimDistill (Zhao et al., AAAI 2024): a camera student imitates a fusion teacher branch by branch.

Four terms: camera map, LiDAR map around objects, fused map, predictions. Formulas, sources and what
differs from the released code are in methods/README.md.
"""

from collections.abc import Iterator, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from bevcask import config as configuration
from bevcask.detectors.base import Labels
from bevcask.geometry import CLASSES, Grid, constant
from bevcask.methods import compat
from bevcask.methods.base import Method, Mode, Pair, Target, full_precision, require_unmoved
from bevcask.methods.regions import in_reach
from bevcask.ranks import num_ranks, per_rank
from bevcask.targets.align import Align
from bevcask.targets.box_code import CODE_SIZE, TASK_OF_CLASS, TASKS
from bevcask.targets.heatmap import centre_cells, draw_heatmaps
from bevcask.targets.lattice import same_cells
from bevcask.targets.ragged import kept, sample_of_box
from bevcask.targets.spec import Region, TapInfo, TargetSpec

_CLAMP = 1e-4  # released code: probabilities of both sides stay this far from 0 and 1
_BETA = 1 / 9  # released code: where smooth L1 turns linear


class SimDistill(Method):
    """Intra-modal, cross-modal, fused and prediction terms."""

    class Config(configuration.Config):
        """Settings; weights are those of the released code."""

        mode: Mode = Field("clean", description="clean | compat (released bugs; tests only)")
        camera: str = Field("bev.camera", description="tap of both: camera map in BEV")
        simulated: str = Field("bev.simulated", description="student tap: simulated LiDAR map")
        lidar: str = Field("bev.lidar", description="teacher tap: LiDAR map")
        fused: str = Field("bev.fused", description="tap of both: fused map")
        heatmap: str = Field("head.heatmap", description="tap of both: class probabilities")
        codes: str = Field("head.codes", description="tap of both: box codes")
        intra_modal: float = Field(1.0, ge=0)  # released code
        cross_modal: float = Field(100.0, ge=0)  # released code
        fusion: float = Field(1.0, ge=0)  # released code
        quality: float = Field(0.25, ge=0)  # released code; quality focal loss of the heatmaps
        box: float = Field(0.25, ge=0)  # released code
        velocity: float = Field(
            0.2, ge=0, description="weight of the two velocities in a box code, inside smooth L1"
        )  # released code
        threshold: float = Field(
            0.1, ge=0, lt=1, description="teacher probabilities above it count as objects"
        )  # released code

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self._compat = config.mode == "compat"
        self._grids: dict[str, Grid] = {}
        self.widen: nn.Module = nn.Identity()

    def pairs(self) -> list[Pair]:
        """Return five pairs.

        The mean of the cross-modal term also runs over all cells, but outside the Gaussians each
        adds an exact zero, whatever the teacher said: its count is known without its values.
        """
        config = self.config
        codes = Region("all" if self._compat else "centres")  # compat reads cell (0, 0) too
        return [
            Pair("intra_modal", config.camera, config.camera, whole=True),
            Pair("cross_modal", config.simulated, config.lidar, region=Region("gaussians")),
            Pair("fusion", config.fused, config.fused, whole=True),
            Pair("quality", config.heatmap, config.heatmap, "heatmap", whole=True),
            Pair("box", config.codes, config.codes, "box_code", codes, whole=self._compat),
        ]

    def misfits(self, pair: Pair, near: TapInfo, far: TapInfo) -> Iterator[str]:
        assert near.grid is not None
        assert far.grid is not None
        if not same_cells(near.grid, far.grid):
            yield (
                f"student tap {pair.student!r} lies on {near.grid}, target {pair.teacher!r} on "
                f"{far.grid}; both must have the same cells"
            )
        if pair.role != "cross_modal" and near.shape[0] != far.shape[0]:
            yield (
                f"student tap {pair.student!r} has {near.shape[0]} channels, target "
                f"{pair.teacher!r} {far.shape[0]}; the maps are compared without an adapter"
            )
        if pair.kind == "heatmap" and not near.classes == far.classes == CLASSES:
            yield (
                f"heatmap channels must be {', '.join(CLASSES)}; the student has "
                f"{', '.join(near.classes)}, the target {', '.join(far.classes)}"
            )

    def create(self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]) -> None:
        for need in self.needs():
            grid = specs[need.tap].tap.grid
            assert grid is not None
            self._grids[need.role] = grid
        channels = student[self.config.simulated].shape[0]
        wanted = specs[self.config.lidar].tap.shape[0]
        self.widen = nn.Sequential(  # released code: one branch of BEVFusion's ConvFuser
            nn.Conv2d(channels, wanted, 3, padding=1, bias=False),
            nn.BatchNorm2d(wanted),
            nn.ReLU(inplace=True),
        )

    def forward(
        self,
        student: Mapping[str, Tensor],
        targets: Mapping[str, Target],
        labels: Labels,
        align: Align,
        progress: float,
    ) -> dict[str, Tensor]:
        """Return `simdistill/TERM`: intra_modal, cross_modal, fusion, quality, box.

        Cells and objects are counted, and samples of `quality` summed, over the batches of all
        ranks; the release takes each process's by itself.

        The adapter runs under the caller's autocast, the losses in float32.

        Raises:
            TargetMismatchError: mode `compat` meets BEV augmentation.
        """
        if self._compat:
            require_unmoved(align, "simdistill (mode=compat)")
        near = {pair.role: student[str(pair.student)] for pair in self.pairs()}
        far = {pair.role: targets[str(pair.teacher)].values for pair in self.pairs()}
        near["cross_modal"] = self.widen(near["cross_modal"])
        with torch.autocast(near["cross_modal"].device.type, enabled=False):
            near = {role: full_precision(value) for role, value in near.items()}

            def gap(role: str, weight_BYX: Tensor | float = 1.0) -> Tensor:
                grid = self._grids[role]
                read_BCYX, valid_BYX = align.cells(near[role], grid, grid)
                return mean_square(read_BCYX - far[role], valid_BYX, weight_BYX)

            terms = {
                "intra_modal": gap("intra_modal"),
                "cross_modal": gap("cross_modal", self._objects(labels)),
                "fusion": gap("fusion"),
                "quality": self._quality(near["quality"], far["quality"], align),
                "box": self._box(near["box"], far["box"], labels, align),
            }
        return {f"simdistill/{t}": getattr(self.config, t) * loss for t, loss in terms.items()}

    def _objects(self, labels: Labels) -> Tensor:
        """Return the ground-truth heatmaps summed over classes, canonical frame, (B, Y, X)."""
        grid = self._grids["cross_modal"]
        reach_N = in_reach(labels, grid, grid)
        boxes, classes = kept(reach_N, labels.canonical_boxes, labels.classes)
        return draw_heatmaps(boxes, classes, grid, len(CLASSES)).sum(1)

    def _quality(self, near_BKYX: Tensor, far_BKYX: Tensor, align: Align) -> Tensor:
        """Compare in the student's frame, on the cells the teacher's map covers."""
        if self._compat:
            return compat.quality_focal(near_BKYX, far_BKYX)
        grid = self._grids["quality"]
        moved_BKYX = align.heatmap(far_BKYX, grid, grid)
        _, known_BYX = align.inverse().cells(far_BKYX[:, :1], grid, grid)
        return quality_focal(near_BKYX, moved_BKYX, known_BYX, self.config.threshold)

    def _box(self, near_BCYX: Tensor, far_BCYX: Tensor, labels: Labels, align: Align) -> Tensor:
        """Compare codes at box centres: each task group's mean over its objects, summed."""
        grid = self._grids["box"]
        weight_E = constant((1.0,) * (CODE_SIZE - 2) + (self.config.velocity,) * 2, near_BCYX)
        if self._compat:
            return compat.box(near_BCYX, far_BCYX, labels, grid, weight_E, _BETA)
        keep_N = in_reach(labels, grid, grid)
        row_N = keep_N.nonzero()[:, 0]  # a device waits for the host here, once
        sample_N = sample_of_box(labels.boxes, keep_N.device)[row_N]
        class_N = torch.cat(labels.classes)[row_N]
        task_N = constant(TASK_OF_CLASS, class_N)[class_N]
        there_N2, _ = centre_cells(torch.cat(labels.canonical_boxes)[row_N], grid)
        here_N2, _ = centre_cells(torch.cat(labels.boxes)[row_N], grid)
        said_NE = read_codes(far_BCYX, sample_N, task_N, there_N2)
        target_NE = align.codes(said_NE, sample_N, there_N2, here_N2, grid)
        own_NE = read_codes(near_BCYX, sample_N, task_N, here_N2)
        error_NE = functional.smooth_l1_loss(
            own_NE * weight_E, target_NE * weight_E, reduction="none", beta=_BETA
        )
        zero_T = error_NE.new_zeros(len(TASKS))
        count_T = zero_T.index_add(0, task_N, zero_T.new_ones(len(task_N)))
        return (error_NE.sum(1) / per_rank(count_T)[task_N]).sum()


def mean_square(gap_BCYX: Tensor, valid_BYX: Tensor, weight_BYX: Tensor | float) -> Tensor:
    """Return the mean over channels and valid cells of (weight gap)^2; 0 where none is valid."""
    square_BYX = gap_BCYX.square().mean(1) * weight_BYX**2
    return (square_BYX * valid_BYX).sum() / per_rank(valid_BYX.sum())


def quality_focal(
    student_BKYX: Tensor, teacher_BKYX: Tensor, known_BYX: Tensor, threshold: float
) -> Tensor:
    """Return the quality focal loss of heatmaps, summed over samples, of all ranks, and classes.

    -(t log p + (1 - t) log(1 - p)) |p - t|^2, factor differentiated, summed over the cells of one
    class in one sample and divided by those where t exceeds the threshold (1 at least).

    Args:
        student_BKYX: probabilities, channels as `geometry.CLASSES`.
        teacher_BKYX: probabilities in the student's frame.
        known_BYX: bool, cells that count.
        threshold: the teacher sees an object above it.
    """
    p, t = (both.clamp(_CLAMP, 1 - _CLAMP) for both in (student_BKYX, teacher_BKYX))
    entropy = -(t * p.log() + (1 - t) * (1 - p).log())
    known_B1YX = known_BYX[:, None]
    loss_BK = (entropy * (p - t).square() * known_B1YX).sum((2, 3))
    seen_BK = ((t > threshold) & known_B1YX).sum((2, 3))
    return (loss_BK / seen_BK.clamp(min=1)).sum() * num_ranks()


def read_codes(map_BCYX: Tensor, sample_N: Tensor, task_N: Tensor, cells_N2: Tensor) -> Tensor:
    """Return one code (N, 10) an object: of its sample, task group and cell (row, column)."""
    codes_BTEYX = map_BCYX.view(len(map_BCYX), len(TASKS), CODE_SIZE, *map_BCYX.shape[2:])
    return codes_BTEYX[sample_N, task_N, :, cells_N2[:, 0], cells_N2[:, 1]]

"""TiGDistill-BEV (TiG-BEV, Huang et al., 2022): imitate how a teacher's features relate in a box.

Formulas, sources and what differs from the released code are in methods/README.md. Only cells
around ground-truth boxes are read, so only those are stored. Depth within objects is taught by the
keyframe's LiDAR points, which lie beside the teacher's targets.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bevcask import config as configuration
from bevcask.detectors.base import Labels
from bevcask.errors import TargetMismatchError
from bevcask.geometry import Grid, constant, transform_points
from bevcask.methods import compat
from bevcask.methods.base import Method, Mode, Pair, Target, full_precision, require_unmoved
from bevcask.methods.regions import boxes_in_reach
from bevcask.methods.tigdistill_depth import expected_depth, inner_depth
from bevcask.ranks import per_rank
from bevcask.targets.align import Align
from bevcask.targets.pixels import PIXELS
from bevcask.targets.spec import Region, TapInfo, TargetSpec

_CHUNK = 8  # boxes whose relations are alive at once: 576 x 576 float32 is 1.3 MB a box and map

_WITHOUT = " method.inner_depth=0 trains without this term."


class TiGDistill(Method):
    """Relations of channels and keypoints inside enlarged boxes; relative depths inside boxes."""

    class Config(configuration.Config):
        """Settings; defaults are those of the released BEVDet-R50 and BEVDepth4D scripts."""

        mode: Mode = Field("clean", description="clean | compat (released bugs; tests only)")
        student: str = Field("bev.neck", description="student tap, a dense_bev")
        teacher: str = Field("bev.neck", description="teacher tap, a dense_bev")
        depth: str = Field("image.depth", description="student tap, depth probabilities with bins")
        inner_depth: float = Field(
            1.0, ge=0, description="0: neither the points nor the depth tap are needed"
        )  # released configs
        inter_channel: float = Field(10.0, ge=0)  # released configs; 20 for tig_bev4d-r50
        inter_keypoint: float = Field(100.0, ge=0)  # released configs
        margin: float = Field(
            1.6, ge=0, description="metres added to each side of a box, augmented frame"
        )  # released code
        keypoints: int = Field(24, ge=2, description="along each side of a box")  # released code
        smallest_scale: float = Field(
            0.95, gt=0, description="of the student's augmentation; decides which cells are stored"
        )  # released configs scale by 0.95 to 1.05
        depth_range: tuple[float, float] = Field(
            (1.0, 60.0), description="metres; points outside are not there"
        )  # released code

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self._compat = config.mode == "compat"
        self._near: Grid | None = None
        self._far: Grid | None = None
        self.widen: nn.Module = nn.Identity()
        self.register_buffer("bins_D", torch.zeros(0), persistent=False)

    def pairs(self) -> list[Pair]:
        config = self.config
        margin = config.margin / config.smallest_scale
        region = Region() if self._compat else Region("keypoints", margin=margin)
        neck = Pair("neck", config.student, config.teacher, region=region)
        if not config.inner_depth:
            return [neck]
        return [
            neck,
            Pair("points", None, PIXELS.name, PIXELS.kind, otherwise=_WITHOUT),
            Pair("depth", config.depth, None, "image_feature", otherwise=_WITHOUT),
        ]

    def mismatches(
        self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]
    ) -> list[str]:
        problems = super().mismatches(student, specs)
        depth = student.get(self.config.depth)
        if self.config.inner_depth and depth is not None and not depth.bins:
            problems.append(
                f"depth: student tap {depth.name!r} has no bins, so it is no depth.{_WITHOUT}"
            )
        return problems

    def create(self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]) -> None:
        near, far = student[self.config.student], specs[self.config.teacher].tap
        self._near, self._far = near.grid, far.grid
        self.widen = nn.Linear(near.shape[0], far.shape[0])
        if self.config.inner_depth:
            bins_D = torch.tensor(student[self.config.depth].bins)
            self.bins_D = compat.lower_edges(bins_D) if self._compat else bins_D

    def forward(
        self,
        student: Mapping[str, Tensor],
        targets: Mapping[str, Target],
        labels: Labels,
        align: Align,
        progress: float,
    ) -> dict[str, Tensor]:
        """Return `tigdistill/inter_channel`, `/inter_keypoint` and, if wanted, `/inner_depth`.

        Means run over the boxes, or the cells in boxes, of the whole batch, as released; of all
        ranks together, where the release takes each process by itself.

        Raises:
            TargetMismatchError: the augmentation shrinks more than `smallest_scale`; the student
                has no images; mode `compat` meets BEV augmentation or a sample without boxes.
        """
        if self._compat:
            require_unmoved(align, "tigdistill (mode=compat)")
        terms = self._features(student, targets, labels, align)
        if self.config.inner_depth:
            depth = self._depth(student[self.config.depth], targets[PIXELS.name], align)
            terms["tigdistill/inner_depth"] = self.config.inner_depth * depth
        return terms

    def _depth(self, probabilities_BVDHW: Tensor, points: Target, align: Align) -> Tensor:
        """Return the inner-depth loss before its weight."""
        height, width = probabilities_BVDHW.shape[-2:]
        if self._compat:
            align = compat.whole_strides(align, height)
        depth_BVHW, box_BVHW = align.pixels(points, (height, width), self.config.depth_range)
        with torch.autocast(probabilities_BVDHW.device.type, enabled=False):
            expected_BVHW = expected_depth(full_precision(probabilities_BVDHW), self.bins_D)
            return inner_depth(expected_BVHW, depth_BVHW.to(expected_BVHW.dtype), box_BVHW)

    def _features(
        self,
        student: Mapping[str, Tensor],
        targets: Mapping[str, Target],
        labels: Labels,
        align: Align,
    ) -> dict[str, Tensor]:
        """Return the inner-feature terms.

        Relations are recomputed in the backward pass, `_CHUNK` boxes at a time: about
        8 x 6 x 1.3 MB however crowded the batch.
        """
        assert self._near is not None
        assert self._far is not None
        map_BCYX = full_precision(student[self.config.student])
        teacher_BCYX = targets[self.config.teacher].values.to(map_BCYX.dtype)
        self._require_covered(align, targets[self.config.teacher].region_BYX is not None)
        back = align.inverse()
        kept = align.boxes(boxes_in_reach(labels, self._near, self._far))
        if self._compat:
            compat.require_boxes(kept)
        touched = torch.stack([t.sum() for t in (map_BCYX, *self.widen.parameters())])
        sums = (0 * touched).sum().expand(2)  # every step has the same graph, boxes or none
        with torch.autocast(map_BCYX.device.type, enabled=False):
            for b, boxes_N9 in enumerate(kept):
                points_NK2 = box_keypoints(boxes_N9, self.config.margin, self.config.keypoints)
                flat_NK3 = functional.pad(points_NK2, (0, 1))
                origin_NK2 = transform_points(flat_NK3, back.matrices_B44[b])[..., :2]
                for chunk in torch.split(torch.arange(len(boxes_N9)), _CHUNK):
                    sums = sums + checkpoint(
                        self._relations,
                        map_BCYX[b],
                        teacher_BCYX[b],
                        points_NK2[chunk],
                        origin_NK2[chunk],
                        use_reentrant=False,
                    )
        channel, keypoint = sums / per_rank(sum(map(len, kept)))
        return {
            "tigdistill/inter_channel": self.config.inter_channel * channel,
            "tigdistill/inter_keypoint": self.config.inter_keypoint * keypoint,
        }

    def _require_covered(self, align: Align, sparse: bool) -> None:
        shrunk = float(align.scales().min())
        if sparse and shrunk < self.config.smallest_scale - 1e-6:
            raise TargetMismatchError(
                f"augment.bev_scale shrinks to {shrunk:.3f}, the stored cells cover keypoints down "
                f"to smallest_scale={self.config.smallest_scale:g} only. Shrink less, or extract "
                "with a smaller method.smallest_scale."
            )

    def _relations(
        self, map_CYX: Tensor, teacher_CYX: Tensor, points_NK2: Tensor, origin_NK2: Tensor
    ) -> Tensor:
        """Return the sums over N boxes of both terms, (2,): rows averaged, columns summed."""
        assert self._near is not None
        assert self._far is not None
        read = compat.read_points if self._compat else read_points
        own_NKC, own_NK = read(map_CYX, self._near, points_NK2)
        his_NKC, his_NK = read(teacher_CYX, self._far, origin_NK2)
        both_NK1 = (own_NK & his_NK)[..., None]
        own_NKC, his_NKC = own_NKC * both_NK1, his_NKC * both_NK1
        wide_NKC = self.widen(own_NKC) * both_NK1
        channel = _gap(wide_NKC.transpose(1, 2), his_NKC.transpose(1, 2))
        return torch.stack([channel, _gap(own_NKC, his_NKC)])


def _gap(own_NRD: Tensor, his_NRD: Tensor) -> Tensor:
    """Compare the relations of R vectors: sum over boxes of the mean over rows of squared gaps."""
    return (relations(own_NRD) - relations(his_NRD)).square().sum(-1).mean(-1).sum()


def relations(vectors_NRD: Tensor) -> Tensor:
    """Return the Gram matrices (N, R, R) of R vectors, every row scaled to unit length."""
    return functional.normalize(vectors_NRD @ vectors_NRD.transpose(1, 2), dim=-1)


def box_keypoints(boxes_N9: Tensor, margin: float, steps: int) -> Tensor:
    """Return a lattice of points over each enlarged box, metres, (N, steps * steps, 2).

    Args:
        boxes_N9: boxes, `geometry.BOX_FIELDS`.
        margin: metres added to each of the four sides.
        steps: points along each side, the corners included; the length runs fastest.
    """
    unit = torch.linspace(-0.5, 0.5, steps, device=boxes_N9.device, dtype=boxes_N9.dtype)
    across_K, along_K = (part.reshape(-1) for part in torch.meshgrid(unit, unit, indexing="ij"))
    along_NK = along_K * (boxes_N9[:, 3:4] + 2 * margin)
    across_NK = across_K * (boxes_N9[:, 4:5] + 2 * margin)
    c, s = boxes_N9[:, 6:7].cos(), boxes_N9[:, 6:7].sin()
    x_NK = boxes_N9[:, 0:1] + c * along_NK - s * across_NK
    y_NK = boxes_N9[:, 1:2] + s * along_NK + c * across_NK
    return torch.stack([x_NK, y_NK], dim=-1)


def read_points(map_CYX: Tensor, grid: Grid, points_NK2: Tensor) -> tuple[Tensor, Tensor]:
    """Interpolate a map bilinearly between its cell centres.

    Args:
        map_CYX: one sample's map.
        grid: where its cells lie.
        points_NK2: metres, the grid's frame.

    Returns:
        (N, K, C), and bool (N, K): False where the point lies beyond the outer cell centres, whose
        values mean nothing.
    """
    index_NK2 = grid.to_cells(points_NK2) - 0.5
    last_2 = constant((grid.num_x - 1, grid.num_y - 1), index_NK2)
    inside_NK = ((index_NK2 >= 0) & (index_NK2 <= last_2)).all(-1)
    unit_NK2 = 2 * index_NK2 / last_2.clamp(min=1) - 1
    read_CNK = functional.grid_sample(
        map_CYX[None], unit_NK2[None].to(map_CYX.dtype), align_corners=True, padding_mode="border"
    )[0]
    return read_CNK.permute(1, 2, 0), inside_NK

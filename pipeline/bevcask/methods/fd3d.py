"""FD3D (CVPR 2023), a reconstruction: queries say where to mask, generate and compare.

The paper's code was never released, and only its abstract, a figure and leftovers of a head were at
hand. What is certain, what is inferred and which setting holds each choice: methods/README.md.
Numbers of this method are never the paper's. It goes on top of `methods.focaldistiller`.
"""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from bevcask.detectors.base import Labels
from bevcask.geometry import Grid
from bevcask.methods.adapters import Restore, restored_grid
from bevcask.methods.base import Pair, Target, full_precision
from bevcask.methods.fd3d_queries import Said, TrainedHead, focal, num_of_layers, stored
from bevcask.methods.fd3d_settings import Settings
from bevcask.methods.focaldistiller import FocalDistiller, image_pairs, masked_square
from bevcask.ranks import rank
from bevcask.targets.align import Align
from bevcask.targets.rectangles import rectangle_mask
from bevcask.targets.region import box_mask
from bevcask.targets.spec import Region, TapInfo, TargetSpec


class FD3D(FocalDistiller):
    """Masked generation of image levels and BEV map, and focal sampling of the BEV map."""

    Config = Settings

    def __init__(self, config: Settings) -> None:
        super().__init__(config)
        self.settings = config
        self._cells: tuple[Grid, Grid, Grid] | None = None  # student's, generated, teacher's
        self.generate = nn.ModuleDict()
        self.head: TrainedHead | None = None

    @property
    def _reads_bev(self) -> bool:
        return bool(self.settings.generative_bev or self.settings.focal)

    def pairs(self) -> list[Pair]:
        config = self.settings
        levels = config.levels if config.channelwise or config.generative_image else ()
        pairs = image_pairs(levels)
        region = self._bev_region
        whole = region.name == "all"
        bev = Pair("bev", config.student, config.teacher, region=region, whole=whole)
        teacher_bev = Pair("bev", None, config.teacher, region=region, whole=whole)
        if config.masked or self._reads_bev:
            pairs.append(bev)
        elif config.head == "trained":
            pairs.append(teacher_bev)
        if config.head == "frozen":
            pairs += self._stored_pairs()
        return pairs

    @property
    def _bev_region(self) -> Region:
        """The cells of the teacher's map that are read: all, unless ground truth says which."""
        config = self.settings
        boxes = config.boxes_by == "truth" and config.generate_over == "boxes"
        if config.head == "trained" or (config.generative_bev and not boxes):
            return Region()
        parts = [self._mask_region] if config.masked else []
        parts += [Region("foreground")] if config.generative_bev else []
        return parts[0] if len(parts) == 1 else Region("union", parts=tuple(parts))

    def _stored_pairs(self) -> list[Pair]:
        config = self.settings
        trained = " method.head=trained asks the teacher for no queries."
        pairs = []
        if config.focal:
            pairs = [
                Pair("reads", None, config.reads, "query_set", otherwise=trained),
                Pair("places", None, config.places, "query_places", otherwise=trained),
                Pair("scores", None, config.scores, "query_set", otherwise=trained),
                Pair("values", None, config.values, "query_set", otherwise=trained),
            ]
        if config.boxes_by == "predicted":
            pairs.append(Pair("boxes", None, config.boxes, "box_set"))
        return pairs

    def mismatches(
        self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]
    ) -> list[str]:
        problems = super().mismatches(student, specs)
        return problems or list(self._misshapen(specs))

    def _misshapen(self, specs: Mapping[str, TargetSpec]) -> Iterator[str]:
        """Yield what keeps the channels and the stored queries from fitting one another."""
        config = self.settings
        if config.teacher not in specs:
            return
        channels = specs[config.teacher].tap.shape[0]
        if channels % config.heads:
            yield f"heads: {channels} channels of {config.teacher!r} do not part in {config.heads}"
        if config.head == "trained" or not config.focal:
            return
        reads, places, scores, values = (
            specs[name].tap.shape
            for name in (config.reads, config.places, config.scores, config.values)
        )
        layers = num_of_layers(values)
        if reads[1] != channels or values[1] != channels + 1 or not layers:
            yield (
                f"values: {config.values!r} must be (layers x {channels}, {channels} + 1) and "
                f"{config.reads!r} (layers x queries, {channels}), got {values} and {reads}"
            )
        elif reads[0] % layers or not reads[0] == places[0] == scores[0]:
            yield (
                f"reads: rows of {config.reads!r}, {config.places!r} and {config.scores!r} must be "
                f"as many, and divide by {layers} layers; got {reads[0]}, {places[0]}, {scores[0]}"
            )
        if places[1] % (3 * config.heads):
            yield f"places: {places[1]} columns do not divide by {config.heads} heads of triples"

    def create(self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]) -> None:
        super().create(student, specs)
        config = self.settings
        for own in config.levels if config.generative_image else ():
            near, far = student[own.student].shape[1], specs[own.teacher].tap.shape[1]
            self.generate[own.name] = _generator(nn.Conv2d(near, far, 3, padding=1), far)
        target = specs.get(config.teacher)
        if self._reads_bev:
            assert target is not None
            tap, far = student[config.student], target.tap.shape[0]
            assert tap.grid is not None
            assert target.tap.grid is not None
            grid = restored_grid(tap.grid, target.tap.grid)
            assert grid is not None
            self._cells = tap.grid, grid, target.tap.grid
            self.generate["bev"] = _generator(Restore(tap.shape[0], far, tap.grid, grid), far)
        if config.head == "trained":
            assert target is not None
            assert target.tap.grid is not None
            self.head = TrainedHead(config, target.tap.shape[0], target.tap.grid)

    def forward(
        self,
        student: Mapping[str, Tensor],
        targets: Mapping[str, Target],
        labels: Labels,
        align: Align,
        progress: float,
    ) -> dict[str, Tensor]:
        """Return the terms of `focaldistiller`, and those of FD3D.

        `fd3d/LEVEL/generative`, `fd3d/bev/generative`, `fd3d/bev/focal`; with a trained head also
        `fd3d/head/classes` and `fd3d/head/boxes`. Generators run under the caller's autocast, the
        head and the losses in float32.

        Raises:
            TargetMismatchError: boxes cannot be projected into the images.
        """
        config = self.settings
        terms = super().forward(student, targets, labels, align, progress)
        with torch.autocast(align_device(student), enabled=False):
            said = self._said(targets, labels)
        boxes = self._boxes(said, labels)
        if config.generative_image:
            for own in config.levels:
                terms[f"fd3d/{own.name}/generative"] = self._image(
                    own.name,
                    student[own.student],
                    targets[own.teacher].values,
                    boxes,
                    align,
                    progress,
                )
        if self._reads_bev:
            far_BCYX = targets[config.teacher].values
            terms |= self._bev(student[config.student], far_BCYX, said, boxes, align, progress)
        return terms | {f"fd3d/head/{k}": config.detection * v for k, v in said.losses.items()}

    def _said(self, targets: Mapping[str, Target], labels: Labels) -> Said:
        if self.head is None:
            return stored(targets, self.settings)
        said: Said = self.head(targets[self.settings.teacher].values.float(), labels)
        return said

    def _boxes(self, said: Said, labels: Labels) -> list[Tensor]:
        """Return the canonical boxes (N, 9) of each sample that say where to look."""
        return said.boxes if self.settings.boxes_by == "predicted" else labels.canonical_boxes

    def _image(
        self,
        level: str,
        near_BVCHW: Tensor,
        far_BVCHW: Tensor,
        boxes: list[Tensor],
        align: Align,
        progress: float,
    ) -> Tensor:
        """Return the generative term of an image level."""
        config = self.settings
        height, width = near_BVCHW.shape[-2:]
        inside_BVHW = rectangle_mask(boxes, align.images, (height, width))
        seen_BVHW = ~self._blanks(inside_BVHW, level, progress)
        masked_NCHW = (near_BVCHW * seen_BVHW[:, :, None]).flatten(0, 1)
        made_NCHW = self.generate[level](masked_NCHW)
        if config.generate_over == "everywhere":
            inside_BVHW = torch.ones_like(inside_BVHW)
        with torch.autocast(made_NCHW.device.type, enabled=False):
            made_NCHW = full_precision(made_NCHW)
            far_NCHW = full_precision(far_BVCHW).flatten(0, 1)
            area_NHW = inside_BVHW.flatten(0, 1).to(made_NCHW.dtype)
            return config.generative_image * masked_square(made_NCHW, far_NCHW, area_NHW)

    def _bev(
        self,
        near_BCYX: Tensor,
        far_BCYX: Tensor,
        said: Said,
        boxes: list[Tensor],
        align: Align,
        progress: float,
    ) -> dict[str, Tensor]:
        """Return the generative and the focal term of the BEV map; both read the generated one."""
        assert self._cells is not None
        config, (own, source, target) = self.settings, self._cells
        inside_BYX = box_mask(align.boxes(boxes), own, margin=0.0, touched=False)
        seen_BYX = ~self._blanks(inside_BYX, "bev", progress)
        made_BCYX = self.generate["bev"](near_BCYX * seen_BYX[:, None])
        terms = {}
        with torch.autocast(made_BCYX.device.type, enabled=False):
            read_BCYX, valid_BYX = align.cells(full_precision(made_BCYX), source, target)
            if config.generative_bev:
                area_BYX = valid_BYX
                if config.generate_over == "boxes":
                    area_BYX = valid_BYX & box_mask(boxes, target, margin=0.0, touched=False)
                loss = masked_square(read_BCYX, far_BCYX, area_BYX.to(read_BCYX.dtype))
                terms["fd3d/bev/generative"] = config.generative_bev * loss
            if config.focal:
                loss = focal(said.layers, read_BCYX, valid_BYX, config.by_score)
                terms["fd3d/bev/focal"] = config.focal * loss
        return terms

    def _blanks(self, inside: Tensor, word: str, progress: float) -> Tensor:
        """Return the cells in boxes that the generator must make up, bool (B, ..., rows, columns).

        Drawn anew each step, from the method's seed, the share of training done, the place in the
        batch of all ranks and the map's name: the same step draws the same, whoever runs it.
        """
        low, high = self.settings.blank
        drawn, first = [], rank() * len(inside)
        for sample in range(first, first + len(inside)):
            said = repr((self.settings.seed, progress, sample, word)).encode()
            key = int.from_bytes(hashlib.blake2b(said, digest_size=7).digest(), "little")
            own = torch.Generator().manual_seed(key)
            share = low + (high - low) * torch.rand((), generator=own)
            drawn.append(torch.rand(inside.shape[1:], generator=own) < share)
        return inside & torch.stack(drawn).to(inside.device, non_blocking=True)


def align_device(student: Mapping[str, Tensor]) -> str:
    """Return the type of the device a batch is on."""
    return next(iter(student.values())).device.type


def _generator(first: nn.Module, channels: int) -> nn.Sequential:
    """Return MGD's generator: 3x3 convolution (a restore net ends in one), ReLU, 3x3."""
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1))

"""HarmoDistill-BEV: RayDN or StreamPETR teaches a smaller one by balanced divergences.

Formulas, sources, which terms are on and what differs from the released code are in
methods/README.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from bevcask.detectors.base import Labels
from bevcask.methods.balanced import Balance, balanced
from bevcask.methods.base import Method, Pair, Target, full_precision, require_unmoved
from bevcask.methods.denoising import pseudo_boxes
from bevcask.methods.focaldistiller import image_pairs, widened
from bevcask.methods.harmodistill_checks import fitting_cameras, fitting_queries
from bevcask.methods.harmodistill_queries import (
    Looks,
    by_layer,
    cells_of,
    key_points,
    mixer,
    ranks,
    responses,
    written,
)
from bevcask.methods.harmodistill_settings import Level, Settings
from bevcask.targets.align import Align
from bevcask.targets.resize import resized
from bevcask.targets.spec import TapInfo, TargetSpec

_MODULATED = "modulated "  # starts the roles of camera-modulated levels


class HarmoDistill(Method):
    """Balanced divergences of image levels; the other modules of the release are off."""

    Config = Settings

    def __init__(self, config: Settings) -> None:
        super().__init__()
        self.config = config
        self._compat = config.mode == "compat"
        self._duplicates = "last" if self._compat else config.duplicates
        self._channels: dict[str, int] = {}
        self.widen = nn.ModuleDict()
        self.mix = nn.ModuleDict()

    @property
    def _levels(self) -> tuple[Level, ...]:
        return self.config.levels if self.config.balanced else ()

    @property
    def _modulated(self) -> tuple[Level, ...]:
        return self.config.modulated_levels if self.config.modulated else ()

    @property
    def _answering(self) -> tuple[Level, ...]:
        return self.config.modulated_levels if self.config.response else ()

    def pairs(self) -> list[Pair]:
        config = self.config
        pairs = [*_at_sizes(self._levels, "")]
        pairs += _at_sizes(self._modulated or self._answering, _MODULATED)
        if config.local or config.response:
            pairs.append(_queries("states", config.states, "query_set"))
        if config.local:
            pairs.append(_queries("references", config.references, "query_points"))
            pairs.append(_queries("offsets", config.offsets, "query_points"))
        if config.local and self._duplicates == "score":
            pairs.append(_queries("scores", config.scores, "query_set"))
        if config.denoising:
            pairs.append(Pair("boxes", None, config.boxes, "box_set"))
        return pairs

    def mismatches(
        self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]
    ) -> list[str]:
        taps = {name: spec.tap for name, spec in specs.items()}
        problems = super().mismatches(student, specs)
        return problems or list(fitting_queries(self.config, student, taps))

    def misfits(self, pair: Pair, near: TapInfo, far: TapInfo) -> Iterator[str]:
        if pair.kind == "image_feature":
            adapted = bool(self.config.modulated) or not pair.role.startswith(_MODULATED)
            yield from fitting_cameras(pair, near, far, self._compat and adapted)

    def create(self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]) -> None:
        config = self.config
        for term, levels in (("balanced", self._levels), ("modulated", self._modulated)):
            for own in levels:
                key = f"{own.name}_{term}"
                near, far = student[own.student].shape[1], specs[own.teacher].tap.shape[1]
                self._channels[key] = near
                self.widen[key] = widened(near, far) if near != far else nn.Identity()
        if config.local:
            near, far = student[config.states].shape[1], specs[config.states].tap.shape[1]
            start = "all" if self._compat else config.start
            self.mix["student"] = mixer(near, far, start)
            self.mix["teacher"] = mixer(far, far, start)
            self.mix["teacher"].requires_grad_(config.teacher_mixer == "trained")

    def forward(
        self,
        student: Mapping[str, Tensor],
        targets: Mapping[str, Target],
        labels: Labels,
        align: Align,
        progress: float,
    ) -> dict[str, Tensor]:
        """Return `harmodistill/LEVEL/balanced`, and what else is switched on.

        `harmodistill/LEVEL/modulated`, `harmodistill/LEVEL/response`, `harmodistill/queries/local`.
        Adapters and mixers run under the caller's autocast, the losses in float32.

        Raises:
            TargetMismatchError: mode `compat` meets BEV augmentation.
        """
        config = self.config
        if self._compat:
            require_unmoved(align, "harmodistill (mode=compat)")
        said = {name: target.values for name, target in targets.items()}
        terms = {}
        balance = self._balance(progress, config.forward_temperature, config.reverse_temperature)
        for own in self._levels:
            loss = self._images("balanced", own, student, said, balance)
            terms[f"harmodistill/{own.name}/balanced"] = config.balanced * own.share * loss
        balance = self._balance(progress, config.modulated_temperature)
        for own in self._modulated:
            loss = self._images("modulated", own, student, said, balance)
            terms[f"harmodistill/{own.name}/modulated"] = config.modulated * own.share * loss
        balance = self._balance(progress, config.response_temperature)
        for own in self._answering:
            loss = self._responses(own, student, said, balance)
            terms[f"harmodistill/{own.name}/response"] = config.response * own.share * loss
        if config.local:
            loss = self._local(student, said, align)
            terms["harmodistill/queries/local"] = config.local * (1 - progress) * loss
        return terms

    @property
    def denoises(self) -> bool:
        return self.config.denoising

    def pseudo_labels(
        self, targets: Mapping[str, Target], labels: Labels, align: Align
    ) -> Labels | None:
        """Return the teacher's best boxes, as many a sample as it has of ground truth."""
        config = self.config
        if not config.denoising:
            return None
        said = targets[config.boxes]
        num_truth = [len(own) for own in labels.canonical_boxes]
        taken = pseudo_boxes(said.values, said.count_B, num_truth, config.reach, self._compat)
        canonical = [own[:, :9] for own in taken]
        return Labels(align.boxes(canonical), [own[:, 10].long() for own in taken], canonical)

    def _balance(self, progress: float, forward: float, reverse: float | None = None) -> Balance:
        """Return what either direction weighs at this step, at their temperatures."""
        config, reverse = self.config, forward if reverse is None else reverse
        if not config.schedule:
            return Balance(1.0, config.balance, forward, reverse)
        early, late = config.balance * (1 - progress), config.balance * progress
        return Balance(early, late, forward, reverse)

    def _images(
        self,
        term: str,
        level: Level,
        student: Mapping[str, Tensor],
        said: Mapping[str, Tensor],
        balance: Balance,
    ) -> Tensor:
        key = f"{level.name}_{term}"
        near_NCHW = self.widen[key](student[level.student].flatten(0, 1))
        with torch.autocast(near_NCHW.device.type, enabled=False):
            far_NCHW = full_precision(said[level.teacher]).flatten(0, 1)
            # Released: as many softmaxes as the student has channels, whatever the adapter made.
            softmaxes = self._channels[key] if self._compat else near_NCHW.shape[1]
            return balanced(*_met(full_precision(near_NCHW), far_NCHW, softmaxes), balance)

    def _responses(
        self,
        level: Level,
        student: Mapping[str, Tensor],
        said: Mapping[str, Tensor],
        balance: Balance,
    ) -> Tensor:
        config = self.config
        with torch.autocast(student[level.student].device.type, enabled=False):
            near_NQHW, far_NQHW = (
                responses(full_precision(taps[config.states]), config.layers, full_precision(map_))
                for taps, map_ in ((student, student[level.student]), (said, said[level.teacher]))
            )
            near_NQP, far_NQP = _met(near_NQHW, far_NQHW, near_NQHW.shape[1])
            if config.response_loss == "balanced":
                return balanced(near_NQP, far_NQP, balance)
            square = (near_NQP - far_NQP).square().mean()
            return square / len(near_NQP) if self._compat else square

    def _local(
        self, student: Mapping[str, Tensor], said: Mapping[str, Tensor], align: Align
    ) -> Tensor:
        """Return the mean over layers of the divergence of both sides' maps; no schedule inside."""
        config, tau = self.config, self.config.local_temperature
        sides = {"student": self._looks(student), "teacher": self._looks(said).moved(align)}
        layers = range(config.layers) if config.local_layers == "all" else [config.layers - 1]
        total = sides["student"].states_BLQC.new_zeros(())
        for layer in layers:
            near_BCYX, far_BCYX = (
                self.mix[who](self._written(looks, layer)) for who, looks in sides.items()
            )
            with torch.autocast(near_BCYX.device.type, enabled=False):
                near_BCP, far_BCP = (
                    full_precision(own_BCYX).flatten(2) for own_BCYX in (near_BCYX, far_BCYX)
                )
                balance = Balance(1.0, config.balance, tau, tau)
                total = total + balanced(near_BCP, far_BCP, balance)
        return total / len(layers)

    def _looks(self, taps: Mapping[str, Tensor]) -> Looks:
        config = self.config
        offsets_BRD = full_precision(taps[config.offsets].detach())
        references_BQ3 = full_precision(taps[config.references].detach())
        scores_BLQ = None
        if self._duplicates == "score":
            scores_BLQ = by_layer(taps[config.scores].detach().amax(2), config.layers)
        return Looks(
            by_layer(full_precision(taps[config.states]), config.layers),
            key_points(references_BQ3, offsets_BRD, config.low, config.high),
            scores_BLQ,
        )

    def _written(self, looks: Looks, layer: int) -> Tensor:
        config = self.config
        states_BQC, points_BQK3 = looks.states_BLQC[:, layer], looks.points_BLQK3[:, layer]
        if looks.scores_BLQ is None:
            rows_Q = torch.arange(states_BQC.shape[1], device=states_BQC.device)
            ranks_BQ = rows_Q.expand(len(states_BQC), -1)
        else:
            ranks_BQ = ranks(looks.scores_BLQ[:, layer])
        cells_BQK = cells_of(points_BQK3, config.low, config.high, config.cells)
        return written(states_BQC, cells_BQK, ranks_BQ, config.cells)


def _at_sizes(levels: tuple[Level, ...], prefix: str) -> Iterator[Pair]:
    """Yield a pair a level, at the size that both are brought to."""
    for pair, own in zip(image_pairs(levels), levels, strict=True):
        yield replace(pair, role=f"{prefix}{pair.role}", size_HW=own.size_HW)


def _queries(role: str, tap: str, kind: str) -> Pair:
    """Return a pair of what both sides say under one name."""
    return Pair(role, tap, tap, kind)


def _met(near_NCHW: Tensor, far_NCHW: Tensor, softmaxes: int) -> tuple[Tensor, Tensor]:
    """Return both maps at the student's size, one row a softmax."""
    far_NCHW = resized(far_NCHW, (near_NCHW.shape[2], near_NCHW.shape[3]))
    near_NRP, far_NRP = (
        own_NCHW.reshape(len(own_NCHW), softmaxes, -1) for own_NCHW in (near_NCHW, far_NCHW)
    )
    return near_NRP, far_NRP

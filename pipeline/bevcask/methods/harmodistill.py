"""HarmoDistill-BEV: RayDN or StreamPETR teaches a smaller one by balanced divergences.

Formulas, sources, which terms are on and what differs from the released code are in
methods/README.md.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from bevcask.detectors.base import Labels
from bevcask.methods.balanced import Balance, balanced, resized
from bevcask.methods.base import Method, Pair, Target, full_precision, require_unmoved
from bevcask.methods.focaldistiller import image_pairs, widened
from bevcask.methods.harmodistill_settings import Level, Settings
from bevcask.targets.align import Align
from bevcask.targets.spec import TapInfo, TargetSpec


class HarmoDistill(Method):
    """Balanced divergences of image levels; the other modules of the release are off."""

    Config = Settings

    def __init__(self, config: Settings) -> None:
        super().__init__()
        self.config = config
        self._compat = config.mode == "compat"
        self._channels: dict[str, int] = {}
        self.widen = nn.ModuleDict()

    @property
    def _levels(self) -> tuple[Level, ...]:
        return self.config.levels if self.config.balanced else ()

    def pairs(self) -> list[Pair]:
        return image_pairs(self._levels)

    def misfits(self, pair: Pair, near: TapInfo, far: TapInfo) -> Iterator[str]:
        if near.shape[0] != far.shape[0]:
            yield (
                f"student tap {pair.student!r} has {near.shape[0]} cameras, target "
                f"{pair.teacher!r} {far.shape[0]}"
            )
        numbers = far.shape[1] * near.shape[2] * near.shape[3]
        if self._compat and numbers % near.shape[1]:
            yield (
                f"mode compat parts {numbers} numbers of an image of {pair.teacher!r} into "
                f"{near.shape[1]} softmaxes, as many as {pair.student!r} has channels; the "
                "released code crashes there"
            )

    def create(self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]) -> None:
        for own in self._levels:
            near, far = student[own.student].shape[1], specs[own.teacher].tap.shape[1]
            self._channels[own.name] = near
            self.widen[own.name] = widened(near, far) if near != far else nn.Identity()

    def forward(
        self,
        student: Mapping[str, Tensor],
        targets: Mapping[str, Target],
        labels: Labels,
        align: Align,
        progress: float,
    ) -> dict[str, Tensor]:
        """Return `harmodistill/LEVEL/balanced`.

        The adapters run under the caller's autocast, the losses in float32.

        Raises:
            TargetMismatchError: mode `compat` meets BEV augmentation.
        """
        if self._compat:
            require_unmoved(align, "harmodistill (mode=compat)")
        balance = self._balance(progress)
        return {
            f"harmodistill/{own.name}/balanced": self.config.balanced
            * own.share
            * self._balanced(own.name, student[own.student], targets[own.teacher].values, balance)
            for own in self._levels
        }

    def _balance(self, progress: float) -> Balance:
        """Return what either direction weighs at this step."""
        config = self.config
        forward, reverse = 1.0, config.balance
        if config.schedule:
            forward, reverse = config.balance * (1 - progress), config.balance * progress
        return Balance(forward, reverse, config.forward_temperature, config.reverse_temperature)

    def _balanced(
        self, level: str, near_BVCHW: Tensor, far_BVCHW: Tensor, balance: Balance
    ) -> Tensor:
        wide_NCHW = self.widen[level](near_BVCHW.flatten(0, 1))
        with torch.autocast(wide_NCHW.device.type, enabled=False):
            near_NCHW = full_precision(wide_NCHW)
            far_NCHW = full_precision(far_BVCHW).flatten(0, 1)
            far_NCHW = resized(far_NCHW, (near_NCHW.shape[2], near_NCHW.shape[3]))
            # Released: as many softmaxes as the student has channels, whatever the adapter made.
            softmaxes = self._channels[level] if self._compat else near_NCHW.shape[1]
            near_NCP, far_NCP = (
                own_NCHW.reshape(len(own_NCHW), softmaxes, -1) for own_NCHW in (near_NCHW, far_NCHW)
            )
            return balanced(near_NCP, far_NCP, balance)

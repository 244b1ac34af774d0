"""Several methods at once: their losses weighted and added, each taught by a cache of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field
from torch import Tensor, nn

from bevcask.cache.union import labelled
from bevcask.config import Config
from bevcask.detectors.base import Labels
from bevcask.errors import ConfigError
from bevcask.methods import build_method
from bevcask.methods.base import Method, Pair
from bevcask.targets.spec import TapInfo, TargetSpec
from bevcask.targets.target import Target

if TYPE_CHECKING:
    from bevcask.targets.align import Align


class SeveralConfig(Config):
    """Who they are: `methods=a,b` on the command line, `method.a.KEY=` for the keys of each."""

    of: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="name -> its own section, with two keys beside: `weight` of its losses, and "
        "`cache`, the label of the cache that teaches it (cache=LABEL=URL,...)",
    )


class Member:
    """One of them.

    Attributes:
        method: as it is alone.
        weight: of its losses.
        label: in front of its targets; empty for none.
    """

    def __init__(self, name: str, section: Mapping[str, Any]) -> None:
        own = dict(section)
        self.weight, self.label = float(own.pop("weight", 1.0)), str(own.pop("cache", ""))
        self.method = build_method(own)
        if self.weight < 0:
            raise ConfigError(f"method.{name}.weight={self.weight}: expected 0 or more.")

    def labelled(self, tap: str) -> str:
        """Return what the run calls a target that the method calls `tap`."""
        return labelled(tap, self.label)

    def own(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is this method's of something by target name, by its own names."""
        taps = {need.tap for need in self.method.needs()}
        return {tap: found[self.labelled(tap)] for tap in taps if self.labelled(tap) in found}


class Several(Method):
    """A sum of methods; every term keeps its method's name, `distillbev/feature`."""

    Config = SeveralConfig

    def __init__(self, config: SeveralConfig) -> None:
        super().__init__()
        self._members = {name: Member(name, section) for name, section in config.of.items()}
        # Adapters belong to the network: parameters are found by modules, not by members.
        self.methods = nn.ModuleDict({name: m.method for name, m in self._members.items()})
        asking = [name for name, member in self._members.items() if member.method.denoises]
        if len(asking) > 1:
            raise ConfigError(
                f"{' and '.join(asking)} both give boxes for denoising queries; switch that off in "
                f"all but one: method.{asking[0]}.denoising=false."
            )
        self._denoiser = self._members[asking[0]] if asking else None

    def pairs(self) -> Sequence[Pair]:
        return [
            replace(
                pair,
                role=f"{name}: {pair.role}",
                teacher=None if pair.teacher is None else member.labelled(pair.teacher),
            )
            for name, member in self._members.items()
            for pair in member.method.pairs()
        ]

    def create(self, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]) -> None:
        for member in self._members.values():
            member.method.build(student, member.own(specs))

    def forward(
        self,
        student: Mapping[str, Tensor],
        targets: Mapping[str, Target],
        labels: Labels,
        align: "Align",
        progress: float,
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for name, member in self._members.items():
            taps = {tap: student[tap] for tap in member.method.student_taps()}
            if not taps:
                continue
            own = member.method(taps, member.own(targets), labels, align, progress)
            terms |= {f"{name}/{term}": member.weight * loss for term, loss in own.items()}
        return terms

    @property
    def denoises(self) -> bool:
        return self._denoiser is not None

    def pseudo_labels(
        self, targets: Mapping[str, Target], labels: Labels, align: "Align"
    ) -> Labels | None:
        assert self._denoiser is not None
        return self._denoiser.method.pseudo_labels(self._denoiser.own(targets), labels, align)

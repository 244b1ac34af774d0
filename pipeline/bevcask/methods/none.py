"""No distillation: the student trains on ground truth alone."""

from collections.abc import Mapping

from torch import Tensor

from bevcask import config as configuration
from bevcask.detectors.base import Labels
from bevcask.methods.base import Method, Pair, Target
from bevcask.targets.align import Align


class NoDistillation(Method):
    """Needs nothing, adds nothing."""

    class Config(configuration.Config):
        """No settings."""

    def __init__(self, config: Config) -> None:
        super().__init__()

    def pairs(self) -> list[Pair]:
        return []

    def forward(
        self,
        student: Mapping[str, Tensor],
        targets: Mapping[str, Target],
        labels: Labels,
        align: Align,
        progress: float,
    ) -> dict[str, Tensor]:
        """Return no loss."""
        return {}

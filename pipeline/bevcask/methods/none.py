"""No distillation: the student trains on ground truth alone."""

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from bevcask import config as configuration
from bevcask.detectors.base import Labels
from bevcask.methods.base import Method, Pair, Target
from bevcask.targets.align import Align


class NoDistillation(Method):
    """Needs nothing, adds nothing."""

    class Config(configuration.Config):
        """What is stored for others to read."""

        heatmap: str | None = Field(
            None, description="teacher tap, a heatmap that is stored whole beside the boxes"
        )

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._heatmap = config.heatmap

    def pairs(self) -> list[Pair]:
        return [] if self._heatmap is None else [Pair("stored", None, self._heatmap, "heatmap")]

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

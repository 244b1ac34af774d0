"""Dense adapters: they bring a student's map to a target's cell size and channels, before `align`.

They see the whole map, so batch statistics are those of online training.
"""

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from bevcask.geometry import Grid
from bevcask.targets.spec import TapInfo

AdapterName = Literal["stack", "linear", "identity"]
_STACK_DEPTH = 3  # DistillBEV released config: three 1x1 conv + BN + ReLU


class Adapter(nn.Module):
    """Upsample bilinearly to the target's cells, then map channels by 1x1 convolutions.

    Args:
        name: `stack` ([1x1 conv, BN, ReLU] x 3, hidden as wide as the student), `linear` (one 1x1
            conv with bias, no BN) or `identity` (channels must agree).
        student: the student's tap, a dense_bev or heatmap.
        target: the teacher's tap.
        align_corners: stretch corner to corner, as the released code does, which shifts the map by
            up to half a coarse cell; otherwise every value keeps its place in metres.

    Attributes:
        grid: where the adapted map lies: the student's range at the target's cell size, or the
            student's own grid where that is as fine already.
    """

    def __init__(
        self, name: AdapterName, student: TapInfo, target: TapInfo, align_corners: bool = False
    ) -> None:
        super().__init__()
        self._align_corners = align_corners
        assert student.grid is not None
        assert target.grid is not None
        self.grid = adapted_grid(student.grid, target.grid)
        channels, wanted = student.shape[0], target.shape[0]
        layers: list[nn.Module] = []
        if name == "stack":
            for step in range(_STACK_DEPTH):
                out = wanted if step == _STACK_DEPTH - 1 else channels
                layers += [
                    nn.Conv2d(channels, out, 1, bias=False),
                    nn.BatchNorm2d(out),
                    nn.ReLU(inplace=True),
                ]
        elif name == "linear":
            layers.append(nn.Conv2d(channels, wanted, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, map_BCYX: Tensor) -> Tensor:
        """Map (B, C_student, Y_student, X_student) to (B, C_target, *grid.shape_YX)."""
        if tuple(map_BCYX.shape[2:]) != self.grid.shape_YX:
            map_BCYX = functional.interpolate(
                map_BCYX,
                size=self.grid.shape_YX,
                mode="bilinear",
                align_corners=self._align_corners,
            )
        adapted: Tensor = self.layers(map_BCYX)
        return adapted


def adapted_grid(student: Grid, target: Grid) -> Grid:
    """Return the grid of the adapted map; see `Adapter.grid`.

    Raises:
        ValueError: the student's range is no whole number of the target's cells.
    """
    if student.cell <= target.cell * (1 + 1e-9):
        return student
    num_x = student.num_x * student.cell / target.cell
    num_y = student.num_y * student.cell / target.cell
    if abs(num_x - round(num_x)) > 1e-6 or abs(num_y - round(num_y)) > 1e-6:
        raise ValueError(
            f"a range of {student.num_x * student.cell:g} x {student.num_y * student.cell:g} m "
            f"does not divide into cells of {target.cell:g} m"
        )
    return Grid(student.x_min, student.y_min, target.cell, round(num_x), round(num_y))


class Restore(nn.Module):
    """Refine a student's map to a target's cells, FocalDistiller's way.

    A stage halves the cells: transposed 4x4 convolution of stride 2 without bias, BN, ReLU; a 3x3
    convolution with bias follows the last (released code: one stage, 100 x 100 to 200 x 200).

    Args:
        channels: of the student.
        wanted: of the target; the last convolution brings them about.
        student: the student's grid.
        restored: its `restored_grid`.
    """

    def __init__(self, channels: int, wanted: int, student: Grid, restored: Grid) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(round(math.log2(restored.num_x / student.num_x))):
            layers += [
                nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        layers.append(nn.Conv2d(channels, wanted, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, map_BCYX: Tensor) -> Tensor:
        """Map (B, C_student, *student.shape_YX) to (B, C_target, *restored.shape_YX)."""
        restored: Tensor = self.layers(map_BCYX)
        return restored


def restored_grid(student: Grid, target: Grid) -> Grid | None:
    """Return the student's range in the target's cells; None unless halving leads there."""
    stages = math.log2(student.cell / target.cell)
    if stages < -1e-6 or abs(stages - round(stages)) > 1e-6:
        return None
    factor = 2 ** round(stages)
    return Grid(
        student.x_min,
        student.y_min,
        student.cell / factor,
        student.num_x * factor,
        student.num_y * factor,
    )

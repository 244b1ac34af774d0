"""Moments by hand, of permuted and of moved maps."""

from dataclasses import replace

import pytest
import torch

from bevcask.errors import TargetMismatchError
from bevcask.geometry import Grid, bev_matrix
from bevcask.targets.align import Align
from bevcask.targets.moments import channel_moments
from bevcask.targets.spec import TapInfo
from contracts.kind import FLIPS, PIXELS, TURNS, KindContract

GRID = Grid.square(4.0, 1.0)


class TestChannelMoments(KindContract):
    tap = TapInfo("bev.moments", "channel_moments", (2, 5), GRID)

    def good(self) -> torch.Tensor:
        return torch.randn(2, 2, 5).abs()

    def broken(self) -> dict[str, torch.Tensor]:
        values = self.good()
        values[1, 1, 2] = -0.1
        return {"variances must not be negative": values}

    def test_negative_means_are_lawful(self) -> None:
        values = self.good()
        values[:, 0] = -3
        self.kind.check(self.tap, values)

    def test_it_says_when_other_ground_comes_in(self) -> None:
        ahead = replace(self.tap, grid=Grid(0.0, -4.0, 1.0, 8, 8))  # no flip permutes its cells
        assert self.kind.alignment(self.tap, FLIPS) == "exact"
        assert self.kind.alignment(self.tap, TURNS) == "approximate"
        assert self.kind.alignment(ahead, FLIPS) == "approximate"
        of_images = replace(self.tap, grid=None, depends_on_images=True)
        assert self.kind.alignment(of_images, TURNS) == "exact"
        assert self.kind.alignment(of_images, PIXELS) == "approximate"

    def test_description(self) -> None:
        assert (
            "a mean and a variance"
            in self.kind.describe_problems(replace(self.tap, shape=(3, 5)))[0]
        )
        assert "give the grid" in self.kind.describe_problems(replace(self.tap, grid=None))[0]


def test_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 3.0]], [[-2.0, -2.0]]]])
    assert channel_moments(maps).tolist() == [[[2.0, -2.0], [1.0, 0.0]]]
    assert channel_moments(maps.half()).dtype == torch.float32
    with pytest.raises(TargetMismatchError, match=r"got \(1, 2\)"):
        channel_moments(maps[..., 0, 0])


def test_flips_keep_them_and_turns_do_not() -> None:
    maps = torch.randn(1, 5, *GRID.shape_YX, dtype=torch.float64)
    for matrix, same in ((bev_matrix(flip_x=True), True), (bev_matrix(0.4), False)):
        moved, _ = Align(torch.as_tensor(matrix)[None]).cells(maps, GRID, GRID)
        close = torch.allclose(channel_moments(moved), channel_moments(maps), rtol=0, atol=1e-12)
        assert close == same

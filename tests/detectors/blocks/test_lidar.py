import pytest
import torch

from bevcask.detectors.blocks.lidar import LidarBranch, LidarConfig
from bevcask.errors import ConfigError
from bevcask.geometry import Grid

SMALL = LidarConfig(
    pillar=1.6,
    pillar_channels=4,
    channels=(4, 6, 8),
    convs=(0, 0, 0),
    strides=(1, 2, 2),
    neck_channels=(4, 5, 6),
    neck_scales=(1.0, 2.0, 4.0),
)


def test_grids_of_pillars_stages_and_neck() -> None:
    grids = LidarConfig(pillar=0.15).grids_over(54.0)
    assert [grid.num_x for grid in grids] == [720, 360, 180, 90, 180]
    assert grids[-1] == Grid.square(54.0, 0.6)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LidarConfig(pillar=0.4), "strides: stage 1"),
        (LidarConfig(pillar=0.15, neck_scales=(1.0, 1.0, 2.0)), "neck_scales"),
    ],
)
def test_sizes_that_cannot_meet_are_named(config: LidarConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.grids_over(54.0)


def test_the_map_lies_on_the_necks_grid_and_is_nonnegative() -> None:
    torch.manual_seed(0)
    branch = LidarBranch(SMALL, 25.6).eval()
    points = [torch.tensor([[10.0, -5.0, 0.0, 100.0, 0.0]]).repeat(3, 1), torch.zeros((0, 5))]
    with torch.inference_mode():
        map_BCYX = branch(points)
    assert map_BCYX.shape == (2, 15, 32, 32)
    assert bool((map_BCYX >= 0).all())
    row, column = (map_BCYX[0] - map_BCYX[1]).abs().sum(dim=0).nonzero().float().mean(dim=0)
    assert float(row) == pytest.approx((-5 + 25.6) / 1.6, abs=1.5)
    assert float(column) == pytest.approx((10 + 25.6) / 1.6, abs=1.5)

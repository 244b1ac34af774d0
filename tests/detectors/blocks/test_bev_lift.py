import pytest
import torch

from bevcask.detectors.blocks.bev_lift import CameraLift, LiftConfig
from bevcask.detectors.blocks.lift_splat import Cameras, splat
from bevcask.geometry import Grid

CONFIG = LiftConfig(
    depth_range=(1.0, 25.0), depth_bins=12, depth_channels=8, depth_blocks=0, channels=6
)
FORWARD = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])  # along +y


def front_camera() -> Cameras:
    return Cameras(
        torch.tensor([[32.0, 0, 32], [0, 32, 16], [0, 0, 1]])[None, None],
        torch.eye(3)[None, None],
        FORWARD[None, None],
        torch.eye(4)[None],
    )


def lift(factor: int) -> CameraLift:
    torch.manual_seed(0)
    config = CONFIG.model_copy(update={"factor": factor})
    return CameraLift(config, 5, Grid.square(25.6, 1.6), stride=8).eval()


@pytest.mark.parametrize("factor", [1, 2])
def test_the_lift_is_finer_and_the_map_on_the_fusion_grid(factor: int) -> None:
    module, cameras = lift(factor), front_camera()
    assert module.grid == Grid.square(25.6, 1.6 / factor)
    image = torch.randn(1, 1, 5, 4, 8)
    cells = module.cells(cameras, image)
    assert cells.shape == (12, 1, 1, 4, 8)
    assert int(cells.max()) == (32 * factor) ** 2  # what falls on no cell
    with torch.inference_mode():
        map_BCYX, logits = module(image, cameras, cells)
    assert map_BCYX.shape == (1, 6, 32, 32)
    assert logits.shape == (1, 1, 12, 4, 8)
    assert bool((map_BCYX >= 0).all())


def test_depth_probabilities_weigh_the_context() -> None:
    module, cameras = lift(1), front_camera()
    module.downsample = torch.nn.Identity()
    module.depth_net.context.weight.data.zero_()
    module.depth_net.context.bias.data = torch.arange(6.0)  # the same context everywhere
    image = torch.randn(1, 1, 5, 4, 8)
    cells = module.cells(cameras, image)
    with torch.inference_mode():
        lifted, logits = module(image, cameras, cells)
        seen = splat(logits.softmax(dim=2), torch.ones(1, 1, 1, 4, 8), cells, module.grid)
    assert 5 < float(seen.sum()) < 32  # of 32 rays with a weight of one each
    torch.testing.assert_close(lifted, seen * torch.arange(6.0)[:, None, None])
    assert float(seen[:, :, :16].sum()) == 0  # behind the camera


def test_depths_must_rise() -> None:
    with pytest.raises(ValueError, match="depth_range"):
        LiftConfig(depth_range=(5.0, 1.0))
    config = LiftConfig()
    assert (config.bin_size, config.bin_centres[0], config.bin_centres[-1]) == (0.5, 1.25, 59.75)

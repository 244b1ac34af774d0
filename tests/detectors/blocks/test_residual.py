import torch

from bevcask.detectors.blocks.residual import ResidualStages


def test_stages_stride_and_are_nonnegative() -> None:
    torch.manual_seed(0)
    stages = ResidualStages(3, (4, 6, 8), (2, 0, 1), (1, 2, 4)).eval()
    assert [len(stage) for stage in stages.stages] == [3, 1, 2]
    with torch.inference_mode():
        maps = stages(torch.randn((2, 3, 16, 24)))
    assert [tuple(found.shape) for found in maps] == [(2, 4, 16, 24), (2, 6, 8, 12), (2, 8, 2, 3)]
    assert all(bool((found >= 0).all()) for found in maps)


def test_a_block_that_adds_nothing_passes_its_input_on() -> None:
    torch.manual_seed(0)
    stages = ResidualStages(3, (4,), (2,), (1,)).eval()
    first, *blocks = stages.stages[0]
    for block in blocks:
        torch.nn.init.zeros_(block.conv2.weight)
    map_BCYX = torch.randn((1, 3, 5, 5))
    with torch.inference_mode():
        assert torch.equal(stages(map_BCYX)[0], first(map_BCYX))

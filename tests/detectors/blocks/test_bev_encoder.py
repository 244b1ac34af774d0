import torch

from bevcask.detectors.blocks.bev_encoder import BEVBackbone, BEVNeck


def test_stages_halve_and_are_nonnegative() -> None:
    backbone = BEVBackbone(6, (8, 12, 16), 2)
    maps = backbone(torch.randn(2, 6, 32, 32))
    assert [tuple(own.shape) for own in maps] == [
        (2, 8, 16, 16),
        (2, 12, 8, 8),
        (2, 16, 4, 4),
    ]
    assert all(bool((own >= 0).all()) for own in maps)
    assert [len(stage) for stage in backbone.stages] == [2, 2, 2]


def test_a_stage_may_keep_the_size() -> None:
    backbone = BEVBackbone(6, (8, 12, 16), 1, strides=(2, 2, 1))
    assert [own.shape[-1] for own in backbone(torch.randn(1, 6, 36, 36))] == [18, 9, 9]
    assert backbone.stages[2][0].downsample.kernel_size == (3, 3)


def test_shortcuts_that_stride_are_3x3_even_when_the_width_stays() -> None:
    for stage in BEVBackbone(8, (8, 8, 16), 2).stages:
        assert stage[0].downsample.kernel_size == (3, 3)
        assert stage[0].downsample.stride == (2, 2)
        assert stage[1].downsample is None


def test_the_neck_joins_finest_and_coarsest_at_twice_the_resolution() -> None:
    neck = BEVNeck(8 + 16, 10, 7).eval()
    maps = [torch.rand(1, 8, 16, 16), torch.rand(1, 12, 8, 8), torch.rand(1, 16, 4, 4)]
    with torch.no_grad():
        joined = neck(maps)
        assert tuple(joined.shape) == (1, 7, 32, 32)
        assert bool((joined >= 0).all())
        for index, matters in ((0, True), (1, False), (2, True)):
            changed = list(maps)
            changed[index] = maps[index] + 1
            assert torch.equal(neck(changed), joined) is not matters


def test_the_neck_commutes_with_flips() -> None:
    neck = BEVNeck(4 + 4, 4, 4).eval()
    for module in neck.modules():
        if isinstance(module, torch.nn.Conv2d):
            weight = module.weight.data
            module.weight.data = (weight + weight.flip(-1)) / 2
    maps = [torch.rand(1, 4, 16, 16), torch.rand(1, 4, 8, 8), torch.rand(1, 4, 4, 4)]
    with torch.no_grad():
        mirrored = neck([own.flip(-1) for own in maps])
        torch.testing.assert_close(mirrored, neck(maps).flip(-1), atol=1e-6, rtol=1e-5)

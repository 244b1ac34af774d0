import torch

from bevcask.detectors.blocks.fpn import FeaturePyramid, encode_images
from bevcask.detectors.blocks.resnet import ResNet


def test_coarser_levels_are_added_by_nearest_repetition() -> None:
    pyramid = FeaturePyramid([1, 1], 1)
    with torch.no_grad():
        for conv in (*pyramid.laterals, pyramid.output):
            conv.weight.zero_()
            conv.bias.zero_()
        pyramid.laterals[0].weight.fill_(1.0)
        pyramid.laterals[1].weight.fill_(10.0)
        pyramid.output.weight[0, 0, 1, 1] = 1.0
    fine = torch.arange(24.0).view(1, 1, 4, 6)
    coarse = torch.arange(6.0).view(1, 1, 2, 3)
    expected = fine + 10 * coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(pyramid([fine, coarse]), expected)


def test_the_output_has_the_finest_resolution() -> None:
    pyramid = FeaturePyramid([4, 8, 16], 5)
    maps = [torch.zeros(2, c, 16 // s, 24 // s) for c, s in ((4, 1), (8, 2), (16, 4))]
    assert tuple(pyramid(maps).shape) == (2, 5, 16, 24)


def test_cameras_are_encoded_apart() -> None:
    backbone = ResNet("resnet_tiny").eval()
    pyramid = FeaturePyramid([backbone.channels["c4"], backbone.channels["c5"]], 7)
    images = torch.randn(2, 3, 3, 32, 64)
    with torch.inference_mode():
        encoded = encode_images(backbone, pyramid, ("c4", "c5"), images)
        alone = encode_images(backbone, pyramid, ("c4", "c5"), images[1:, 2:])
    assert encoded.shape == (2, 3, 7, 2, 4)
    torch.testing.assert_close(encoded[1:, 2:], alone, atol=1e-5, rtol=1e-4)

"""ResNets carry torchvision's names and shapes."""

import pytest
import torch

from bevcask.detectors.blocks.levels import LEVELS, STRIDES
from bevcask.detectors.blocks.resnet import ResNet, Variant

NUM_FC = 2  # fc.weight and fc.bias, which torchvision's files have and a backbone has not


def torchvision_names(blocks: tuple[int, ...], convs: int) -> set[str]:
    """The names of a torchvision ResNet without fc, spelt from its published layout."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {"conv1.weight", *(f"bn1.{n}" for n in norm)}
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            for conv in range(1, convs + 1):
                names |= {f"{prefix}.conv{conv}.weight", *(f"{prefix}.bn{conv}.{n}" for n in norm)}
            if block == 0 and (stage > 1 or convs == 3):
                names |= {f"{prefix}.downsample.0.weight"}
                names |= {f"{prefix}.downsample.1.{n}" for n in norm}
    return names


@pytest.mark.parametrize(
    ("variant", "blocks", "convs", "count", "parameters"),
    [
        ("resnet18", (2, 2, 2, 2), 2, 122, 11_176_512),
        ("resnet50", (3, 4, 6, 3), 3, 320, 23_508_032),
    ],
)
def test_names_are_torchvisions(
    variant: Variant, blocks: tuple[int, ...], convs: int, count: int, parameters: int
) -> None:
    network = ResNet(variant)
    assert len(network.state_dict()) + NUM_FC == count
    assert set(network.state_dict()) == torchvision_names(blocks, convs)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("variant", "name", "shape"),
    [
        ("resnet18", "conv1.weight", (64, 3, 7, 7)),
        ("resnet18", "layer1.0.conv1.weight", (64, 64, 3, 3)),
        ("resnet18", "layer2.0.downsample.0.weight", (128, 64, 1, 1)),
        ("resnet18", "layer4.1.bn2.running_var", (512,)),
        ("resnet50", "layer1.0.conv1.weight", (64, 64, 1, 1)),
        ("resnet50", "layer1.0.downsample.0.weight", (256, 64, 1, 1)),
        ("resnet50", "layer1.2.conv1.weight", (64, 256, 1, 1)),
        ("resnet50", "layer3.0.conv2.weight", (256, 256, 3, 3)),
        ("resnet50", "layer4.2.conv3.weight", (2048, 512, 1, 1)),
    ],
)
def test_shapes_are_torchvisions(variant: Variant, name: str, shape: tuple[int, ...]) -> None:
    assert tuple(ResNet(variant).state_dict()[name].shape) == shape


def test_the_stride_of_a_bottleneck_sits_on_its_3x3() -> None:
    block = ResNet("resnet50").layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


@pytest.mark.parametrize("variant", ["resnet_tiny", "resnet18", "resnet50"])
def test_levels_have_their_strides_and_channels(variant: Variant) -> None:
    network = ResNet(variant).eval()
    with torch.inference_mode():
        maps = network(torch.zeros(1, 3, 64, 96))
    assert tuple(maps) == LEVELS
    for level, values in maps.items():
        shape = (1, network.channels[level], 64 // STRIDES[level], 96 // STRIDES[level])
        assert tuple(values.shape) == shape


def test_a_basic_block_is_residual() -> None:
    network = ResNet("resnet18").eval()
    block = network.layer1[1]
    with torch.no_grad():
        block.bn2.weight.zero_()
    features = torch.rand(1, 64, 4, 4)
    assert torch.equal(block(features), features)

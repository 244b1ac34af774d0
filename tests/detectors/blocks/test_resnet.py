"""ResNets carry torchvision's names and shapes, and load its checkpoints or say why not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bevcask.detectors.blocks.resnet import LEVELS, STRIDES, ResNet, Variant, load_imagenet
from bevcask.errors import CheckpointError

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


@pytest.fixture
def checkpoint() -> dict[str, Tensor]:
    """Weights as torchvision would ship them for the tiny network."""
    torch.manual_seed(5)
    state = {name: value.clone() for name, value in ResNet("resnet_tiny").state_dict().items()}
    return {**state, "fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}


def write(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("file", ["imagenet.pth", "imagenet.safetensors"])
def test_checkpoints_load_and_fc_is_ignored(
    file: str, checkpoint: dict[str, Tensor], tmp_path: Path
) -> None:
    network = ResNet("resnet_tiny")
    load_imagenet(network, write(checkpoint, tmp_path / file))
    for name, value in network.state_dict().items():
        assert torch.equal(value, checkpoint[name]), name


def test_old_checkpoints_without_step_counters_load(
    checkpoint: dict[str, Tensor], tmp_path: Path
) -> None:
    old = {k: v for k, v in checkpoint.items() if not k.endswith("num_batches_tracked")}
    network = ResNet("resnet_tiny")
    load_imagenet(network, write(old, tmp_path / "old.pth"))
    assert torch.equal(network.conv1.weight, checkpoint["conv1.weight"])


def test_every_mismatch_is_counted_and_nothing_is_loaded(
    checkpoint: dict[str, Tensor], tmp_path: Path
) -> None:
    del checkpoint["bn1.weight"], checkpoint["bn1.bias"]
    checkpoint["layer5.0.conv1.weight"] = torch.zeros(1)
    checkpoint["conv1.weight"] = torch.zeros(16, 3, 3, 3)
    network = ResNet("resnet_tiny")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_imagenet(network, write(checkpoint, tmp_path / "wrong.pth"))
    message = str(caught.value)
    assert "2 missing (bn1.bias, bn1.weight)" in message
    assert "1 unexpected (layer5.0.conv1.weight)" in message
    assert (
        "1 of another shape (conv1.weight (expected (16, 3, 7, 7), got (16, 3, 3, 3)))" in message
    )
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("bn1.bias", None, "1 missing (bn1.bias); 0 unexpected; 0 of another shape"),
        ("layer9.weight", torch.zeros(1), "0 missing; 1 unexpected (layer9.weight)"),
        ("bn1.bias", torch.zeros(3), "0 missing; 0 unexpected; 1 of another shape (bn1.bias"),
    ],
)
def test_one_mismatch_is_enough(
    name: str, value: Tensor | None, words: str, checkpoint: dict[str, Tensor], tmp_path: Path
) -> None:
    changed = {key: own for key, own in checkpoint.items() if key != name}
    if value is not None:
        changed[name] = value
    with pytest.raises(CheckpointError) as caught:
        load_imagenet(ResNet("resnet_tiny"), write(changed, tmp_path / "wrong.pth"))
    assert words in str(caught.value)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    network = ResNet("resnet_tiny")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_imagenet(network, tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="not a weights-only torch file"):
        load_imagenet(network, tmp_path / "text.pth")
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "epoch": 3}, tmp_path / "run.pth")
    with pytest.raises(CheckpointError, match="flat mapping"):
        load_imagenet(network, tmp_path / "run.pth")
    torch.save({"hook": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="not a weights-only torch file"):
        load_imagenet(network, tmp_path / "code.pth")

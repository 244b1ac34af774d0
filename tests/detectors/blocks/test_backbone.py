"""Published weights fill the image backbone they fit, or the message says why not."""

from collections import OrderedDict
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bevcask.detectors.blocks.backbone import Variant, build_backbone, load_imagenet
from bevcask.detectors.blocks.levels import LEVELS, STRIDES
from bevcask.detectors.blocks.resnet import ResNet
from bevcask.detectors.blocks.swin import Shape, Swin
from bevcask.errors import CheckpointError

SMALL = Shape(4, (1, 1, 2, 1), (1, 2, 2, 2), window=3)


@pytest.mark.parametrize("variant", get_args(Variant))
def test_every_backbone_gives_maps_of_the_stated_shapes(variant: Variant) -> None:
    backbone = build_backbone(variant, LEVELS[1:]).eval()
    with torch.inference_mode():
        maps = backbone(torch.rand(2, 3, 64, 96))
    for level in LEVELS[1:]:
        shape = (2, backbone.channels[level], 64 // STRIDES[level], 96 // STRIDES[level])
        assert tuple(maps[level].shape) == shape
        assert float(maps[level].std()) > 0


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
    with pytest.raises(CheckpointError, match="not a torch file of tensors alone"):
        load_imagenet(network, tmp_path / "text.pth")
    torch.save({"net": {"conv1.weight": torch.zeros(1)}, "epoch": 3}, tmp_path / "run.pth")
    with pytest.raises(CheckpointError, match="holds no tensors, neither at the top nor under"):
        load_imagenet(network, tmp_path / "run.pth")
    torch.save({"hook": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="not a torch file of tensors alone"):
        load_imagenet(network, tmp_path / "code.pth")


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_a_state_dict_may_lie_one_level_down(
    key: str, checkpoint: dict[str, Tensor], tmp_path: Path
) -> None:
    network = ResNet("resnet_tiny")
    torch.save({key: OrderedDict(checkpoint), "epoch": 3}, tmp_path / "run.pth")
    load_imagenet(network, tmp_path / "run.pth")
    assert torch.equal(network.conv1.weight, checkpoint["conv1.weight"])


def classifier(swin: Swin) -> dict[str, Tensor]:
    """What the official release ships of a classifier: one last norm, a head, and tables."""
    state = {
        name: torch.rand_like(value)
        for name, value in swin.state_dict().items()
        if not name.startswith("norm")
    }
    extra = {"norm.weight": torch.zeros(32), "norm.bias": torch.zeros(32)}
    extra |= {"head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}
    extra |= {f"{_FIRST}.relative_position_index": torch.zeros(9, 9, dtype=torch.int64)}
    return state | extra | {"layers.2.blocks.1.attn_mask": torch.zeros(4, 9, 9)}


_FIRST = "layers.0.blocks.0.attn"


def test_a_swin_classifier_fills_all_but_the_norms_of_levels(tmp_path: Path) -> None:
    network = Swin(SMALL, LEVELS)
    official = classifier(network)
    torch.save({"model": official}, tmp_path / "swin.pth")
    load_imagenet(network, tmp_path / "swin.pth")
    for name, value in network.state_dict().items():
        if name.startswith("norm"):
            assert bool((value == float(name.endswith("weight"))).all()), name
        else:
            assert torch.equal(value, official[name]), name


def test_a_swin_detector_fills_the_norms_of_the_levels_it_gives(tmp_path: Path) -> None:
    donor, network = Swin(SMALL, LEVELS), Swin(SMALL, LEVELS[1:])
    state = {f"backbone.{n}": torch.rand_like(v) for n, v in donor.state_dict().items()}
    save_file({**state, "neck.conv.weight": torch.zeros(1)}, tmp_path / "detector.safetensors")
    load_imagenet(network, tmp_path / "detector.safetensors")
    assert not any(name.startswith("norm0") for name in network.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[f"backbone.{name}"]), name


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (f"{_FIRST}.qkv.bias", None, f"1 missing ({_FIRST}.qkv.bias)"),
        ("stages.0.blocks.0.norm1.weight", torch.zeros(4), "1 unexpected (stages.0.blocks.0.norm1"),
        (f"{_FIRST}.relative_position_bias_table", torch.zeros(9, 1), "1 of another shape"),
    ],
)
def test_other_swin_weights_are_refused(
    name: str, value: Tensor | None, words: str, tmp_path: Path
) -> None:
    network = Swin(SMALL, LEVELS)
    changed = {key: own for key, own in classifier(network).items() if key != name}
    if value is not None:
        changed[name] = value
    with pytest.raises(CheckpointError) as caught:
        load_imagenet(network, write(changed, tmp_path / "swin.pth"))
    assert words in str(caught.value)
    assert "Give official Swin weights" in str(caught.value)


def test_weights_of_a_resnet_do_not_fit_a_swin(
    checkpoint: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        load_imagenet(Swin(SMALL, LEVELS), write(checkpoint, tmp_path / "resnet.pth"))

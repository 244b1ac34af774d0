"""What a BEVFormer inherits and starts from, name by name (FocalDistiller's three policies)."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bevcask.config import Inherit, StudentConfig
from bevcask.detectors.bevformer import BEVFormer
from bevcask.detectors.bevformer_names import published_name, published_start
from bevcask.detectors.weights import save_weights
from bevcask.errors import CheckpointError, ConfigError
from bevcask.training.checkpoint import inherit_head, start
from detectors.small_bevformer import SMALL, shipped, small_bevformer


def student() -> BEVFormer:
    """Half the cells, one layer less in the encoder, other image levels: as FocalDistiller's."""
    torch.manual_seed(5)
    encoder = SMALL.encoder.model_copy(update={"layers": 1})
    backbone = SMALL.backbone.model_copy(update={"levels": ("c2", "c3", "c4", "c5")})
    update = {"bev_size_YX": (5, 4), "encoder": encoder, "backbone": backbone}
    return BEVFormer(SMALL.model_copy(update=update))


@pytest.fixture
def head(tmp_path: Path) -> Path:
    path = tmp_path / "cache.head.safetensors"
    save_weights(small_bevformer().head_weights(), path, {})
    return path


def taken(policy: Inherit, head: Path) -> set[str]:
    """Return the tensors that are the teacher's afterwards; the others are what they were."""
    own, teacher = student(), small_bevformer().state_dict()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    names = own.inherits(policy)
    copied = inherit_head(own, head, policy)
    found = {name for name in before if name.startswith(tuple(names))} if names else set()
    assert copied == len(found)
    for name, tensor in own.state_dict().items():
        assert torch.equal(tensor, (teacher if name in found else before)[name]), name
    return found


def test_full_head(head: Path) -> None:
    own = student().state_dict()
    bev = {"encoder.bev_queries", "encoder.row_positions", "encoder.column_positions"}
    fits = {name for name in own if name.startswith(("encoder.", "decoder."))} - bev
    assert taken("full_head", head) == fits
    assert "encoder.layers.1.temporal.value.weight" in small_bevformer().head_weights()


def test_surviving_subset(head: Path) -> None:
    found = taken("surviving_subset", head)
    assert "decoder.queries" in found
    assert all(
        name == "decoder.queries" or name.startswith(("decoder.classify.", "decoder.regress."))
        for name in found
    )
    names = student().inherits("surviving_subset")
    assert "decoder.classify.1.6.weight" in names
    assert "decoder.classify.1.6.bias" not in names
    assert "decoder.classify.1" not in names


def test_none(head: Path) -> None:
    assert taken("none", head) == set()


def test_a_head_of_other_sizes_is_refused_by_name(head: Path) -> None:
    other = BEVFormer(SMALL.model_copy(update={"queries": 25}))
    with pytest.raises(CheckpointError, match=r"1 of another shape: decoder\.queries"):
        inherit_head(other, head)


def test_other_detectors_know_no_surviving_subset() -> None:
    from bevcask.config import build_config
    from bevcask.groups import load_group

    plugin, config = build_config("detector", load_group("detector", "bevdepth_tiny"), "x")
    with pytest.raises(ConfigError, match="of bevformer alone"):
        plugin(config).inherits("surviving_subset")


def published(detector: BEVFormer) -> dict[str, Tensor]:
    """What a published FCOS3D network of this backbone holds: heads of its own, a longer neck."""
    parts = {
        published_name(name): own
        for name, own in detector.state_dict().items()
        if name.startswith(("backbone.", "pyramid.")) and "num_batches" not in name
    }
    return {
        **parts,
        "bbox_head.cls.weight": torch.ones(3),
        "img_neck.fpn_convs.4.conv.bias": torch.ones(3),
    }


def test_a_published_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(9)
    donor, own = BEVFormer(SMALL), small_bevformer()
    path = tmp_path / "fcos3d.pth"
    torch.save({"meta": {}, "state_dict": published(donor)}, path)
    with caplog.at_level(logging.INFO):
        start(own, StudentConfig(detector={}, init=str(path)))
    theirs, fresh = donor.state_dict(), small_bevformer().state_dict()
    for name, tensor in own.state_dict().items():
        source = theirs if name.startswith(("backbone.", "pyramid.")) else fresh
        assert torch.equal(tensor, source[name]), name
    assert "2 are of other parts" in caplog.text


def test_levels_of_the_neck_that_differ_stay(tmp_path: Path) -> None:
    own = student().state_dict()
    found = published_start(published(small_bevformer()), own)
    assert found is not None
    assert "pyramid.laterals.0.weight" not in found, "another level of the backbone"
    assert "pyramid.outputs.0.weight" in found


def test_another_backbone_is_refused_by_name() -> None:
    given = published(small_bevformer())
    del given["img_backbone.layer3.0.conv2.conv_offset.weight"]
    given["img_backbone.conv1.weight"] = torch.ones(8, 3, 7, 7)
    with pytest.raises(CheckpointError, match=r"layer3\.0\.conv2\.conv_offset\.weight is missing"):
        published_start(given, small_bevformer().state_dict())
    with pytest.raises(CheckpointError, match=r"img_backbone\.conv1\.weight should have shape"):
        published_start(given, small_bevformer().state_dict())


def test_other_files_are_not_of_the_family() -> None:
    assert published_start({"conv1.weight": torch.ones(1)}, small_bevformer().state_dict()) is None


@pytest.mark.parametrize("name", ["bevformer_tiny", "bevformer_tiny_student"])
def test_tiny_ones_start_from_bevdepth(name: str) -> None:
    own = BEVFormer(shipped(name))
    start(own, StudentConfig(detector={}, init="catalog:bevdepth_tiny_start"))

"""Starts of a student: ImageNet, a checkpoint, a teacher's head."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bevcask.config import StudentConfig
from bevcask.detectors.blocks.heads import CenterHeadConfig
from bevcask.detectors.centerpoint import CenterPoint, CenterPointConfig
from bevcask.detectors.weights import save_weights
from bevcask.errors import CheckpointError, ConfigError
from bevcask.training.checkpoint import HEAD, inherit_head, make_note, start


def detector(seed: int, neck: int = 8, channels: int = 8) -> CenterPoint:
    torch.manual_seed(seed)
    return CenterPoint(
        CenterPointConfig(
            pillar=0.8,
            pillar_channels=8,
            channels=(8, 8, 8),
            convs=(1, 1, 1),
            strides=(1, 2, 2),
            neck_channels=(neck, neck, neck),
            neck_scales=(1.0, 2.0, 4.0),
            head=CenterHeadConfig(channels=channels),
        )
    )


def save_head(teacher: CenterPoint, path: Path) -> None:
    """Write what `teacher-extract` writes beside a cache."""
    state = teacher.state_dict()
    save_weights({name: state[name] for name in state if name.startswith(HEAD)}, path, {})


def test_head_branches_are_inherited_and_nothing_else(tmp_path: Path) -> None:
    teacher, student = detector(1, neck=16), detector(2)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    save_head(teacher, tmp_path / "head.safetensors")
    copied = inherit_head(student, tmp_path / "head.safetensors")
    state, theirs = student.state_dict(), teacher.state_dict()
    branches = [name for name in state if name.startswith(HEAD)]
    assert copied == len(branches) > 0
    assert all(torch.equal(state[name], theirs[name]) for name in branches)
    others = [name for name in state if not name.startswith(HEAD)]
    assert any(name.startswith("head.") for name in others)  # the shared convolution stays
    assert all(torch.equal(state[name], before[name]) for name in others)


def test_head_of_another_shape_is_refused_and_nothing_copied(tmp_path: Path) -> None:
    save_head(detector(1, channels=16), tmp_path / "head.safetensors")
    student = detector(2)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"of another shape: head\.tasks\.") as caught:
        inherit_head(student, tmp_path / "head.safetensors")
    assert "student.head" in str(caught.value)
    assert all(torch.equal(t, before[n]) for n, t in student.state_dict().items())


def test_incomplete_head_is_refused(tmp_path: Path) -> None:
    save_head(detector(1), tmp_path / "head.safetensors")
    tensors = load_file(tmp_path / "head.safetensors")
    del tensors[min(tensors)]
    save_file(tensors, tmp_path / "head.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing: head\.tasks"):
        inherit_head(detector(2), tmp_path / "head.safetensors")


def test_the_head_comes_after_the_checkpoint(tmp_path: Path) -> None:
    teacher, trained, student = detector(1), detector(2), detector(3)
    save_head(teacher, tmp_path / "head.safetensors")
    save_weights(trained.state_dict(), tmp_path / "student.safetensors", {})
    loaded = start(
        student,
        StudentConfig(
            checkpoint=str(tmp_path / "student.safetensors"),
            head=str(tmp_path / "head.safetensors"),
        ),
    )
    state = student.state_dict()
    for name, tensor in state.items():
        source = teacher if name.startswith(HEAD) else trained
        assert torch.equal(tensor, source.state_dict()[name]), name
    assert loaded["head_tensors"] == sum(name.startswith(HEAD) for name in state)


def test_imagenet_weights_need_an_image_backbone() -> None:
    with pytest.raises(ConfigError, match="CenterPoint has no image backbone"):
        start(detector(1), StudentConfig(init="resnet50.pth"))


def test_missing_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        start(detector(1), StudentConfig(checkpoint=str(tmp_path / "gone.safetensors")))


def test_note_is_strings_only() -> None:
    note = make_note({"type": "centerpoint"}, None, None)
    assert note["cache"] == "none"
    assert all(isinstance(value, str) for value in note.values())

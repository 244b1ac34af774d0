"""Starts of a student: ImageNet, a checkpoint, a teacher's head."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bevcask.config import StudentConfig, build_config
from bevcask.detectors.base import Detector
from bevcask.detectors.blocks.heads import CenterHeadConfig
from bevcask.detectors.blocks.resnet import ResNet
from bevcask.detectors.centerpoint import CenterPoint, CenterPointConfig
from bevcask.detectors.weights import save_weights
from bevcask.errors import CheckpointError, ConfigError
from bevcask.groups import load_group
from bevcask.training.checkpoint import HEAD, inherit_head, make_note, start
from detectors.scenes import camera_batch, scan


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


def shipped(name: str) -> Detector:
    plugin, config = build_config("detector", load_group("detector", name), "student.detector")
    network: Detector = plugin(config)
    return network


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


def test_imagenet_weights_need_an_image_backbone(tmp_path: Path) -> None:
    path = tmp_path / "resnet50.pth"
    torch.save({"conv1.weight": torch.ones(1)}, path)
    with pytest.raises(ConfigError, match="CenterPoint has no image backbone"):
        start(detector(1), StudentConfig(init=str(path)))


def test_two_detectors_start_a_fusion_teacher() -> None:
    """The LiDAR branch then says what CenterPoint says, the image branch what BEVDepth says."""
    fusion = shipped("bevfusion_tiny")
    init = "catalog:bevdepth_tiny_start,catalog:centerpoint_tiny_synthetic"
    assert start(fusion, StudentConfig(init=init)) == {"init": init}
    lidar, camera = shipped("centerpoint_tiny"), shipped("bevdepth_tiny")
    start(lidar, StudentConfig(checkpoint="catalog:centerpoint_tiny_synthetic"))
    start(camera, StudentConfig(checkpoint="catalog:bevdepth_tiny_start"))
    batch = camera_batch(1, 0, (160, 288))
    batch.points = [scan(0)]
    with torch.inference_mode():
        fused, points, images = (net.eval()(batch) for net in (fusion, lidar, camera))
    assert torch.equal(fused.taps["bev.lidar"], points.taps["bev.neck"])
    assert torch.equal(fused.taps["image.fpn0"], images.taps["image.fpn0"])
    assert torch.equal(fused.preds["depth"], images.preds["depth"])
    tasks = [name for name in fusion.state_dict() if name.startswith(HEAD)]
    assert tasks
    assert all(torch.equal(fusion.state_dict()[n], lidar.state_dict()[n]) for n in tasks)


def test_a_camera_detector_starts_both_branches_of_the_student() -> None:
    student = shipped("bevsimdet_tiny")
    start(student, StudentConfig(init="catalog:bevdepth_tiny_start"))
    state = student.state_dict()
    nets = [name for name in state if name.startswith("camera.depth_net.")]
    assert len(nets) > 20
    assert all(torch.equal(state[n], state[n.replace("camera", "simulated", 1)]) for n in nets)


def test_a_part_that_does_not_fit_is_refused_and_nothing_copied(tmp_path: Path) -> None:
    fusion, path = shipped("bevfusion_tiny"), tmp_path / "centerpoint.safetensors"
    state = shipped("centerpoint_tiny").state_dict()
    del state["encoder.linear.weight"]
    state["neck.branches.0.0.weight"] = torch.zeros(3)
    state["backbone.stages.3.0.0.weight"] = torch.zeros(3)
    save_weights(state, path, make_note({"type": "centerpoint"}, None, None))
    before = {name: tensor.clone() for name, tensor in fusion.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        start(fusion, StudentConfig(init=str(path)))
    message = str(caught.value)
    assert "does not fit lidar.encoder, lidar.backbone, lidar.neck, head.tasks" in message
    assert "1 missing: encoder.linear.weight;" in message
    assert "1 unexpected: backbone.stages.3.0.0.weight;" in message
    assert "1 of another shape: lidar.neck.branches.0.0.weight (expected" in message
    assert "leave student.init out" in message
    assert all(torch.equal(t, before[n]) for n, t in fusion.state_dict().items())


def test_a_detector_that_starts_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds a bevdepth, which starts no part of CenterPoint"):
        start(detector(1), StudentConfig(init="catalog:bevdepth_tiny_start"))


def test_imagenet_weights_still_start_the_backbone(tmp_path: Path) -> None:
    fusion, source = shipped("bevfusion_tiny"), ResNet("resnet_tiny")
    save_weights(source.state_dict(), tmp_path / "imagenet.safetensors", {})
    start(fusion, StudentConfig(init=str(tmp_path / "imagenet.safetensors")))
    assert torch.equal(fusion.state_dict()["backbone.conv1.weight"], source.conv1.weight)


@pytest.mark.parametrize(
    ("name", "init", "said"),
    [
        ("bevdepth_tiny", None, True),
        ("bevsimdet_tiny", "catalog:bevdepth_tiny_start", False),
        ("centerpoint_tiny", None, False),
    ],
)
def test_a_random_image_backbone_is_told(
    name: str, init: str | None, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    start(shipped(name), StudentConfig(init=init))
    told = [text for text in caplog.messages if "random weights" in text]
    assert len(told) == said
    assert all("student.init=FILE" in text and "torchvision weights" in text for text in told)


def test_a_broken_start_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        start(detector(1), StudentConfig(init=str(tmp_path / "broken.safetensors")))


def test_missing_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        start(detector(1), StudentConfig(checkpoint=str(tmp_path / "gone.safetensors")))


def test_note_is_strings_only() -> None:
    note = make_note({"type": "centerpoint"}, None, None)
    assert note["cache"] == "none"
    assert all(isinstance(value, str) for value in note.values())

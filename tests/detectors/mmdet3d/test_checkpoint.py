"""Checkpoints of mmdet3d models: which are read, which are refused, and what identifies them."""

import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from bevcask.cli import app
from bevcask.config import TeacherConfig
from bevcask.detectors.base import Batch
from bevcask.detectors.mmdet3d.detector import Mmdet3dDetector
from bevcask.detectors.weights import NETWORK, identify, read_weights
from bevcask.errors import CheckpointError
from bevcask.groups import load_group
from bevcask.teachers.native import NativeTeacher

pytestmark = pytest.mark.mmdet3d


def teacher(
    group: str = "mmdet3d_centerpoint_tiny", seed: int = 3, **more: object
) -> NativeTeacher:
    return NativeTeacher(TeacherConfig.model_validate(load_group("teacher", group) | more), seed)


def network(source: NativeTeacher) -> torch.nn.Module:
    assert isinstance(source.detector, Mmdet3dDetector)
    return source.detector.network


@pytest.fixture(scope="module")
def pickled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as mmengine's runner writes it: a pickle with more than tensors in it."""
    path = tmp_path_factory.mktemp("checkpoints") / "epoch_20.pth"
    state = network(teacher()).state_dict()
    torch.save({"meta": {"epoch": 20, "path": path}, "state_dict": state}, path)
    return path


def test_pickle_is_not_read_without_consent(pickled: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        teacher(checkpoint=str(pickled)).load("cpu")
    message = str(caught.value)
    assert "is a pickle, and reading a pickle can run any code" in message
    assert "teacher.trust_checkpoint=true" in message
    assert "bevcask export" in message


def test_reading_without_consent_runs_nothing(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError):
        teacher(checkpoint=str(tmp_path / "bomb.pth")).load("cpu")
    assert not (tmp_path / "ran").exists()


def test_trusted_pickle_is_the_same_teacher(pickled: Path) -> None:
    trusted = teacher(checkpoint=str(pickled), trust_checkpoint=True, seed=4)
    original = teacher()
    one, two = trusted.fingerprint(), original.fingerprint()
    assert one.pop("checkpoint") == "file"
    assert two.pop("checkpoint") == "random, seed 3"
    assert one == two
    assert one["type"] == "native/mmdet3d"
    assert one["config"]["versions"]["mmcv"] == "2.1.0"
    assert teacher(seed=4).fingerprint()["weights"] != one["weights"]


def test_export_converts_a_pickle_once(pickled: Path, tmp_path: Path) -> None:
    out = tmp_path / "epoch_20.safetensors"
    words = ["teacher=mmdet3d_centerpoint_tiny", f"teacher.checkpoint={pickled}"]
    runner = CliRunner()
    refused = runner.invoke(app, ["export", str(out), *words])
    assert refused.exit_code == 2
    assert "trust_checkpoint" in refused.stderr
    done = runner.invoke(app, ["export", str(out), *words, "teacher.trust_checkpoint=true"])
    assert done.exit_code == 0, done.stderr
    converted = teacher(checkpoint=str(out), seed=4)
    assert converted.fingerprint()["weights"] == teacher().fingerprint()["weights"]
    own_names = {name.removeprefix(NETWORK): t for name, t in read_weights(out).items()}
    network(teacher(seed=5)).load_state_dict(own_names)
    assert identify(own_names) == identify(read_weights(out))


def test_checkpoint_of_another_architecture_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    state = dict(network(teacher()).state_dict())
    state["pts_neck.extra.weight"] = state.pop("pts_bbox_head.shared_conv.conv.weight")
    state["pts_backbone.blocks.0.0.weight"] = torch.zeros((7, 32, 3, 3))
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        teacher(checkpoint=str(path), trust_checkpoint=True).load("cpu")
    message = str(caught.value)
    assert "1 missing: network.pts_bbox_head.shared_conv.conv.weight" in message
    assert "1 unexpected: network.pts_neck.extra.weight" in message
    assert "1 of another shape: network.pts_backbone.blocks.0.0.weight (expected (32, 32" in message


def test_pickle_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"meta": 1}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        teacher(checkpoint=str(tmp_path / "empty.pth"), trust_checkpoint=True).load("cpu")


def test_sparse_kernels_survive_every_way_in(tmp_path: Path) -> None:
    """Plain tensors carry no version, and spconv would turn kernels that need no turning."""
    source = teacher("mmdet3d_centerpoint_voxel01")
    state = network(source).state_dict()
    kernel = "pts_middle_encoder.conv_input.0.weight"
    assert tuple(state[kernel].shape) == (16, 3, 3, 3, 5)
    old = {
        name: value.permute(1, 2, 3, 4, 0) if value.ndim == 5 else value
        for name, value in state.items()
    }
    torch.save({"state_dict": dict(state)}, tmp_path / "new.pth")
    torch.save({"state_dict": old}, tmp_path / "old.pth")
    for name in ("new.pth", "old.pth"):
        read = teacher(
            "mmdet3d_centerpoint_voxel01",
            seed=9,
            checkpoint=str(tmp_path / name),
            trust_checkpoint=True,
        )
        assert torch.equal(network(read).state_dict()[kernel], state[kernel])
        assert read.fingerprint()["weights"] == source.fingerprint()["weights"]


def test_random_weights_follow_the_seed() -> None:
    one, same, other = (teacher(seed=seed).fingerprint()["weights"] for seed in (1, 1, 2))
    assert one == same != other


def test_unknown_tap_of_a_teacher_is_refused() -> None:
    from bevcask.errors import TargetMismatchError

    batch = Batch(["a"], torch.eye(4)[None], points=[torch.rand((50, 5))])
    with pytest.raises(TargetMismatchError, match=r"no tap 'bev\.nek'\. Did you mean 'bev\.neck'"):
        teacher()(batch, ["bev.nek"])

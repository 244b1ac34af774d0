"""`bevcask weights` tells what a file is, and what of it is a reason not to read it."""

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bevcask.detectors import find_detector
from bevcask.groups import load_group

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    """A RayDN of few weights as its release would write it."""
    plugin, config = find_detector(load_group("detector", "raydn_tiny"), "detector")
    torch.manual_seed(0)
    found: dict[str, Tensor] = plugin(config).published()
    return found


def told(call: Call, path: Path, *words: str) -> dict[str, Any]:
    code, out, err = call("weights", str(path), *words, "--json")
    assert code == 0, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_a_published_file_in_all_its_wrappings(
    released: dict[str, Tensor], call: Call, tmp_path: Path
) -> None:
    path = tmp_path / "latest.pth"
    state = {f"module.{name}": t.half() if t.ndim else t for name, t in released.items()}
    meta = {"epoch": 24, "mmdet3d_version": "1.0.0rc6", "config": "x = 1\n" * 100}
    torch.save({"state_dict": state, "ema_state_dict": state, "meta": meta}, path)
    answer = told(call, path)
    assert answer["family"] == "RayDN"
    assert answer["wrapped_in"] == ["state_dict", "ema_state_dict (beside, not read)", "module."]
    assert answer["note"] == {
        "epoch": 24,
        "mmdet3d_version": "1.0.0rc6",
        "config": "x = 1 " * 13 + "x... (600 characters)",
    }
    counters = sum(t.ndim == 0 for t in released.values())
    assert answer["dtypes"] == {"float16": len(released) - counters, "int64": counters}
    assert answer["tensors"] == len(released)
    assert answer["numbers"] == sum(t.numel() for t in released.values())
    assert answer["fits"] == ["raydn_tiny"]
    assert "is missing" in answer["does_not_fit"]["raydn_r50"]["because"]
    assert answer["next"] == (
        f"teacher=raydn_tiny teacher.checkpoint={path} teacher.trust_checkpoint=true"
    )


def test_the_student_of_a_distiller(
    released: dict[str, Tensor], call: Call, tmp_path: Path
) -> None:
    path = tmp_path / "both.safetensors"
    both = {f"student.{n}": t.clone() for n, t in released.items()}
    save_file(both | {f"teacher.{n}": t.clone() for n, t in released.items()}, path)
    answer = told(call, path)
    assert answer["wrapped_in"] == ["student.", "teacher."]
    assert (answer["family"], answer["fits"][0]) == ("RayDN", "raydn_tiny")


def test_a_file_of_ours(checkpoint: Path, call: Call) -> None:
    answer = told(call, checkpoint)
    assert answer["family"] == "bevcask, own names"
    assert answer["fits"] == ["centerpoint_tiny"]


def test_one_tensor_too_few_fits_nothing(
    released: dict[str, Tensor], call: Call, tmp_path: Path
) -> None:
    path = tmp_path / "cut.safetensors"
    name = "pts_bbox_head.reference_points.weight"
    save_file({n: t.clone() for n, t in released.items() if n != name}, path)
    answer = told(call, path)
    assert answer["fits"] == []
    assert f"{name} is missing" in answer["does_not_fit"]["raydn_tiny"]["because"]
    assert "nothing is loaded half" in answer["next"]


UNREAD = {
    "CenterPoint of mmdet3d, voxels": (
        ("pts_middle_encoder.conv_input.0.weight", "pts_bbox_head.task_heads.0.reg.1.weight"),
        "sparse",
    ),
    "BEVDepth of Megvii": (
        ("backbone.depth_net.bn.weight", "backbone.img_backbone.conv1.weight", "head.trunk.x"),
        "deformable convolution",
    ),
    "BEVFusion of mit-han-lab": (
        ("encoders.camera.neck.x", "fuser.0.weight", "decoder.neck.x", "heads.object.x"),
        "encoders.lidar.backbone",
    ),
    "PillarNeXt of qcraftai": (
        ("reader.pfn_layers.0.norm.bias", "backbone.blocks.0.0.conv.weight",
         "backbone.mapping.0.weight", "head.tasks.0.reg.0.weight"),
        "occupied pillars alone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", UNREAD)
def test_families_without_a_network_here_say_why(family: str, call: Call, tmp_path: Path) -> None:
    names, reason = UNREAD[family]
    path = tmp_path / "other.safetensors"
    save_file({name: torch.ones(1) for name in names}, path)
    answer = told(call, path)
    assert (answer["family"], answer["fits"]) == (family, [])
    assert reason in answer["does_not_fit"][family]["because"]
    words = ("export", str(tmp_path / "out.safetensors"), "teacher=bevdepth_tiny")
    code, _, err = call(*words, f"teacher.checkpoint={path}")
    assert code == 2
    assert reason in err


def test_nobody_knows_it(call: Call, tmp_path: Path) -> None:
    save_file({"layer.weight": torch.ones(1)}, tmp_path / "some.safetensors")
    answer = told(call, tmp_path / "some.safetensors")
    assert (answer["family"], answer["fits"]) == ("unknown here", [])


def test_damaged_files_are_one_message(
    released: dict[str, Tensor], call: Call, tmp_path: Path
) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(released, whole)
    save_file({"w": torch.ones(9)}, tmp_path / "w.safetensors")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    torch.save({0: torch.ones(2)}, tmp_path / "numbered.pth")
    save_file({}, tmp_path / "empty.safetensors")
    bad = {
        "cut.pth": (whole.read_bytes()[:9000], "damaged, or a pickle"),
        "text.pth": (b"<html>404</html>", "damaged, or a pickle"),
        "cut.safetensors": ((tmp_path / "w.safetensors").read_bytes()[:-4], "not a readable"),
        "empty.pth": ((tmp_path / "empty.pth").read_bytes(), "holds no tensors"),
        "numbered.pth": ((tmp_path / "numbered.pth").read_bytes(), "holds no tensors"),
        "empty.safetensors": ((tmp_path / "empty.safetensors").read_bytes(), "holds no tensors"),
    }
    for name, (content, said) in bad.items():
        (tmp_path / name).write_bytes(content)
        code, _, err = call("weights", str(tmp_path / name))
        assert code == 2, name
        assert said in err, name
        assert err.count("error:") == 1
    code, _, err = call("weights", str(tmp_path / "cut.pth"), "trust_checkpoint=true")
    assert code == 2
    assert "cannot read" in err


def test_a_pickle_waits_for_consent(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    state = OrderedDict(weight=torch.ones(2))
    torch.save({"state_dict": state, "meta": {"when": Path("x")}}, path)
    code, _, err = call("weights", str(path))
    assert code == 2
    assert "trust_checkpoint=true" in err
    assert told(call, path, "trust_checkpoint=true")["tensors"] == 1

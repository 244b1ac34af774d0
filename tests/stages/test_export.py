"""Exported students: only the student, bit for bit, with a note."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bevcask.detectors import find_detector
from bevcask.detectors.weights import save_weights
from bevcask.groups import load_group

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run folder whose last and best checkpoint differ."""
    state = {
        "student.head.weight": torch.arange(6.0).reshape(2, 3),
        "student.count": torch.tensor(4),
        "method.adapters.neck.weight": torch.ones(2),
    }
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    note = {"detector": json.dumps({"type": "centerpoint"}), "cache": "abc", "command": "x"}
    for name, step in (("last", 9), ("best", 5)):
        moved = {key: tensor + step for key, tensor in state.items()}
        torch.save(
            {"state_dict": moved, "bevcask": note, "global_step": step},
            run / "checkpoints" / f"{name}.ckpt",
        )
    return run, state


def test_best_student_is_written_without_adapters(
    trained: tuple[Path, dict[str, torch.Tensor]], call: Call, tmp_path: Path
) -> None:
    run, state = trained
    out = tmp_path / "out" / "student.safetensors"
    code, printed, err = call("export", str(out), f"run={run}", "--json")
    assert code == 0, err
    answer = json.loads(printed)
    assert (answer["step"], answer["tensors"], answer["numbers"]) == (5, 2, 7)
    assert answer["cache"] == "abc"
    written = load_file(out)
    assert written.keys() == {"head.weight", "count"}
    assert torch.equal(written["head.weight"], state["student.head.weight"] + 5)


def test_named_checkpoint_is_written(
    trained: tuple[Path, dict[str, torch.Tensor]], call: Call, tmp_path: Path
) -> None:
    run, state = trained
    last = run / "checkpoints" / "last.ckpt"
    out = tmp_path / "student.safetensors"
    code, _, err = call("export", str(out), f"student.checkpoint={last}")
    assert code == 0, err
    assert torch.equal(load_file(out)["count"], state["student.count"] + 9)


def test_half_is_half(
    trained: tuple[Path, dict[str, torch.Tensor]], call: Call, tmp_path: Path
) -> None:
    run, state = trained
    out = tmp_path / "half.safetensors"
    code, _, err = call("export", str(out), f"run={run}", "half=true")
    assert code == 0, err
    written = load_file(out)
    assert torch.equal(written["head.weight"], (state["student.head.weight"] + 5).half())
    assert written["count"].dtype == torch.int64


@pytest.mark.parametrize("name", ["raydn_tiny", "streampetr_tiny", "bevformer_tiny"])
def test_released_code_reads_what_is_written(name: str, call: Call, tmp_path: Path) -> None:
    """Its names and versions; and what comes back is the same network."""
    plugin, config = find_detector(load_group("detector", name), "detector")
    torch.manual_seed(0)
    own = plugin(config).state_dict()
    native, released = tmp_path / "native.safetensors", tmp_path / "released.pth"
    save_weights(own, native, {})
    words = [f"teacher={name}", f"teacher.checkpoint={native}", "names=official"]
    code, _, err = call("export", str(released), *words)
    assert code == 0, err
    state = torch.load(released, weights_only=True)["state_dict"]
    assert "pts_bbox_head.cls_branches.1.0.weight" in state
    assert not any(name.startswith(("backbone.", "decoder.")) for name in state)
    assert state._metadata["pts_bbox_head.cls_branches"] == {"version": 2}
    back = tmp_path / "back.safetensors"
    words = [f"teacher={name}", f"teacher.checkpoint={released}", "teacher.trust_checkpoint=true"]
    code, _, err = call("export", str(back), *words)
    assert code == 0, err
    found = load_file(back)
    assert found.keys() == own.keys()
    assert all(torch.equal(found[key], own[key]) for key in own)


def saved(name: str, folder: Path) -> Path:
    """Weights of a detector config, drawn from a seed."""
    plugin, config = find_detector(load_group("detector", name), "detector")
    torch.manual_seed(0)
    path = folder / f"{name}.safetensors"
    save_weights(plugin(config).state_dict(), path, {})
    return path


def test_a_centerpoint_for_mmdet3d(call: Call, tmp_path: Path) -> None:
    native, released = saved("centerpoint_mmdet3d", tmp_path), tmp_path / "released.pth"
    words = ["teacher=centerpoint_mmdet3d", f"teacher.checkpoint={native}", "names=official"]
    code, _, err = call("export", str(released), *words)
    assert code == 0, err
    state = torch.load(released, weights_only=True)["state_dict"]
    assert state["pts_voxel_encoder.pfn_layers.0.linear.weight"].shape == (64, 11)
    assert state["pts_neck.deblocks.1.0.weight"].shape == (128, 128, 1, 1)


def test_detectors_without_released_names_say_so(call: Call, tmp_path: Path) -> None:
    words = ["teacher=pillarnext_tiny", f"teacher.checkpoint={saved('pillarnext_tiny', tmp_path)}"]
    code, _, err = call("export", str(tmp_path / "out.pth"), *words, "names=official")
    assert code == 2
    assert "PillarNeXt has no published names here: bevformer, streampetr, raydn and" in err
    code, _, err = call("export", str(tmp_path / "out.pth"), *words)
    assert code == 2
    assert "Add names=official, or write a file that ends with .safetensors" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "needs a file"),
        (("out.safetensors", "run=nowhere"), "has no checkpoint"),
        (("out.safetensors", "teacher=centerpoint_tiny"), "add teacher.checkpoint=FILE"),
        (
            ("out.safetensors", "student.checkpoint=nowhere.ckpt"),
            "student.checkpoint: nowhere.ckpt: no such checkpoint",
        ),
    ],
)
def test_what_is_missing_is_told(words: tuple[str, ...], message: str, call: Call) -> None:
    code, _, err = call("export", *words)
    assert code == 2
    assert message in err


@pytest.mark.parametrize("content", [b"not a checkpoint", None])
def test_other_files_are_refused(content: bytes | None, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    if content is None:
        torch.save({"state_dict": {}}, path)
    else:
        path.write_bytes(content)
    code, _, err = call("export", str(tmp_path / "out.safetensors"), f"student.checkpoint={path}")
    assert code == 2
    assert "not" in err
    assert not (tmp_path / "out.safetensors").exists()

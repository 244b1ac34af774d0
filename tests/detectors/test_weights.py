import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bevcask.detectors.weights import (
    halve,
    identify,
    load_weights,
    read_note,
    read_tensors,
    read_weights,
    save_weights,
)
from bevcask.errors import CheckpointError


def test_round_trip_keeps_values_and_note(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model.safetensors"
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    save_weights(source.state_dict(), path, {"command": "bevcask export"})
    load_weights(target, path)
    assert torch.equal(source.weight, target.weight)
    assert read_note(path) == {"command": "bevcask export"}
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_names_of_one_tensor_are_written_as_several(tmp_path: Path) -> None:
    """As published files have them, a branch a layer."""
    shared = torch.ones(2, 3)
    save_weights({"a": shared, "b": shared, "c": shared.T}, tmp_path / "w.safetensors", {})
    found = read_weights(tmp_path / "w.safetensors")
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        "a": (2, 3),
        "b": (2, 3),
        "c": (3, 2),
    }


def test_other_architecture_is_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).state_dict(), path, {})
    other = nn.Sequential(nn.Linear(4, 2), nn.Identity(), nn.Linear(2, 5))
    with pytest.raises(CheckpointError) as caught:
        load_weights(other, path)
    text = str(caught.value)
    assert "2 missing: 2.bias, 2.weight" in text
    assert "2 unexpected: 1.bias, 1.weight" in text
    assert "1 of another shape: 0.weight (expected (2, 4), got (2, 3))" in text


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_weights(nn.Linear(1, 1), tmp_path / "no.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a checkpoint at all")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_weights(nn.Linear(1, 1), broken)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_weights_that_cannot_be_written_are_one_message(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_weights({"w": torch.ones(2)}, path, {})

    def failing(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{os.strerror(code)}"):
        save_weights({"w": torch.zeros(2)}, path, {})
    assert torch.equal(read_weights(path)["w"], torch.ones(2))
    assert len(list(tmp_path.iterdir())) == 1


def test_pickle_is_read_with_consent_only(tmp_path: Path) -> None:
    source = nn.Linear(3, 2)
    path = tmp_path / "epoch.pth"
    torch.save({"meta": {"epoch": 1}, "state_dict": source.state_dict()}, path)
    with pytest.raises(CheckpointError, match=r"teacher\.trust_checkpoint=true"):
        load_weights(nn.Linear(3, 2), path)
    other = nn.Linear(3, 2)
    load_weights(other, path, trust=True)
    assert torch.equal(other.weight, source.weight)
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot read"):
        read_tensors(tmp_path / "cut.pth", trust=True)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_tensors(tmp_path / "gone.pth", trust=True)


def test_a_file_is_what_is_in_it_and_not_what_it_is_called(tmp_path: Path) -> None:
    source = nn.Linear(3, 2)
    renamed, pickled = tmp_path / "model.pth", tmp_path / "model.safetensors"
    save_weights(source.state_dict(), tmp_path / "own.safetensors", {"command": "bevcask export"})
    (tmp_path / "own.safetensors").rename(renamed)
    torch.save(source.state_dict(), pickled)
    assert torch.equal(read_tensors(renamed)["weight"], source.weight)
    assert read_note(renamed) == {"command": "bevcask export"}
    with pytest.raises(CheckpointError, match="is a pickle"):
        read_tensors(pickled)
    assert torch.equal(read_tensors(pickled, plain=True)["weight"], source.weight)


def test_identity_is_the_same_inside_a_wrapper() -> None:
    own = nn.Linear(3, 2).state_dict()
    assert identify(own) == identify({f"network.{name}": t for name, t in own.items()})
    assert identify(own) != identify({name: t + 1 for name, t in own.items()})


def test_half_precision_files_are_the_network_they_load_into(tmp_path: Path) -> None:
    source = nn.BatchNorm2d(3)
    source.running_var.fill_(1 / 3)  # type: ignore[union-attr]
    save_weights(halve(source.state_dict()), tmp_path / "half.safetensors", {})
    loaded = nn.BatchNorm2d(3)
    load_weights(loaded, tmp_path / "half.safetensors")
    stored = read_weights(tmp_path / "half.safetensors")
    assert stored["running_var"].dtype == torch.float16
    assert loaded.running_var.dtype == torch.float32  # type: ignore[union-attr]
    assert identify(stored) == identify(loaded.state_dict()) != identify(source.state_dict())
    with pytest.raises(CheckpointError, match="cannot hold running_var"):
        halve({"running_var": torch.tensor([1e5])})


NESTS: list[tuple[str, Callable[[dict[str, torch.Tensor]], dict[str, Any]]]] = [
    ("plain.pth", lambda state: state),
    ("parallel.pth.tar", lambda state: {"epoch": 3, "state_dict": prefixed("module.", state)}),
    ("lightning.ckpt", lambda state: {"state_dict": prefixed("model.", state), "loops": {}}),
    ("both.pt", lambda state: {"model": prefixed("module.model.", state)}),
    ("timm.pth", lambda state: {"state_dict_ema": state, "arch": "x"}),
    ("average.pth", lambda state: {"ema": counted("module.", state)}),
    ("deep.bin", lambda state: {"model_ema": {"module": state, "decay": 0.9}}),
    ("mmengine.pth", lambda state: {"state_dict": state, "ema_state_dict": counted("module.", {})}),
    ("ours.ckpt", lambda state: {"bevcask": {}, "state_dict": {"method.w": torch.ones(1)}
                                 | prefixed("student.", state)}),
]  # fmt: skip


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def counted(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what torch's AveragedModel and mmengine's keep: a counter beside the weights."""
    return {**prefixed(prefix, state), "n_averaged": torch.tensor(5)}


@pytest.mark.parametrize(("name", "wrap"), NESTS, ids=[name for name, _ in NESTS])
def test_weights_are_found_however_they_are_wrapped(
    name: str, wrap: Callable[[dict[str, torch.Tensor]], dict[str, Any]], tmp_path: Path
) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    torch.save(wrap(dict(source.state_dict())), tmp_path / name)
    load_weights(target, tmp_path / name, plain=True)
    assert torch.equal(source.weight, target.weight)
    trusted = read_tensors(tmp_path / name, trust=True)
    assert identify(trusted) == identify(source.state_dict())


def test_a_layer_called_model_keeps_its_name(tmp_path: Path) -> None:
    state = {"model.weight": torch.ones(1), "head.weight": torch.ones(1)}
    torch.save(state, tmp_path / "a.pth")
    assert read_tensors(tmp_path / "a.pth", plain=True).keys() == state.keys()


def test_what_would_run_code_is_refused_with_a_way_out(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(1)}, "path": tmp_path}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="not a torch file of tensors alone") as caught:
        read_tensors(tmp_path / "code.pth", plain=True)
    told = str(caught.value)
    assert "teacher." not in told
    advised = told.partition('python -c "')[2].partition('"')[0]
    exec(advised.replace("OUT.pth", str(tmp_path / "out.pth")))
    assert read_tensors(tmp_path / "out.pth", plain=True)["w"].item() == 1

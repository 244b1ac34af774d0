"""Digests belong to what is said, not to how it lies on disk; differences are named."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bevcask.errors import DataError
from bevcask.fingerprint import ABSENT, differences, digest, file_digest, weights_digest


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "head.weight": torch.randn(3, 4, generator=generator),
        "head.half": torch.randn(5, generator=generator).bfloat16(),
        "norm.num_batches_tracked": torch.tensor(7),
        "empty": torch.zeros(0, 2),
        "mask": torch.tensor([True, False]),
    }


def test_weights_digest_is_of_tensors_not_of_files(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "a.safetensors")
    torch.save(weights(), tmp_path / "a.pth")
    expected = weights_digest(weights())
    assert weights_digest(load_file(tmp_path / "a.safetensors")) == expected
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    assert weights_digest(dict(reversed(loaded.items()))) == expected
    strided = weights() | {"head.weight": weights()["head.weight"].T.contiguous().T}
    assert weights_digest(strided) == expected
    trained = {
        name: value.clone().requires_grad_(value.is_floating_point())
        for name, value in weights().items()
    }
    assert weights_digest(trained) == expected


def test_weights_digest_is_fixed_for_ever() -> None:
    assert weights_digest({"a": torch.arange(3, dtype=torch.float32)}) == (
        "68870ee78171abf4b8687d74c176a58da5ffc5ff9bcd20219b42c261e3683b6a"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"head.weight": weights()["head.weight"] + 1e-7},
        {"head.weight": weights()["head.weight"].reshape(4, 3)},
        {"mask": torch.tensor([1, 0], dtype=torch.uint8)},
        {"empty": torch.zeros(2, 0)},
        {"extra": torch.zeros(1)},
    ],
    ids=["value", "shape", "dtype", "empty shape", "name"],
)
def test_weights_digest_sees_every_change(change: dict[str, torch.Tensor]) -> None:
    assert weights_digest(weights() | change) != weights_digest(weights())


def test_digest_does_not_depend_on_order_or_sequence_type() -> None:
    assert digest({"b": (1, 2), "a": None}) == digest({"a": None, "b": [1, 2]})
    assert digest({"b": [2, 1]}) != digest({"b": [1, 2]})
    assert digest(1) != digest("1")
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_digest_refuses_what_equals_nothing() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        digest({"a": float("nan")})
    with pytest.raises(TypeError):
        digest({"a": object()})


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    with pytest.raises(DataError, match="No such file"):
        file_digest(tmp_path / "b")


def test_differences_are_leaves() -> None:
    expected = {"a": {"b": 1, "c": [1, 2]}, "d": "x", "e": True}
    assert differences(expected, {"e": True, "d": "x", "a": {"c": (1, 2), "b": 1.0}}) == []
    got = {"a": {"b": 2, "c": [1, 3, 4]}, "f": None, "e": 1}
    assert differences(expected, got) == [
        ("a.b", 1, 2),
        ("a.c.1", 2, 3),
        ("a.c.2", ABSENT, 4),
        ("d", "x", ABSENT),
        ("e", True, 1),
        ("f", ABSENT, None),
    ]
    assert differences({"a": {"b": 1}}, {"a": 1}) == [("a", {"b": 1}, 1)]


def test_torch_is_not_imported() -> None:
    code = "import sys, bevcask.fingerprint, bevcask.cache; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""A teacher's forward leaves no switch behind, and says which operation it cannot repeat."""

import pytest
import torch

from bevcask.config import NativeTeacherConfig, Precision
from bevcask.errors import ConfigError
from bevcask.teachers.reckoning import half_precision, prepare, reckoning


def switches() -> tuple[bool, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "fp16"])
def test_switches_are_as_they_were(precision: Precision) -> None:
    before = switches()
    with reckoning(precision, deterministic=True, device="cuda"):
        repeats, _, products, convolutions, same, _ = switches()
    assert repeats
    assert same
    assert products == convolutions == (precision == "tf32")
    assert switches() == before
    with pytest.raises(ZeroDivisionError), reckoning(precision, True, "cuda"):
        raise ZeroDivisionError
    assert switches() == before


def test_a_processor_repeats_itself_anyway() -> None:
    with reckoning("float32", deterministic=True, device="cpu"):
        assert not torch.are_deterministic_algorithms_enabled()
    with reckoning("float32", deterministic=False, device="cuda"):
        assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_repeatable_kernel_is_named() -> None:
    said = "grid_sampler_2d_cuda does not have a deterministic implementation, but you set"
    wanted = "grid_sampler_2d_cuda has no deterministic kernel on cuda.*teacher.deterministic=false"
    with pytest.raises(ConfigError, match=wanted), reckoning("float32", True, "cuda"):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="another"), reckoning("float32", True, "cuda"):
        raise RuntimeError("another")


def test_tf32_is_of_cuda() -> None:
    with pytest.raises(ConfigError, match="cpu has none"):
        prepare(NativeTeacherConfig(precision="tf32"), "cpu")


@pytest.mark.parametrize(
    ("precision", "kept"), [("float32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_half_precision_is_autocast(precision: Precision, kept: torch.dtype) -> None:
    square = torch.rand(3, 3)
    with half_precision(precision, "cpu"):
        assert (square @ square).dtype == kept

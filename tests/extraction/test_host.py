"""Copies to the host: none on a CPU, the same values from a CUDA device."""

import pytest
import torch

from bevcask.cache import Encoded
from bevcask.extraction.host import HostCopies


def batch(device: str) -> Encoded[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    values = torch.randint(0, 255, (4, 8, 180, 180), generator=random, dtype=torch.uint8)
    scale = torch.rand(4, 8, generator=random)
    return Encoded(values.to(device), scale.to(device), None, torch.arange(4).to(device))


def test_on_a_cpu_nothing_is_copied() -> None:
    said, copies = batch("cpu"), HostCopies(torch.device("cpu"))
    assert copies.start(said) is said
    assert copies.mark().reached
    copies.mark().wait()


@pytest.mark.gpu
def test_from_cuda_everything_arrives_pinned_while_the_device_computes() -> None:
    copies, expected = HostCopies(torch.device("cuda")), batch("cpu")
    busy = torch.rand(4096, 4096, device="cuda")
    for _ in range(20):
        said = batch("cuda")
        for _ in range(5):
            busy = torch.nn.functional.normalize(busy @ busy)
        late = Encoded(said.values + 1, said.scale, None, said.count)  # behind the products
        there = copies.start(late)
        del said, late
        torch.full((4, 8, 180, 180), 7, dtype=torch.uint8, device="cuda")  # wants their memory
        copies.mark().wait()
        assert there.values.is_pinned()
        assert torch.equal(there.values, expected.values + 1)
        assert torch.equal(there.scale, expected.scale)
        assert torch.equal(there.count, expected.count)
        assert there.region is None

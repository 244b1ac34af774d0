"""Sparse convolutions on a CPU: the same numbers twice, whatever the number of threads."""

import pytest
import torch

from bevcask.detectors.mmdet3d.sparse import make_exact

pytestmark = pytest.mark.mmdet3d


def test_repeats_are_equal_and_threads_are_given_back() -> None:
    from spconv.pytorch import SparseConv3d, SparseConvTensor, SparseSequential, SubMConv3d

    torch.manual_seed(0)
    network = SparseSequential(
        SubMConv3d(16, 32, 3, padding=1, indice_key="a"),
        SparseConv3d(32, 64, 3, stride=2, padding=1),
    )
    make_exact(network)
    cells = torch.randperm(8 * 128 * 128)[:20_000]
    place = torch.stack([cells * 0, cells // 16384, cells // 128 % 128, cells % 128], dim=1).int()
    features = torch.randn(len(place), 16)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            said = [
                network(SparseConvTensor(features, place, [8, 128, 128], 1)).dense()
                for _ in range(4)
            ]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(said[0], other) for other in said[1:])


def test_threads_are_given_back_after_an_error() -> None:
    from spconv.pytorch import SparseConvTensor, SubMConv3d

    network = SubMConv3d(16, 32, 3, padding=1)
    make_exact(network)
    before = torch.get_num_threads()
    wrong = SparseConvTensor(torch.randn(3, 5), torch.zeros(3, 4).int(), [8, 8, 8], 1)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        network(wrong)
    assert torch.get_num_threads() == before

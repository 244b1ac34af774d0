import pytest
import torch

from bevcask.detectors.blocks.nms import circle_nms


def greedy(xy: torch.Tensor, radius: float) -> list[bool]:
    """The textbook loop."""
    kept: list[int] = []
    for i in range(len(xy)):
        if all(float((xy[i] - xy[j]).norm()) > radius for j in kept):
            kept.append(i)
    return [i in kept for i in range(len(xy))]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("radius", [0.42, 2.0, 9.0, 100.0])
def test_equals_the_greedy_loop(seed: int, radius: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    xy = torch.rand((150, 2), generator=generator) * 20
    assert circle_nms(xy, radius).tolist() == greedy(xy, radius)


def test_a_silenced_box_silences_nobody() -> None:
    chain = torch.tensor([[0.0, 0.0], [1.5, 0.0], [3.0, 0.0], [4.5, 0.0]])
    assert circle_nms(chain, 2.0).tolist() == [True, False, True, False]


def test_radius_is_in_metres_and_inclusive() -> None:
    pair = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert circle_nms(pair, 3.0).tolist() == [True, False]
    assert circle_nms(pair, 2.99).tolist() == [True, True]


def test_no_box_and_one_box() -> None:
    assert circle_nms(torch.zeros((0, 2)), 1.0).tolist() == []
    assert circle_nms(torch.zeros((1, 2)), 1.0).tolist() == [True]

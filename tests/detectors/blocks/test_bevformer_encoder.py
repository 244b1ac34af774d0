"""What BEVFormer's encoder does to a memory and to pillars, by hand."""

import math

import pytest
import torch

from bevcask.detectors.blocks.bev_attention import project_pillars
from bevcask.detectors.blocks.bevformer_encoder import (
    BEVFormerEncoder,
    EncoderConfig,
    travel,
    turn,
)
from bevcask.geometry import Grid

GRID = Grid(-4.0, -6.0, 1.0, 8, 12)


def can_bus(**entries: float) -> torch.Tensor:
    row = torch.zeros((1, 18), dtype=torch.float64)
    for name, value in entries.items():
        row[0, int(name.removeprefix("n"))] = value
    return row


@pytest.mark.parametrize(
    ("heading", "right", "forward"),
    [(0.0, 0.0, 2.0), (math.pi / 2, 2.0, 0.0), (math.pi, 0.0, -2.0), (-math.pi / 2, -2.0, 0.0)],
)
def test_travel_along_global_x(heading: float, right: float, forward: float) -> None:
    """Two metres along global x: ahead for who looks there, to the right for who looks left."""
    found = travel(can_bus(n0=2.0, n16=heading), GRID)
    wanted = torch.tensor([[right / 8, forward / 12]], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def test_a_turn_to_the_left_moves_what_is_ahead_to_the_right() -> None:
    bev = torch.zeros((1, 9 * 9, 1))
    bev[0, 7 * 9 + 4] = 1  # three cells ahead of the middle
    turned = turn(bev, torch.tensor([90.0], dtype=torch.float64), (9, 9), (4.5, 4.5))
    assert turned.view(9, 9).nonzero().tolist() == [[4, 7]]


def test_no_turn_changes_nothing_and_a_far_centre_leaves_the_map() -> None:
    bev = torch.rand(2, 12 * 8, 3)
    still = torch.zeros(2, dtype=torch.float64)
    assert torch.equal(turn(bev, still, (12, 8), (100, 100)), bev)
    for angle in (90, 180, -90):
        assert not bool(turn(bev, still + angle, (12, 8), (100, 100)).any())
        assert not bool(turn(bev, still + angle, (12, 8), (-100, -100)).any())


def test_each_sample_turns_by_its_own_angle() -> None:
    bev = torch.rand(2, 81, 3)
    angles = torch.tensor([30.0, -70.0], dtype=torch.float64)
    both = turn(bev, angles, (9, 9), (4.5, 4.5))
    for sample in range(2):
        own = slice(sample, sample + 1)
        assert torch.equal(both[own], turn(bev[own], angles[own], (9, 9), (4.5, 4.5)))


def encoder() -> BEVFormerEncoder:
    return BEVFormerEncoder(EncoderConfig(layers=1), 8, 2, 1, 8, 0.0, GRID)


def test_points_of_pillars() -> None:
    points = encoder().points_QD3
    assert points.shape == (96, 4, 3)
    torch.testing.assert_close(points[0, 0], torch.tensor([-3.5, -5.5, -4.5]))
    torch.testing.assert_close(points[9, :, 0], torch.full((4,), -2.5))
    torch.testing.assert_close(points[9, :, 1], torch.full((4,), -4.5))
    heights = torch.tensor([-4.5, -4.5 + 7 / 3, -4.5 + 14 / 3, 2.5])
    torch.testing.assert_close(points[5, :, 2], heights)


def test_what_a_camera_sees() -> None:
    """A camera at the origin that looks along +y: 100 pixels a unit, 200 x 100 with padding."""
    camera = torch.tensor([[100.0, 100, 0, 0], [0, 50, -100, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    points = torch.tensor([[0, 2.0, 0], [0.5, 1, 0.2], [0, -2, 0], [2, 1, 0], [0, 1, -0.5]])
    found = project_pillars(points[:, None], camera[None, None], (100, 200))
    assert found.seen_BVQD.flatten().tolist() == [True, True, False, False, False]
    torch.testing.assert_close(found.places_BVQD2[0, 0, 0, 0], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(found.places_BVQD2[0, 0, 1, 0], torch.tensor([0.75, 0.3]))
    with torch.autocast("cpu", torch.bfloat16):  # a tenth of a pixel would be lost
        again = project_pillars(points[:, None], camera[None, None], (100, 200))
    assert torch.equal(again.places_BVQD2, found.places_BVQD2)


def test_positions_are_columns_then_rows() -> None:
    own = encoder()
    position = own._positions().view(12, 8, 8)
    assert torch.equal(position[3, 5, :4], own.column_positions[5])
    assert torch.equal(position[3, 5, 4:], own.row_positions[3])

"""Codes of queries: there and back, and the convention of mmdet3d 0.17."""

import math

import torch

from bevcask.targets.query_code import decode_query_boxes, encode_query_boxes


def boxes() -> torch.Tensor:
    values = torch.rand((50, 9), generator=torch.Generator().manual_seed(0))
    values[:, 3:6] += 0.1
    values[:, 6] = (values[:, 6] - 0.5) * 2 * math.pi
    return values


def test_there_and_back() -> None:
    torch.testing.assert_close(decode_query_boxes(encode_query_boxes(boxes())), boxes())


def test_a_box_by_hand() -> None:
    """A car that looks along +y: its old yaw is -pi."""
    box = torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 1.5, math.pi / 2, 5.0, 6.0]])
    wanted = [1.0, 2.0, math.log(2.0), math.log(4.0), 3.0, math.log(1.5), 0.0, -1.0, 5.0, 6.0]
    torch.testing.assert_close(encode_query_boxes(box), torch.tensor([wanted]), atol=1e-6, rtol=0)


def test_yaw_is_below_pi() -> None:
    backwards = torch.zeros(10)
    backwards[6] = 1.0  # along -x: pi and -pi are the same heading
    backwards[7] = -0.0
    assert decode_query_boxes(backwards)[6] == -torch.pi


def test_a_box_without_extent_is_not_finite() -> None:
    flat = boxes()[:1]
    flat[0, 4] = 0
    assert not bool(encode_query_boxes(flat).isfinite().all())

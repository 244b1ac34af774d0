"""Which name was meant."""

import pytest

from bevcask.registry import suggest

TAPS = ["bev.encoder", "bev.neck", "head.boxes", "image.level0"]


@pytest.mark.parametrize(
    ("name", "near"),
    [("bev.nekc", "bev.neck"), ("bevneck", "bev.neck"), ("head.box", "head.boxes")],
)
def test_a_name_typed_wrong_is_recognised(name: str, near: str) -> None:
    assert suggest(name, TAPS) == f" Did you mean {near!r}?"


@pytest.mark.parametrize("name", ["bev.camera", "bev.lidar", "image.depth", "bev.neckline.fused"])
def test_a_shared_prefix_is_no_likeness(name: str) -> None:
    assert suggest(name, TAPS) == ""

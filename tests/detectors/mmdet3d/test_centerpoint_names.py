"""A native CenterPoint with mmdet3d's weights says what mmdet3d's says."""

import pytest
import torch

from bevcask.config import build_config
from bevcask.detectors.base import Batch
from bevcask.groups import load_group

pytestmark = pytest.mark.mmdet3d


def scan() -> torch.Tensor:
    """Points of which some pillars have one and some more than twenty."""
    draw = torch.Generator().manual_seed(0)
    spread = torch.tensor([20.0, 20.0, 1.0, 40.0, 0.1])
    points = torch.randn((40_000, 5), generator=draw) * spread
    points[::3, :2] /= 20
    return points + torch.tensor([0, 0, -1, 60, 0.2])


def test_maps_boxes_and_scores_agree() -> None:
    plugin, config = build_config(
        "detector", load_group("detector", "mmdet3d_centerpoint_pillar02"), "detector"
    )
    torch.manual_seed(0)
    theirs = plugin(config).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean):
                torch.nn.init.normal_(value, 0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.3, 1.5)
    plugin, config = build_config(
        "detector", load_group("detector", "centerpoint_mmdet3d"), "detector"
    )
    ours = plugin(config).eval()
    ours.load_state_dict(dict(ours.adopt(theirs.network.state_dict())))
    batch = Batch(["a"], torch.eye(4)[None], points=[scan()])
    with torch.inference_mode():
        said, got = theirs(batch), ours(batch)
    for name in ("bev.neck", "head.heatmap"):
        scale = said.taps[name].abs().max()
        gap = (said.taps[name] - got.taps[name]).abs().max() / scale
        assert gap < 1e-4, name
    (boxes,), (own,) = theirs.decode(said), ours.decode(got)
    torch.testing.assert_close(own.scores_N, boxes.scores_N, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(own.boxes_N9, boxes.boxes_N9, rtol=1e-3, atol=1e-3)
    written = ours.published()
    state = theirs.network.state_dict()
    assert written.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(written[key], value, rtol=1e-5, atol=1e-6)

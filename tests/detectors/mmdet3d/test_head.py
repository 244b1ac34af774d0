"""A student that inherits mmdet3d's branches computes what they compute."""

from typing import Any

import pytest
import torch

from bevcask.detectors.blocks.heads import CenterHead, CenterHeadConfig
from bevcask.detectors.mmdet3d.detector import Mmdet3dDetector
from bevcask.detectors.mmdet3d.recipe import Mmdet3dConfig
from bevcask.geometry import Grid
from bevcask.groups import load_group

pytestmark = pytest.mark.mmdet3d


def detector(convs: int, tasks: list[list[str]] | None = None, **head: Any) -> Mmdet3dDetector:
    """The tiny model with branches of so many convolutions, norms away from their start."""
    section = load_group("detector", "mmdet3d_centerpoint_tiny")
    del section["type"]
    own = section["options"]["model"]["pts_bbox_head"]
    own["num_heatmap_convs"] = convs
    own["common_heads"] = {name: [width, convs] for name, (width, _) in own["common_heads"].items()}
    if tasks:
        own["tasks"] = [{"num_class": len(names), "class_names": names} for names in tasks]
    own |= head
    built = Mmdet3dDetector(Mmdet3dConfig.model_validate(section)).eval()
    generator = torch.Generator().manual_seed(0)
    for module in built.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.01, 2, generator=generator)
            module.running_mean.normal_(generator=generator)
    return built


@pytest.mark.parametrize("convs", [1, 2])
@pytest.mark.parametrize(
    "tasks",
    [None, [["pedestrian", "traffic_cone"], ["car"], ["trailer", "bus"], ["barrier"],
            ["construction_vehicle", "truck"], ["motorcycle", "bicycle"]]],
    ids=["same groups", "shuffled groups"],
)  # fmt: skip
def test_branches_compute_the_same_under_our_names(
    convs: int, tasks: list[list[str]] | None
) -> None:
    source = detector(convs, tasks)
    ours = CenterHead(
        CenterHeadConfig(channels=32, branch_convs=convs), 32, Grid.square(51.2, 0.8)
    ).eval()
    weights = source.head_weights()
    own = {name: t for name, t in ours.state_dict().items() if name.startswith("tasks.")}
    assert {name.removeprefix("head.") for name in weights} == set(own)
    ours.load_state_dict(
        {name.removeprefix("head."): t for name, t in weights.items()}, strict=False
    )
    shared = torch.rand((1, 32, 6, 6))
    ours.shared = torch.nn.Identity()
    with torch.inference_mode():
        got = ours(shared)
        said = [task(shared) for task in source.network.pts_bbox_head.task_heads]
    groups = source.recipe.task_classes
    for index, names in enumerate(
        [("car",), ("truck", "construction_vehicle"), ("bus", "trailer")]
    ):
        source_task = next(i for i, group in enumerate(groups) if set(group) == set(names))
        parts = [said[source_task][part] for part in ("reg", "height", "dim", "rot", "vel")]
        torch.testing.assert_close(got["code"][:, index], torch.cat(parts, dim=1))
    torch.testing.assert_close(
        ours.probabilities(got), source._reader._heatmap("head.heatmap", [[t] for t in said])
    )


def test_other_groups_are_not_exported() -> None:
    merged = [["car", "truck", "construction_vehicle"], ["bus", "trailer"], ["barrier"],
              ["motorcycle", "bicycle"], ["pedestrian", "traffic_cone"]]  # fmt: skip
    assert detector(1, merged).head_weights() == {}
    assert detector(1, None, norm_bbox=False).head_weights() == {}

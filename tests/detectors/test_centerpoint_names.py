"""mmdet3d's CenterPoint files (pillars) load whole by their own names, or are refused by name."""

from typing import cast

import pytest
import torch
from torch import Tensor

from bevcask.config import build_config
from bevcask.detectors.base import Batch
from bevcask.detectors.centerpoint import CenterPoint, CenterPointConfig
from bevcask.errors import CheckpointError
from bevcask.groups import load_group
from bevcask.targets.box_code import decode_boxes
from detectors.scenes import scan
from detectors.test_centerpoint import SMALL

HEAD = "pts_bbox_head."
ENCODER = "pts_voxel_encoder.pfn_layers.0."
Shapes = dict[str, tuple[int, ...]]


def bn(name: str, channels: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{p}": (channels,) for p in parts} | {f"{name}.num_batches_tracked": ()}


def center_head(given: int) -> Shapes:
    """The six task groups of nuScenes: two convolutions a branch, norms in between."""
    found: Shapes = {f"{HEAD}shared_conv.conv.weight": (64, given, 3, 3)}
    found |= bn(f"{HEAD}shared_conv.bn", 64)
    for task, classes in enumerate((1, 2, 2, 1, 2, 2)):
        branches = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "heatmap": classes}
        for branch, made in branches.items():
            at = f"{HEAD}task_heads.{task}.{branch}"
            found |= {f"{at}.0.conv.weight": (64, 64, 3, 3)} | bn(f"{at}.0.bn", 64)
            found |= {f"{at}.1.weight": (made, 64, 3, 3), f"{at}.1.bias": (made,)}
    return found


def published_shapes(features: int) -> Shapes:
    """centerpoint_02pillar_second_secfpn_circlenms of mmdet3d's model zoo."""
    found: Shapes = {f"{ENCODER}linear.weight": (64, features)} | bn(f"{ENCODER}norm", 64)
    given = 64
    for stage, (width, layers) in enumerate(((64, 3), (128, 5), (256, 5))):
        for layer in range(layers + 1):
            at = f"pts_backbone.blocks.{stage}"
            found[f"{at}.{3 * layer}.weight"] = (width, given, 3, 3)
            found |= bn(f"{at}.{3 * layer + 1}", width)
            given = width
    necks = ((128, 64, 2, 2), (128, 128, 1, 1), (256, 128, 2, 2))
    for level, shape in enumerate(necks):
        found[f"pts_neck.deblocks.{level}.0.weight"] = shape
        found |= bn(f"pts_neck.deblocks.{level}.1", 128)
    return found | center_head(384)


def random_state(shapes: Shapes, half: bool = False) -> dict[str, Tensor]:
    """Random values; variances are positive."""
    draw = torch.Generator().manual_seed(0)
    found = {}
    for name, shape in shapes.items():
        value = 0.1 * torch.randn(shape, generator=draw)
        if name.endswith("running_var"):
            value = value.abs() + 0.5
        if name.endswith("num_batches_tracked"):
            value = torch.tensor(7)
        found[name] = value.half() if half and shape else value
    return found


def shipped(name: str) -> CenterPointConfig:
    _, config = build_config("detector", load_group("detector", name), "detector")
    return cast(CenterPointConfig, config)


PUBLISHED = {"centerpoint_mmdet3d": 11, "centerpoint_mmdet3d_0x": 10}


@pytest.mark.parametrize(
    ("name", "half"), [("centerpoint_mmdet3d", False), ("centerpoint_mmdet3d_0x", True)]
)
def test_every_published_tensor_has_its_place(name: str, half: bool) -> None:
    shapes = published_shapes(PUBLISHED[name])
    given = random_state(shapes, half)
    with torch.device("meta"):
        detector = CenterPoint(shipped(name))
    own = detector.state_dict()
    adopted = dict(detector.adopt(given))
    assert {key: t.shape for key, t in adopted.items()} == {key: own[key].shape for key in own}
    detector.load_state_dict(adopted, assign=True)
    written = detector.published()
    assert {key: tuple(t.shape) for key, t in written.items()} == shapes
    for key, value in written.items():
        torch.testing.assert_close(value, given[key].to(value.dtype), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_size_runs(name: str) -> None:
    detector = CenterPoint(shipped(name)).eval()
    detector.load_state_dict(dict(detector.adopt(random_state(published_shapes(PUBLISHED[name])))))
    with torch.inference_mode():
        output = detector(Batch(["a"], torch.eye(4)[None], points=[scan(0)]))
    assert output.taps["bev.neck"].shape == (1, 384, 128, 128)
    assert all(bool(tap.isfinite().all()) for tap in output.taps.values())


def small(axes: int, seed: int = 0) -> CenterPoint:
    torch.manual_seed(seed)
    layout = {"centre_axes": axes, "pillar_points": 20}
    return CenterPoint(SMALL.model_copy(update=layout)).eval()


def test_files_are_what_they_were_written_from() -> None:
    for axes in (2, 3):
        source, target = small(axes), small(axes, seed=1)
        target.load_state_dict(dict(target.adopt(source.published())))
        batch = Batch(["a"], torch.eye(4)[None], points=[scan(0)])
        with torch.inference_mode():
            torch.testing.assert_close(target(batch).preds, source(batch).preds)
        own = dict(source.adopt(source.state_dict()))
        assert all(torch.equal(own[key], t) for key, t in source.state_dict().items())


def test_boxes_of_old_files_are_turned() -> None:
    """What a head of mmdet3d 0.x says of w, l, h and -yaw - pi/2 is read as our l, w, h and yaw."""
    detector = small(2)
    length, width, height, yaw = 4.0, 1.8, 1.5, 0.7
    old = torch.tensor(-yaw - torch.pi / 2)
    file = dict(detector.published())
    sizes = torch.tensor([width, length, height]).log()
    for task in range(6):
        at = f"{HEAD}task_heads.{task}"
        for branch, bias in (("dim", sizes), ("rot", torch.stack([old.sin(), old.cos()]))):
            file[f"{at}.{branch}.1.weight"] = torch.zeros_like(file[f"{at}.{branch}.1.weight"])
            file[f"{at}.{branch}.1.bias"] = bias
    detector.load_state_dict(dict(detector.adopt(file)))
    with torch.inference_mode():
        codes = detector(Batch(["a"], torch.eye(4)[None], points=[scan(0)])).preds["code"]
    grid = detector.head.grid
    boxes = decode_boxes(codes[0, :, :, 3, 5], torch.tensor([[3, 5]] * 6), grid)
    expected = torch.tensor([length, width, height, yaw]).expand(6, 4)
    torch.testing.assert_close(boxes[:, 3:7], expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({f"{HEAD}task_heads.2.rot.1.bias": None}, "task_heads.2.rot.1.bias is missing"),
        ({f"{HEAD}task_heads.6.reg.1.bias": torch.ones(2)}, "has no place"),
        ({f"{ENCODER}linear.weight": torch.ones(8, 10)}, r"shape \(8, 11\), has \(8, 10\)"),
        ({"pts_neck.deblocks.1.0.weight": torch.ones(8, 8, 1, 1)}, r"shape \(12, 8, 2, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Tensor | None], said: str) -> None:
    detector = small(3)
    changed = {n: t for n, t in {**detector.published(), **change}.items() if t is not None}
    with pytest.raises(CheckpointError, match=said):
        detector.adopt(changed)


def test_a_network_that_sees_its_points_otherwise_neither_reads_nor_writes_them() -> None:
    file = small(2).published()
    with pytest.raises(CheckpointError, match="points of zeros where there are fewer"):
        CenterPoint(SMALL).adopt(file)
    with pytest.raises(CheckpointError, match="Use names=native"):
        CenterPoint(SMALL).published()


def test_step_counters_may_be_missing() -> None:
    detector = small(3)
    lean = {n: t for n, t in detector.published().items() if "num_batches" not in n}
    assert detector.adopt(lean).keys() == detector.state_dict().keys()


def test_caches_of_the_plain_layout_keep_their_identity() -> None:
    assert not {"centre_axes", "pillar_points"} & CenterPoint.identity(SMALL).keys()
    assert CenterPoint.identity(shipped("centerpoint_mmdet3d"))["pillar_points"] == 20

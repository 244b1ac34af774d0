"""Published BEVDet files load whole by their own names, or are refused by name."""

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from bevcask.config import build_config
from bevcask.detectors.base import MEAN_RGB, STD_RGB
from bevcask.detectors.bevdepth import BEVDepth, BEVDepthConfig
from bevcask.detectors.blocks.bev_encoder import BEVNeck
from bevcask.detectors.blocks.lift_splat import Cameras, cameras_of, frustum_cells
from bevcask.errors import CheckpointError, ConfigError
from bevcask.geometry import bev_matrix
from bevcask.groups import load_group
from detectors.scenes import camera_batch
from detectors.test_centerpoint_names import Shapes, bn, center_head, random_state
from detectors.test_stream_names import resnet, wb

VIEW, NECK = "img_view_transformer.", "img_bev_encoder_neck."


def published_shapes() -> Shapes:
    """bevdet-r50 of the release: 59 bins, 64 channels lifted, 128 x 128 cells."""
    found = resnet((3, 4, 6, 3), bottlenecks=True) | center_head(256)
    found |= wb("img_neck.lateral_convs.0.conv", 512, 1024, 1, 1)
    found |= wb("img_neck.lateral_convs.1.conv", 512, 2048, 1, 1)
    found |= wb("img_neck.fpn_convs.0.conv", 512, 512, 3, 3)
    found |= wb(f"{VIEW}depthnet", 59 + 64, 512, 1, 1)
    found |= {f"{VIEW}dx": (3,), f"{VIEW}bx": (3,), f"{VIEW}nx": (3,)}
    found |= {f"{VIEW}frustum": (59, 16, 44, 3)}
    given = 64
    for stage, width in enumerate((128, 256, 512)):
        for block in range(2):
            at = f"img_bev_encoder_backbone.layers.{stage}.{block}"
            found |= {f"{at}.conv1.weight": (width, given, 3, 3)} | bn(f"{at}.bn1", width)
            found |= {f"{at}.conv2.weight": (width, width, 3, 3)} | bn(f"{at}.bn2", width)
            if block == 0:
                found |= wb(f"{at}.downsample", width, given, 3, 3)
            given = width
    for layer, made, read in ((0, 512, 640), (3, 512, 512)):
        found |= {f"{NECK}conv.{layer}.weight": (made, read, 3, 3)}
        found |= bn(f"{NECK}conv.{layer + 1}", made)
    found |= {f"{NECK}up2.1.weight": (256, 512, 3, 3)} | bn(f"{NECK}up2.2", 256)
    return found | wb(f"{NECK}up2.4", 256, 256, 1, 1)


def shipped(name: str = "bevdet_r50_released") -> BEVDepthConfig:
    _, config = build_config("detector", load_group("detector", name), "detector")
    return cast(BEVDepthConfig, config)


SMALL = BEVDepthConfig.model_validate(
    {
        "layout": "bevdet",
        "depth": "plain",
        "image_size_HW": (64, 96),
        "backbone": "resnet_tiny",
        "image_channels": 16,
        "context_channels": 8,
        "depth_bins": 12,
        "depth_range": (1.0, 25.0),
        "half_extent": 12.8,
        "bev_channels": (8, 12, 16),
        "bev_blocks": 1,
        "join_channels": 16,
        "neck_channels": 8,
        "head": {"channels": 8},
    }
)


def small(seed: int = 0) -> BEVDepth:
    torch.manual_seed(seed)
    return BEVDepth(SMALL).eval()


def test_every_published_tensor_has_its_place() -> None:
    shapes = published_shapes()
    with torch.device("meta"):
        detector = BEVDepth(shipped())
    fixed = detector_constants()
    given = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()} | fixed
    own = detector.state_dict()
    adopted = detector.adopt(given)
    assert {key: t.shape for key, t in adopted.items()} == {key: own[key].shape for key in own}
    assert {key: tuple(t.shape) for key, t in detector.published().items()} == shapes


def detector_constants() -> dict[str, Tensor]:
    """By the formulas of the release, from its configuration."""
    depth, row, column = torch.meshgrid(
        torch.arange(1.0, 60.0, 1.0),
        torch.linspace(0, 255, 16),
        torch.linspace(0, 703, 44),
        indexing="ij",
    )
    return {
        f"{VIEW}dx": torch.tensor([0.8, 0.8, 20.0]),
        f"{VIEW}bx": torch.tensor([-50.8, -50.8, 0.0]),
        f"{VIEW}nx": torch.tensor([128.0, 128.0, 1.0]),
        f"{VIEW}frustum": torch.stack([column, row, depth], dim=-1),
    }


@pytest.mark.slow
def test_the_published_size_runs() -> None:
    detector = BEVDepth(shipped()).eval()
    given = random_state(published_shapes()) | detector_constants()
    detector.load_state_dict(dict(detector.adopt(given)))
    with torch.inference_mode():
        output = detector(camera_batch(1, 0, (256, 704)))
    assert output.taps["bev.neck"].shape == (1, 256, 128, 128)
    assert all(bool(tap.isfinite().all()) for tap in output.taps.values())


def test_files_are_what_they_were_written_from() -> None:
    source, target = small(), small(seed=1)
    half = {n: t.half() if t.is_floating_point() else t for n, t in source.published().items()}
    target.adopt(half)
    target.load_state_dict(dict(target.adopt(source.published())))
    batch = camera_batch(1, 0, SMALL.image_size_HW)
    with torch.inference_mode():
        torch.testing.assert_close(target(batch).preds, source(batch).preds)


def test_the_first_convolution_sees_what_it_saw_there() -> None:
    """Red and blue trade places, then the means of RGB are taken: written out for one pixel."""
    detector = small()
    batch = camera_batch(1, 0, SMALL.image_size_HW)
    assert batch.images_BVCHW is not None
    theirs = detector.published()["img_backbone.conv1.weight"]
    bgr = batch.images_BVCHW.flip(2)[0]
    mean, std = (torch.tensor(own).view(3, 1, 1) for own in (MEAN_RGB, STD_RGB))
    wanted = nn.functional.conv2d((bgr - mean) / std, theirs, stride=2, padding=3)
    got: list[Tensor] = []
    hook = detector.backbone.conv1.register_forward_hook(lambda _m, _i, out: got.append(out))
    with torch.inference_mode():
        detector(batch)
    hook.remove()
    torch.testing.assert_close(got[0], wanted, rtol=1e-4, atol=1e-4)


def test_points_fall_where_the_release_puts_them() -> None:
    batch = camera_batch(2, 0, SMALL.image_size_HW)
    turned = torch.from_numpy(bev_matrix(0.05, 1.01))  # nothing on the border of a cell
    seen = cameras_of(batch)
    cameras = Cameras(
        seen.intrinsics_BV33.double(),
        seen.image_aug_BV33.double(),
        seen.camera_to_lidar_BV44.double(),
        turned.double().expand(2, 4, 4),
    )
    cells = frustum_cells(cameras, (4, 6), 16, SMALL.bin_depths, SMALL.grid, (-10.0, 10.0), True)
    v, u = torch.meshgrid(torch.linspace(0, 63, 4), torch.linspace(0, 95, 6), indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1).double()
    from_camera = torch.linalg.inv(cameras.intrinsics_BV33)
    unaugmented = torch.einsum("bvij,hwj->bvhwi", torch.linalg.inv(cameras.image_aug_BV33), pixels)
    to_bev = cameras.bev_aug_B44[:, None] @ cameras.camera_to_lidar_BV44
    number = SMALL.grid.num_x
    for bin_, depth in enumerate(SMALL.bin_depths):
        camera = torch.einsum("bvij,bvhwj->bvhwi", from_camera, unaugmented * depth)
        point = torch.einsum("bvij,bvhwj->bvhwi", to_bev[..., :3, :3], camera)
        point = point + to_bev[..., :3, 3][:, :, None, None]
        low, size = torch.tensor([-12.8, -12.8, -10.0]), torch.tensor([0.8, 0.8, 20.0])
        index = ((point - low) / size).long()
        kept = (index >= 0).all(-1) & (index[..., 0] < number) & (index[..., 1] < number)
        kept &= index[..., 2] < 1
        sample = torch.arange(2).view(2, 1, 1, 1) * number**2
        flat = sample + index[..., 1] * number + index[..., 0]
        wanted = torch.where(kept, flat, torch.tensor(2 * number**2))
        assert torch.equal(cells[bin_], wanted)
    assert SMALL.bin_depths[0] == 1.0


def test_the_neck_is_that_of_the_release() -> None:
    torch.manual_seed(0)
    neck = BEVNeck(12, 8, 6, as_released=True).eval()
    fine, coarse = torch.randn(1, 4, 8, 8), torch.randn(1, 8, 2, 2)
    up = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True)
    up2 = nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), *neck.output
    )
    with torch.inference_mode():
        wanted = up2(neck.join(torch.cat([fine, up(coarse)], dim=1)))
        torch.testing.assert_close(neck([fine, coarse]), wanted)
    assert isinstance(neck.output[-1], nn.Conv2d)
    assert neck.output[-1].bias is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({f"{NECK}up2.4.bias": None}, "up2.4.bias is missing"),
        ({f"{NECK}up2.4.weight": torch.ones(8, 8, 3, 3)}, r"should have shape \(8, 8, 1, 1\)"),
        ({"img_neck.extra.weight": torch.ones(1)}, "has no place"),
        ({f"{VIEW}bx": torch.zeros(3)}, "bx is not that of the configuration"),
        ({"pre_process_net.layers.0.0.conv1.weight": torch.ones(1)}, "it sees several frames"),
        ({f"{VIEW}depth_net.weight": torch.ones(1)}, "lifts to the ego frame"),
        ({f"{VIEW}extra_depthnet.x": torch.ones(1)}, "deformable convolution"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Tensor | None], said: str) -> None:
    detector = small()
    changed = {n: t for n, t in {**detector.published(), **change}.items() if t is not None}
    with pytest.raises(CheckpointError, match=said):
        detector.adopt(changed)


def test_the_plain_layout_neither_reads_nor_writes_them() -> None:
    plain = BEVDepth(SMALL.model_copy(update={"layout": "own"}))
    with pytest.raises(CheckpointError, match="those of the release, not of `layout: own`"):
        plain.adopt(small().published())
    with pytest.raises(CheckpointError, match="Use names=native"):
        plain.published()
    assert "layout" not in BEVDepth.identity(plain.config)
    assert BEVDepth.identity(SMALL)["layout"] == "bevdet"


def test_two_frames_have_no_such_layout() -> None:
    section = load_group("detector", "bevdet4d_r50") | {"layout": "bevdet"}
    with pytest.raises(ConfigError, match="layout bevdet needs num_frames 1"):
        build_config("detector", section, "detector")
    assert replace(BEVDepth.inputs(SMALL), depth=False) == BEVDepth.inputs(SMALL)

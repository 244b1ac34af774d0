"""BEVDepth keeps the detector contract; its shipped configs have the published shapes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.spatial import cKDTree

from bevcask.config import AugmentConfig, DatasetConfig, build_config
from bevcask.data.index.frames import Frames
from bevcask.data.samples import SampleReader, collate
from bevcask.detectors.base import Batch, Inputs
from bevcask.detectors.bevdepth import BEVDepth, BEVDepthConfig
from bevcask.detectors.blocks.lift_splat import cameras_of, frustum_rays
from bevcask.detectors.centerpoint import CenterPoint
from bevcask.errors import ConfigError
from bevcask.geometry import Grid, bev_matrix
from bevcask.groups import load_group
from bevcask.targets.pixels import nearest_depths
from contracts.detector import CenterHeadContract
from detectors.scenes import VIEWS, camera_batch, camera_to_lidar, in_original, painted

SMALL = BEVDepthConfig.model_validate(
    {
        "image_size_HW": (32, 64),
        "backbone": "resnet_tiny",
        "finest_level": "c3",
        "image_channels": 8,
        "depth_range": (1.0, 51.0),
        "depth_bins": 10,
        "depth_channels": 8,
        "depth_blocks": 1,
        "depth_dilations": (1, 2),
        "context_channels": 8,
        "cell": 1.6,
        "bev_channels": (8, 8, 16),
        "bev_blocks": 1,
        "join_channels": 8,
        "neck_channels": 8,
        "head": {"channels": 8, "branch_convs": 2},
    }
)


class TestBEVDepth(CenterHeadContract):
    detector = BEVDepth
    config = SMALL

    def inputs(self, num_samples: int, seed: int) -> Batch:
        return camera_batch(num_samples, seed, SMALL.image_size_HW)


class TestBEVDepth4D(TestBEVDepth):
    config = SMALL.model_copy(update={"num_frames": 2})

    def inputs(self, num_samples: int, seed: int) -> Batch:
        batch = super().inputs(num_samples, seed)
        batch.history = (replace(super().inputs(num_samples, seed + 1000), pixels=None),)
        return batch


class TestBEVDet(TestBEVDepth):
    config = SMALL.model_copy(update={"depth": "plain"})

    def inputs(self, num_samples: int, seed: int) -> Batch:
        return replace(super().inputs(num_samples, seed), pixels=None)


def shipped(name: str) -> BEVDepthConfig:
    plugin, config = build_config("detector", load_group("detector", name), "student.detector")
    assert plugin is BEVDepth
    assert isinstance(config, BEVDepthConfig)
    return config


def test_paper_config_has_the_published_shapes() -> None:
    config = shipped("bevdepth_r50")
    taps = BEVDepth.describe_taps(config)
    assert {name: tap.shape for name, tap in taps.items()} == {
        "image.fpn0": (6, 512, 16, 44),
        "image.depth": (6, 59, 16, 44),
        "bev.lift": (64, 128, 128),
        "bev.block0": (128, 64, 64),
        "bev.block1": (256, 32, 32),
        "bev.block2": (512, 16, 16),
        "bev.neck": (256, 128, 128),
        "head.heatmap": (10, 128, 128),
        "head.codes": (60, 128, 128),
        "head.boxes": (500, 11),
    }
    assert taps["bev.neck"].grid == Grid.square(51.2, 0.8)
    assert taps["bev.block1"].grid == Grid.square(51.2, 3.2)
    assert all(tap.depends_on_images for tap in taps.values())
    assert taps["image.depth"].bins == config.bin_depths
    assert [name for name, tap in taps.items() if tap.nonnegative] == [
        "image.depth",
        "bev.block0",
        "bev.block1",
        "bev.block2",
        "bev.neck",
        "head.heatmap",
    ]
    assert BEVDepth.inputs(config) == Inputs(image_size_HW=(256, 704), depth=True)
    assert (config.stride, config.bin_size) == (16, 1.0)
    assert (config.bin_depths[0], config.bin_depths[-1]) == (1.5, 59.5)


def test_the_depth_tap_is_what_features_are_lifted_with() -> None:
    contract = TestBEVDepth()
    output = contract.make()(contract.inputs(2, 0))
    depth_BVDHW = output.taps["image.depth"]
    torch.testing.assert_close(depth_BVDHW.sum(2), torch.ones(2, VIEWS, 4, 8))
    torch.testing.assert_close(depth_BVDHW, output.preds["depth"].softmax(2))
    assert depth_BVDHW.requires_grad


def test_shipped_defaults_are_the_paper_config() -> None:
    assert shipped("bevdepth_r50") == BEVDepthConfig()


def test_paper_config_has_the_published_layers() -> None:
    with torch.device("meta"):
        detector = BEVDepth(shipped("bevdepth_r50"))
    state = {name: tuple(value.shape) for name, value in detector.state_dict().items()}
    assert state["pyramid.laterals.0.weight"] == (512, 1024, 1, 1)
    assert state["pyramid.laterals.1.weight"] == (512, 2048, 1, 1)
    assert state["depth_net.reduce.0.weight"] == (256, 512, 3, 3)
    assert [len(stage) for stage in detector.bev_backbone.stages] == [2, 2, 2]
    assert state["neck.join.0.weight"] == (512, 640, 3, 3)
    assert state["neck.output.0.weight"] == (256, 512, 3, 3)
    assert state["neck.output.3.weight"] == (256, 256, 1, 1)


@pytest.mark.parametrize(
    ("name", "frames", "depth"),
    [
        ("bevdet_r50", 1, False),
        ("bevdet4d_r50", 2, False),
        ("bevdepth4d_r50", 2, True),
        ("bevdepth4d_tiny", 2, True),
    ],
)
def test_the_family_ships(name: str, frames: int, depth: bool) -> None:
    config = shipped(name)
    assert BEVDepth.inputs(config) == Inputs(config.image_size_HW, frames - 1, depth=depth)
    with torch.device("meta"):
        detector = BEVDepth(config)
    seen = detector.bev_backbone.stages[0][0].conv1.weight.shape[1]
    assert seen == frames * config.context_channels
    assert hasattr(detector.depth_net, "depth_gate") == depth
    assert load_group("student", name)["detector"] == load_group("detector", name)


@pytest.mark.slow
def test_paper_size_takes_a_finite_training_step() -> None:
    contract, config = TestBEVDepth(), shipped("bevdepth_r50")
    batch = contract.batch()
    batch.images_BVCHW = painted(torch.randn(2, VIEWS, 3, *config.image_size_HW))
    assert batch.image_aug_BV33 is not None
    depth_VHW = 70 * torch.rand(VIEWS, *config.image_size_HW)
    batch.pixels = [in_original(depth_VHW, batch.image_aug_BV33[0, 0])] * 2
    detector = BEVDepth(config).train()
    output = detector(batch)
    described = BEVDepth.describe_taps(config)
    assert all(tuple(own.shape[1:]) == described[name].shape for name, own in output.taps.items())
    total = contract.total(detector, output, batch)
    total.backward()
    assert bool(total.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in detector.parameters())


def test_tiny_config_fits_in_four_megabytes() -> None:
    state = BEVDepth(shipped("bevdepth_tiny")).state_dict()
    assert sum(value.numel() * value.element_size() for value in state.values()) < 3_900_000


@pytest.mark.parametrize(
    ("student", "teacher"), [("bevdepth_tiny", "centerpoint_tiny"), ("bevdepth_r50", "centerpoint")]
)
def test_the_head_tasks_of_the_teacher_fit(student: str, teacher: str) -> None:
    plugin, config = build_config("detector", load_group("detector", teacher), "teacher.detector")
    with torch.device("meta"):
        networks = (BEVDepth(shipped(student)), plugin(config))
    shapes = [
        {k: tuple(v.shape) for k, v in net.state_dict().items() if k.startswith("head.tasks.")}
        for net in networks
    ]
    assert shapes[0]
    assert shapes[0] == shapes[1]
    grids = [
        kind.describe_taps(own)["head.heatmap"].grid
        for kind, own in ((BEVDepth, shipped(student)), (CenterPoint, config))
    ]
    assert grids[0] == grids[1] == Grid.square(51.2, 0.8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size_HW": (150, 288)}, "must divide by 32"),
        ({"cell": 1.0}, "must divide by 8"),
        ({"depth_range": (5.0, 2.0)}, "depth_range"),
        ({"bev_chanels": (8, 8, 8)}, "Did you mean 'bev_channels'"),
    ],
)
def test_configs_that_cannot_work_are_refused(change: dict[str, object], words: str) -> None:
    section = {**load_group("detector", "bevdepth_tiny"), **change}
    with pytest.raises(ConfigError, match=words):
        build_config("detector", section, "student.detector")


def test_every_camera_reaches_its_own_side_of_the_lift() -> None:
    contract = TestBEVDepth()
    detector = contract.make().eval()
    batch = contract.inputs(1, 0)
    assert batch.images_BVCHW is not None
    grid = SMALL.grid
    centres = torch.from_numpy(grid.centres())
    with torch.inference_mode():
        blank = detector(batch).taps["bev.lift"]
        for view in range(VIEWS):
            changed = contract.inputs(1, 0)
            assert changed.images_BVCHW is not None
            changed.images_BVCHW[:, view] += 57
            moved = (detector(changed).taps["bev.lift"] - blank).abs().sum(dim=(0, 1))
            ahead = camera_to_lidar()[view, :2, 2].double()
            reached = centres[moved > 0] @ ahead
            assert len(reached) > 50
            assert bool((reached > 0).all())


def test_a_flipped_world_is_lifted_flipped() -> None:
    contract = TestBEVDepth()
    detector = contract.make().eval()
    plain, flipped = contract.inputs(1, 0), contract.inputs(1, 0)
    flipped.bev_aug_B44 = torch.tensor(bev_matrix(flip_x=True), dtype=torch.float32)[None]
    for gate in (detector.depth_net.depth_gate, detector.depth_net.context_gate):
        gate.gate[0].weight.data[:, 10:15] = 0  # the five numbers that tell of the augmentation
    with torch.inference_mode():
        one, other = (detector(batch).taps["bev.lift"] for batch in (plain, flipped))
    differs = ((other - one.flip(-1)).abs() > 1e-5).any(dim=1)
    assert float(differs.float().mean()) < 0.01  # cells with a frustum point on their edge


def two_frames() -> tuple[BEVDepth, Batch]:
    contract = TestBEVDepth4D()
    return contract.make().eval(), contract.inputs(1, 0)


def test_the_earlier_frame_is_lifted_to_where_this_one_stands() -> None:
    """Ego drove one cell along x and two along y: the map of the earlier frame shifts back."""
    detector, batch = two_frames()
    (before,) = batch.history
    motion = torch.eye(4)
    motion[:2, 3] = torch.tensor([-1.0, -2.0]) * SMALL.cell
    moved = replace(before, bev_aug_B44=motion[None])
    with torch.inference_mode():
        still, shifted = (
            detector._lift(frame, batch.bev_aug_B44).map_BCYX for frame in (before, moved)
        )
    differs = ((shifted[..., :-2, :-1] - still[..., 2:, 1:]).abs() > 1e-5).any(dim=1)
    assert float(differs.float().mean()) < 0.01  # cells with a frustum point on their edge
    assert float((shifted - still).abs().max()) > 0.01


def test_the_earlier_frame_is_seen_and_sends_no_gradient() -> None:
    detector, batch = two_frames()
    (earlier,) = batch.history
    assert earlier.images_BVCHW is not None
    before = detector(batch).taps["bev.neck"]
    changed = replace(earlier, images_BVCHW=earlier.images_BVCHW + 57)
    changed.images_BVCHW.requires_grad_()
    neck = detector(replace(batch, history=(changed,))).taps["bev.neck"]
    assert not torch.equal(neck, before)
    neck.sum().backward()
    assert changed.images_BVCHW.grad is None


def test_one_frame_and_two_share_their_names() -> None:
    """A single-frame checkpoint differs from a two-frame one in the fusion alone."""
    one = set(BEVDepth(SMALL).state_dict())
    two = set(BEVDepth(TestBEVDepth4D.config).state_dict())
    assert {name.split(".")[0] for name in two - one} == {"frame"}
    assert not one - two


def test_depth_loss_sees_the_nearest_point_of_each_block() -> None:
    contract = TestBEVDepth()
    detector = contract.make().eval()
    batch = contract.batch()
    assert batch.pixels is not None
    output = detector(batch)
    before = detector.loss(output, batch)["depth"]
    far, near = (torch.tensor([0, 0, 0, metres, 0]) for metres in (59.9, 1.1))
    behind = [torch.cat([own, own * torch.tensor([1, 1, 1, 0, 1]) + far]) for own in batch.pixels]
    assert torch.equal(detector.loss(output, replace(batch, pixels=behind))["depth"], before)
    closer = [own * torch.tensor([1, 1, 1, 0, 1]) + near for own in batch.pixels]
    assert not torch.equal(detector.loss(output, replace(batch, pixels=closer))["depth"], before)


@pytest.mark.parametrize("augmented", [False, True])
def test_depth_maps_lift_back_onto_the_lidar_points(tiny_world: Path, augmented: bool) -> None:
    frames = Frames.select(
        DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="all", limit=1)
    )
    augment = AugmentConfig(
        resize=(0.02, 0.1),
        crop=True,
        image_flip=True,
        image_rotation=5.0,
        bev_rotation=0.4,
        bev_scale=(0.95, 1.05),
        bev_flip_x=True,
    )
    inputs = Inputs(image_size_HW=(64, 128), num_sweeps=1, depth=True)
    reader = SampleReader(frames, inputs, augment if augmented else None, seed=1)
    batch = collate([reader.read(frames.tokens[0])])
    points = batch.points
    assert points is not None
    assert batch.pixels is not None
    assert batch.image_aug_BV33 is not None
    depth_BVHW = nearest_depths(batch.pixels, batch.image_aug_BV33, 1, (64, 128))
    origin, direction = frustum_rays(cameras_of(batch), (64, 128), stride=1)
    seen = depth_BVHW > 0
    lifted = (origin[:, :, None, None] + depth_BVHW[..., None] * direction)[seen]
    distance, _ = cKDTree(points[0][:, :3].numpy()).query(lifted.numpy())
    pixel = 0.75 * direction.norm(dim=-1)[seen] / 60 * depth_BVHW[seen]  # focal length > 60 pixels
    assert int(seen.sum()) > 1000
    assert bool((torch.from_numpy(distance) < pixel + 1e-3).all())

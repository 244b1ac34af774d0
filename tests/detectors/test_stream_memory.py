"""What StreamPETR and RayDN remember, and what they are shown of it; by hand and by geometry."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bevcask.config import AugmentConfig, Config, DatasetConfig, LoaderConfig
from bevcask.data.index.frames import Frames
from bevcask.data.loader import FrameSource, build_loader
from bevcask.data.samples import Key, SampleReader
from bevcask.detectors.blocks.memory_queue import Poses, Rows, recalled, remembered
from bevcask.detectors.memory import Stream
from bevcask.detectors.raydn import RayDN
from bevcask.detectors.stream_config import StreamConfig
from bevcask.detectors.stream_family import StreamDetector
from bevcask.errors import ConfigError
from bevcask.geometry import bev_matrix, ego_motion, transform_points
from contracts.detector import boxes_of_all_classes, labels_of
from detectors.small_stream import SMALL_PETR, SMALL_RAY, pose, seen, shipped, small

STARTS = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def poses_of(frame: int, config: StreamConfig = SMALL_PETR) -> Poses:
    return small(config)._poses(seen(1, frame))


def written(poses: Poses, place: Tensor) -> dict[str, Tensor]:
    """Return a queue of 4 rows with a query at a place in front, of a new scene."""
    rows = recalled(None, torch.tensor([False]), poses, STARTS, rows=4, channels=8)
    codes = torch.zeros((1, 3, 10))
    codes[0, 1, :3], codes[0, 1, 8:] = place, torch.tensor([2.0, -3.0])
    logits = torch.full((1, 3, 10), -4.0)
    logits[0, 1, 7] = 3.0
    states = torch.arange(24.0).view(1, 3, 8)
    return remembered(rows, poses, states, logits, codes, keep=1)


def read(memory: dict[str, Tensor], poses: Poses, known: bool = True) -> Rows:
    return recalled(memory, torch.tensor([known]), poses, STARTS, rows=4, channels=8)


@pytest.mark.parametrize("single", [True, False])
def test_a_static_point_stays_where_it_is(single: bool) -> None:
    """The car drives and turns, and each frame has a BEV augmentation of its own."""
    config = SMALL_PETR.model_copy(update={"single_poses": single})
    place = torch.tensor([10.0, 20.0, -1.0])
    rows = read(written(poses_of(1, config), place), poses_of(4, config))
    aug = [seen(1, frame).bev_aug_B44[0].double().numpy() for frame in (1, 4)]
    motion = ego_motion(aug[1], pose(4).numpy(), pose(1).numpy(), aug[0])
    wanted = torch.from_numpy(transform_points(place.double().numpy()[None], motion)[0])
    exact = 2e-3 if single else 1e-5  # float32 a kilometre from the origin
    torch.testing.assert_close(rows.places_BM3[0, 0].double(), wanted, atol=exact, rtol=0)
    torch.testing.assert_close(
        rows.poses_BM44[0, 0].double(), torch.from_numpy(motion), atol=exact, rtol=0
    )
    assert rows.places_BM3.dtype == (torch.float32 if single else torch.float64)
    assert rows.ages_BM1[0, 0] == 1.5
    assert torch.equal(rows.velocities_BM2[0, 0], torch.tensor([2.0, -3.0])), "it is never turned"


def test_the_most_certain_query_comes_first_and_the_oldest_leaves() -> None:
    memory = written(poses_of(0), torch.ones(3))
    assert torch.equal(memory["states"][0, 0], torch.arange(8.0, 16.0))
    assert not bool(memory["states"][0, 1:].any())
    assert len(memory["states"][0]) == 4


def test_rows_that_never_held_a_query() -> None:
    """They stand at the LiDAR of the first frame, without a pose, and grow old with the scene."""
    rows = read(written(poses_of(0), torch.ones(3)), poses_of(2))
    last = rows.places_BM3[0, -1].double()
    aug = [seen(1, frame).bev_aug_B44[0].double().numpy() for frame in (0, 2)]
    motion = ego_motion(aug[1], pose(2).numpy(), pose(0).numpy(), aug[0])
    torch.testing.assert_close(last, torch.from_numpy(motion[:3, 3]), atol=2e-3, rtol=0)
    assert not bool(rows.poses_BM44[0, -1].any())
    assert rows.ages_BM1[0, -1] == 1.0


def test_a_new_scene_begins_at_fixed_places() -> None:
    """Whatever was there before, numbers that are none among it."""
    memory = {name: own.fill_(torch.nan) for name, own in written(poses_of(0), STARTS[0]).items()}
    rows = read(memory, poses_of(1), known=False)
    assert torch.equal(rows.places_BM3[0, :2], STARTS)
    assert torch.equal(rows.poses_BM44[0, :2], torch.eye(4).expand(2, 4, 4))
    for own in rows:
        assert not bool(own[0, 2:].any())
    assert not bool(rows.states_BMC.any())
    assert not bool(rows.ages_BM1.any())


def test_what_stands_still_stays_put_under_two_draws(tiny_world: Path) -> None:
    """Through loader and memory: each frame of a stream is turned and scaled by its own draw."""
    frames = Frames.select(
        DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="all")
    )
    augment = AugmentConfig(bev_rotation=0.3925, bev_scale=(0.95, 1.05))
    detector, stream = small(SMALL_PETR), Stream()
    reader = SampleReader(frames, detector.inputs(SMALL_PETR).frame_by_frame(), augment, 0)
    steps = [[Key(0)], [Key(1, after=0)]]
    first, second = build_loader(FrameSource(reader), steps, LoaderConfig(num_workers=0))
    assert not torch.equal(first.bev_aug_B44, second.bev_aug_B44)
    stands = frames.lidar_to_global[0] @ [12.0, -7.0, 1.0, 1.0]
    place_1, place_2 = (
        (batch.bev_aug_B44[0].double().numpy() @ np.linalg.inv(to_global) @ stands)[:3]
        for batch, to_global in zip((first, second), frames.lidar_to_global, strict=False)
    )
    assert np.linalg.norm(place_1 - place_2) > 1
    memory = written(detector._poses(first), torch.from_numpy(place_1))
    stream.keep(stream.recall(first), memory)
    shown = stream.recall(second)
    assert shown.memory is not None
    found = read(shown.memory, detector._poses(shown)).places_BM3[0, 0]
    torch.testing.assert_close(found.double(), torch.from_numpy(place_2), atol=2e-3, rtol=0)


@pytest.fixture(params=[SMALL_PETR, SMALL_RAY], ids=["streampetr", "raydn"])
def detector(request: pytest.FixtureRequest) -> StreamDetector:
    return small(request.param)


def test_where_cameras_are(detector: StreamDetector) -> None:
    """A point is seen where it was before BEV augmentation; extrinsics know nothing of it."""
    batch = seen(1, 3)
    plain = replace(batch, bev_aug_B44=torch.eye(4)[None])
    turned, straight = detector._cameras(batch), detector._cameras(plain)
    point = torch.tensor([3.0, 20.0, 1.0, 1.0])
    moved = batch.bev_aug_B44[0] @ point
    pixel = [own.lidar_to_image_BV44[0, 0] @ p for own, p in ((turned, moved), (straight, point))]
    torch.testing.assert_close(*pixel, atol=1e-3, rtol=1e-4)
    assert torch.equal(turned.extrinsics_BV44, straight.extrinsics_BV44)
    camera = turned.extrinsics_BV44[0, 0] @ point
    torch.testing.assert_close(camera[:3], torch.tensor([3.0, 0.5, 20.0]))
    torch.testing.assert_close(
        turned.intrinsics_BV44[0, 0] @ camera, pixel[1], atol=1e-3, rtol=1e-4
    )


def test_mirrored_bevs_are_refused(detector: StreamDetector) -> None:
    mirror = torch.from_numpy(bev_matrix(flip_x=True))[None].float()
    with pytest.raises(ConfigError, match="without mirrored BEVs"):
        detector(replace(seen(1, 0), bev_aug_B44=mirror))


def test_half_a_pixel_of_a_resize(detector: StreamDetector) -> None:
    batch = seen(1, 0)
    scale = torch.tensor([[-0.5, 0, 63.25], [0, 0.5, -0.25], [0, 0, 1]])  # and a mirror
    batch = replace(batch, image_aug_BV33=scale.expand(1, 6, 3, 3))
    released = detector._cameras(batch).intrinsics_BV44[0, 0]
    torch.testing.assert_close(released[:2, 2], torch.tensor([-0.5 * 400 + 64, 0.5 * 225]))
    assert released[0, 0] == -250


def test_evaluation_disturbs_nothing_and_looks_for_nothing_in_images(
    detector: StreamDetector,
) -> None:
    batch = replace(seen(1, 0), labels=labels_of(boxes_of_all_classes()))
    assert detector.eval()(batch).preds.keys() == {"logits", "codes"}
    names = detector.train()(batch).preds.keys()
    assert {"denoising/logits", "image/logits"} <= names
    assert not any(n.startswith("denoising/") for n in detector(seen(1, 0)).preds)


def test_nothing_leaks_from_denoising_queries(detector: StreamDetector) -> None:
    """Not even what they are made of: matching queries and memory are the same to the bit."""
    stream, frames = Stream(), []
    stream.show(detector.train(), replace(seen(2, 0), tokens=["a", "b"]))
    batch = stream.recall(replace(seen(2, 1), after=["a", "b"]))
    for seed in (1, 2):
        torch.manual_seed(seed)
        labels = labels_of(boxes_of_all_classes(3), boxes_of_all_classes(4))
        frames.append(detector(replace(batch, labels=labels)))
    one, other = frames
    assert not torch.equal(one.preds["denoising/logits"], other.preds["denoising/logits"])
    for name, values in one.taps.items():
        assert torch.equal(values, other.taps[name]), name
    for name, values in one.memory.items():
        assert torch.equal(values, other.memory[name]), name


def test_pseudo_boxes_are_disturbed_but_not_matched(detector: StreamDetector) -> None:
    detector.train()
    labels, more = labels_of(boxes_of_all_classes(1)), labels_of(boxes_of_all_classes(2))
    batch = replace(seen(1, 0), labels=labels)
    losses = []
    for own in (batch, replace(batch, pseudo=more)):
        torch.manual_seed(0)
        output = detector(own)
        losses.append((len(output.preds["denoising/labels"]), detector.loss(output, own)))
    (count, alone), (both, joined) = losses
    assert both > 1.5 * count
    torch.testing.assert_close(alone["class"], joined["class"])
    torch.testing.assert_close(alone["box"], joined["box"])


def test_boxes_leave_the_range_before_augmentation_alone(detector: StreamDetector) -> None:
    """A box at 50 m that is enlarged to 52 m is trained; one at 52 m that is shrunk is not."""
    boxes = torch.zeros((2, 9))
    boxes[:, 0], boxes[:, 3:6] = torch.tensor([52.5, 49.4]), 2.0
    canonical = boxes.clone()
    canonical[:, 0] = torch.tensor([50.0, 52.0])
    labels = labels_of((boxes, torch.tensor([0, 0])))
    batch = replace(seen(1, 0), labels=replace(labels, canonical_boxes=[canonical]))
    ((found, _),) = detector._truth(batch)
    assert found[:, 0].tolist() == [52.5]


def test_what_it_starts_as(detector: StreamDetector) -> None:
    torch.manual_seed(0)
    fresh = type(detector)(detector.config)
    torch.testing.assert_close(fresh.decoder.classify[-1].bias.sigmoid(), torch.full((10,), 0.01))
    for motion in (fresh.queries.content_motion, fresh.queries.position_motion):
        assert not bool(motion.gamma.weight.any())
        assert bool((motion.gamma.bias == 1).all())
        assert not bool(motion.beta.weight.any() or motion.beta.bias.any())
    for own in (fresh.queries.references, fresh.queries.starts_P3):
        assert bool(((own >= 0) & (own <= 1)).all())
        assert 0.4 < float(own.detach().mean()) < 0.7
    assert not fresh.queries.starts_P3.requires_grad
    for own in fresh.pyramid.modules():
        if isinstance(own, nn.Conv2d):
            assert_xavier(own)
    for layer in fresh.decoder.layers:
        for linear in (layer.feed_forward.inner, layer.feed_forward.outer):
            assert_xavier(linear, biased=isinstance(fresh, RayDN))


def assert_xavier(layer: nn.Linear | nn.Conv2d, biased: bool = False) -> None:
    """Uniform up to sqrt(6 / (what is read + what is made)); biases of 0 unless torch's own."""
    window = layer.weight[0, 0].numel()
    limit = (6 / (window * sum(layer.weight.shape[:2]))) ** 0.5
    assert 0.9 * limit < float(layer.weight.detach().abs().max()) <= limit
    assert layer.bias is not None
    assert bool(layer.bias.any()) == biased


@pytest.mark.parametrize(
    ("name", "levels", "rows", "memory"),
    [
        ("streampetr_r50", [(16, 44)], 428, 512),
        ("streampetr_harmo_r50", [(16, 44)], 428, 512),
        ("streampetr_r50_900q", [(16, 44)], 900, 1024),
        ("streampetr_r50_window", [(16, 44)], 900, 1024),
        ("streampetr_tiny", [(10, 18)], 112, 96),
        ("raydn_r50", [(32, 88), (16, 44), (8, 22), (4, 11)], 428, 512),
        ("raydn_r34", [(32, 88), (16, 44), (8, 22), (4, 11)], 428, 512),
        ("raydn_r18", [(32, 88), (16, 44), (8, 22), (4, 11)], 428, 512),
        ("raydn_r101_1408", [(64, 176), (32, 88), (16, 44), (8, 22)], 900, 1024),
        ("raydn_tiny", [(20, 36), (10, 18), (5, 9), (3, 5)], 112, 96),
    ],
)
def test_shapes_of_shipped_detectors(
    name: str, levels: list[tuple[int, int]], rows: int, memory: int
) -> None:
    config: StreamConfig = shipped(name)
    kind = type(small(SMALL_RAY if name.startswith("raydn") else SMALL_PETR))
    taps = kind.describe_taps(config)
    for number, size in enumerate(levels):
        for what in ("level", "modulated"):
            assert taps[f"image.{what}{number}"].shape == (6, config.channels, *size)
    assert taps["query.states"].shape == (config.layers * rows, config.channels)
    assert taps["query.references"].shape == (rows, 3)
    assert config.memory == memory
    assert len(taps) == 2 * len(levels) + 5 + ("query.offsets" in taps)
    assert ("query.offsets" in taps) == name.startswith("raydn")
    assert all(tap.depends_on_images for tap in taps.values())


def test_where_the_two_drop() -> None:
    """RayDN says 2048 and 0.1 for its feed-forward layers and has 1024 and none."""
    ray, petr = shipped("raydn_r50"), shipped("streampetr_r50")
    assert (ray.feed_forward, petr.feed_forward) == (1024, 2048)
    with torch.device("meta"):
        made = [type(small(own))(config) for own, config in ((SMALL_RAY, ray), (SMALL_PETR, petr))]
        plain = type(made[1])(shipped("streampetr_harmo_r50"))
    dropped = [own.decoder.layers[0].feed_forward.dropout.p for own in made]
    assert dropped == [0.0, 0.1]
    for own in made:
        assert own.decoder.layers[0].attention.dropout == own.decoder.layers[0].dropout.p == 0.1
    read = [own.decoder.layers[0].read.attention.dropout for own in (made[1], plain)]
    assert read == [0.0, 0.1]


def test_a_window_as_released() -> None:
    """Seven keyframes before, of which six are only remembered; the stream knows no windows."""
    config = shipped("streampetr_r50_window")
    inputs = small(SMALL_PETR).inputs(config)
    assert (inputs.history, inputs.trained) == (7, 2)
    stream = inputs.frame_by_frame()
    assert (stream.history, stream.trained) == (0, 1)
    assert small(SMALL_PETR).inputs(SMALL_PETR).trained == 1


def test_sizes_that_do_not_fit_are_refused() -> None:
    for change, said in (
        ({"kept": 31}, "kept 31: there are 30 queries"),
        ({"propagated": 21}, "propagated 21 must be within memory 20"),
        ({"trained": 3}, "trained 3: a window has 1 frames before"),
        ({"heads": 3}, "must divide by heads"),
        ({"camera_order": (0, 0, 1)}, "no permutation"),
        ({"channels": 48}, r"channels\n.*multiple of 32"),
    ):
        config: Config = SMALL_PETR
        with pytest.raises(ValueError, match=said):
            type(config).model_validate(config.model_dump() | change)


def test_matrices_of_the_world() -> None:
    """The helper's poses are far away and not level, or the tests above say little."""
    assert np.linalg.norm(pose(0).numpy()[:3, 3]) > 1000
    assert abs(pose(0).numpy()[2, 1]) > 0.01
    assert not np.allclose(bev_matrix(0.05), np.eye(4))

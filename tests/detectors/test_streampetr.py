"""StreamPETR and RayDN go on from frame to frame; they are not trained yet."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bevcask.detectors.base import Batch, Output
from bevcask.detectors.memory import Stream
from bevcask.detectors.streampetr import RayDN, RayDNConfig, StreamPETR, StreamPETRConfig
from bevcask.errors import ConfigError
from bevcask.geometry import CAMERAS, bev_matrix
from bevcask.targets.query_code import decode_centre_boxes
from contracts.stream import StreamContract
from detectors.small_streampetr import SMALL, SMALL_RAYDN, seen, small_raydn, small_streampetr

THEIRS = [
    CAMERAS.index(f"CAM_{name}")
    for name in ("FRONT", "FRONT_RIGHT", "FRONT_LEFT", "BACK", "BACK_LEFT", "BACK_RIGHT")
]
Small = StreamPETR | RayDN


class TestStreamPETR(StreamContract):
    detector = StreamPETR
    config = SMALL

    def make(self) -> StreamPETR:
        return small_streampetr()

    def inputs(self, num_samples: int, seed: int) -> Batch:
        return seen(num_samples, seed)


class TestRayDN(StreamContract):
    detector = RayDN
    config = SMALL_RAYDN

    def make(self) -> RayDN:
        return small_raydn()

    def inputs(self, num_samples: int, seed: int) -> Batch:
        return seen(num_samples, seed)


@pytest.fixture(params=[small_streampetr, small_raydn])
def detector(request: pytest.FixtureRequest) -> Small:
    made: Small = request.param().eval()
    return made


def shown(detector: Small, batch: Batch) -> Output:
    with torch.inference_mode():
        output: Output = detector(batch)
    return output


def test_taps_are_as_described(detector: Small) -> None:
    output = shown(detector, seen(2, 0))
    described = detector.describe_taps(detector.config)
    assert set(output.taps) | {"head.boxes"} == set(described)
    for name, own in output.taps.items():
        assert tuple(own.shape) == (2, *described[name].shape), name
    for own in detector.decode(output):
        assert own.boxes_N9.shape == (20, 9)
        assert bool((own.scores_N[1:] <= own.scores_N[:-1]).all())


def test_what_is_published_by_default() -> None:
    """428 rows of 256 at 256 x 704."""
    with torch.device("meta"):
        petr, raydn = StreamPETR(StreamPETRConfig()), RayDN(RayDNConfig())
    taps = petr.describe_taps(petr.config)
    assert taps["image.level0"].shape == (6, 256, 16, 44)
    assert taps["query.last"].shape == (428, 256)
    levels = [raydn.describe_taps(raydn.config)[f"image.level{n}"].shape[2:] for n in range(4)]
    assert levels == [(32, 88), (16, 44), (8, 22), (4, 11)]


def test_samples_do_not_see_each_other(detector: Small) -> None:
    both = shown(detector, seen(2, 5)).taps["query.last"]
    alone = torch.cat([shown(detector, seen(1, 5 + n)).taps["query.last"] for n in range(2)])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-4)


def test_cameras_come_in_the_published_order(detector: Small) -> None:
    """Pixel i is given the focal length of camera i mod 6 of that order."""
    batch = seen(1, 0)
    assert batch.intrinsics_BV33 is not None
    intrinsics = batch.intrinsics_BV33.clone()
    intrinsics[:, :, 0, 0] += 100 * torch.arange(6)
    batch = replace(batch, intrinsics_BV33=intrinsics)
    frame = detector._frame(batch)
    scale = batch.image_aug_BV33[0, 0, 0, 0]  # type: ignore[index]
    torch.testing.assert_close(
        frame.intrinsics_BV44[0, :, 0, 0], scale * intrinsics[0, THEIRS, 0, 0]
    )
    said = shown(detector, batch).taps["query.last"]
    with torch.inference_mode():
        maps = [own[:, THEIRS] for own in detector._see(batch)]
        wanted = detector.look(maps, frame, None, None).states_LBQC[-1]
        ours = detector.look(detector._see(batch), frame, None, None).states_LBQC[-1]
    assert torch.equal(said, wanted)
    assert not torch.allclose(said, ours, atol=1e-3)


def test_where_things_are() -> None:
    """A point of the augmented LIDAR_TOP comes to its pixel and to its place in the world."""
    batch = seen(1, 3)
    augment = torch.from_numpy(bev_matrix(0.3, 1.05)).double()
    batch = replace(batch, bev_aug_B44=augment[None].float())
    frame = small_streampetr()._frame(batch)
    point = torch.tensor([2.0, 20.0, 1.0, 1.0], dtype=torch.float64)
    moved = batch.bev_aug_B44[0].double() @ point
    front = 0  # looks along +y; CAM_FRONT_LEFT is the third of theirs
    camera = torch.linalg.inv(batch.camera_to_lidar_BV44[0, front].double()) @ point  # type: ignore[index]
    original = batch.intrinsics_BV33[0, front].double() @ camera[:3]  # type: ignore[index]
    resize = batch.image_aug_BV33[0, front].double()  # type: ignore[index]
    pixel = (resize @ (original / original[2]))[:2] + (1 - resize[0, 0]) / 2
    seen_at = frame.lidar_to_image_BV44[0, 2].double() @ moved
    torch.testing.assert_close(seen_at[:2] / seen_at[2], pixel, atol=1e-3, rtol=0)
    world = batch.lidar_to_global_B44[0] @ point  # type: ignore[index]
    torch.testing.assert_close(frame.to_global_B44[0].double() @ moved, world, atol=1e-3, rtol=0)
    torch.testing.assert_close(frame.from_global_B44[0].double() @ world, moved, atol=1e-3, rtol=0)
    assert frame.seconds_B.dtype == torch.float64


def test_what_is_remembered_moves_with_the_ego(detector: Small) -> None:
    stream = Stream()
    first = replace(seen(1, 0), tokens=["0"])
    with torch.inference_mode():
        stream.show(detector, first)
        second = stream.recall(replace(seen(1, 1), tokens=["1"], after=["0"]))
        frames = [detector._frame(own) for own in (first, second)]
        rows = detector.head.recall(frames[1], second.memory, second.known_B)
        said = detector.look(
            [own[:, THEIRS] for own in detector._see(first)], frames[0], None, None
        )
    sure = said.logits_LBQK[-1, 0].sigmoid().amax(-1).topk(SMALL.kept).indices
    centre: Tensor = said.codes_LBQE[-1, 0, sure, :3]
    moved = torch.cat([centre, torch.ones(SMALL.kept, 1)], dim=1).double()
    poses = [own.lidar_to_global_B44[0] for own in (first, second)]  # type: ignore[index]
    moved = (torch.linalg.inv(poses[1]) @ poses[0] @ moved.T).T[:, :3]
    found = rows.reference_BM3[0, : SMALL.kept].double()
    torch.testing.assert_close(found, moved, atol=1e-3, rtol=0)
    age = rows.time_BM1[0, : SMALL.kept]
    torch.testing.assert_close(age, torch.full_like(age, 0.5), atol=1e-6, rtol=0)
    assert torch.equal(rows.embedding_BMC[0, : SMALL.kept], said.states_LBQC[-1, 0, sure])


def test_a_lane_that_begins_forgets_even_what_is_not_a_number(detector: Small) -> None:
    alone = shown(detector, seen(1, 2)).taps["query.last"]
    memory = {name: own * float("nan") for name, own in shown(detector, seen(1, 1)).memory.items()}
    batch = replace(seen(1, 2), memory=memory, known_B=torch.tensor([False]))
    assert torch.equal(shown(detector, batch).taps["query.last"], alone)


def test_mirrored_bevs_are_refused(detector: Small) -> None:
    mirror = torch.diag(torch.tensor([-1.0, 1, 1, 1]))[None]
    with pytest.raises(ConfigError, match="bev_flip_x"):
        detector(replace(seen(1, 0), bev_aug_B44=mirror))


def test_batch_norms_stay_as_they_were_loaded(detector: Small) -> None:
    before = {name: own.clone() for name, own in detector.backbone.named_buffers()}
    detector.train()(seen(2, 0))
    assert all(torch.equal(own, before[name]) for name, own in detector.backbone.named_buffers())
    assert not any(
        own.requires_grad for n, own in detector.backbone.named_parameters() if "bn" in n
    )


def test_there_is_no_loss_yet(detector: Small) -> None:
    batch = seen(1, 0)
    with pytest.raises(NotImplementedError, match="not trained here yet"):
        detector.loss(shown(detector, batch), batch)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_size_HW": (250, 704)}, "must divide by 16"),
        ({"heads": 7}, "must divide by heads 7"),
        ({"memory": 100}, "propagated 128 of a memory of 100"),
        ({"queries": 20, "propagated": 100}, "kept 128 of 120 queries"),
        ({"queries": 20, "propagated": 20, "kept": 20, "max_boxes": 500}, "max_boxes 500 are more"),
    ],
)
def test_sizes_that_do_not_fit(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        StreamPETRConfig.model_validate(change)


def test_boxes_say_what_the_code_says() -> None:
    """x, y, z, log l, w, h, sin, cos, vx, vy; a yaw of pi is -pi."""
    code = torch.tensor(
        [
            [1.0, -2, 0.5, math.log(4), math.log(2), math.log(1.5), 1, 0, 3, -1],
            [0, 0, 0, 0, 0, 0, 0, -1, 0, 0],
        ]
    )
    wanted = torch.tensor(
        [[1, -2, 0.5, 4, 2, 1.5, math.pi / 2, 3, -1], [0, 0, 0, 1, 1, 1, -math.pi, 0, 0]]
    )
    torch.testing.assert_close(decode_centre_boxes(code), wanted)

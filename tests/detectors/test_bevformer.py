"""BEVFormer keeps the detector contract, sample by sample and frame by frame."""

from dataclasses import replace

import pytest
import torch

from bevcask.detectors.base import Batch, Detector, Labels, Output
from bevcask.detectors.bevformer import BEVFormer, since
from bevcask.detectors.blocks.set_loss import wanted
from bevcask.errors import ConfigError
from bevcask.geometry import CLASSES, bev_matrix
from contracts.detector import DetectorContract
from contracts.stream import StreamContract
from detectors.scenes import camera_batch
from detectors.small_bevformer import SMALL, can_bus, seen, shipped, small_bevformer


class TestBEVFormer(DetectorContract, StreamContract):
    detector = BEVFormer
    config = SMALL

    def make(self) -> BEVFormer:
        return small_bevformer()

    def inputs(self, num_samples: int, seed: int) -> Batch:
        return seen(num_samples, seed)

    def perfect(self, detector: Detector, labels: Labels) -> Output:
        assert isinstance(detector, BEVFormer)
        low, high = detector.decoder.low_3, detector.decoder.high_3
        truth = wanted(labels.boxes, labels.classes, low[:2], high[:2])
        logits = torch.full((2, len(truth), SMALL.queries, len(CLASSES)), -12.0)
        codes = torch.zeros((2, len(truth), SMALL.queries, 10))
        codes[..., 0] = 99.0
        for sample, own in enumerate(truth):
            places = torch.arange(len(own.classes_N))
            logits[:, sample, places, own.classes_N] = 8.0
            codes[:, sample, places] = own.codes_NE
        return Output({}, {"logits": logits, "codes": codes})

    def head_loss(self, detector: Detector, output: Output, labels: Labels) -> float:
        batch = replace(self.inputs(len(labels.boxes), 0), labels=labels)
        return sum(float(value) for value in detector.loss(output, batch).values())

    def test_rows_are_y_and_columns_are_x(self) -> None:
        """A landmark that one camera shows moves the cells it sees."""
        detector = self.make().eval()
        batch = self.inputs(1, 0)
        assert batch.images_BVCHW is not None
        images = batch.images_BVCHW.clone()
        images[:, 0] += 150  # looks along +y
        with torch.inference_mode():
            maps = [
                detector(replace(batch, images_BVCHW=own)) for own in (batch.images_BVCHW, images)
            ]
        change_YX = (maps[1].taps["bev.encoder"] - maps[0].taps["bev.encoder"])[0].abs().sum(0)
        assert change_YX.shape == SMALL.bev_size_YX
        assert change_YX[6:].sum() > 3 * change_YX[:4].sum()

    def test_samples_see_what_their_own_cameras_see(self) -> None:
        """Sample 1 has its cameras elsewhere; the release would give it sample 0's cells."""
        detector = self.make().eval()
        one, other = self.inputs(1, 0), self.inputs(1, 1)
        assert other.camera_to_lidar_BV44 is not None
        turned = torch.linalg.inv(torch.from_numpy(bev_matrix(1.0))).float()
        other = replace(other, camera_to_lidar_BV44=turned @ other.camera_to_lidar_BV44)
        with torch.inference_mode():
            alone = [detector(own).taps["bev.encoder"] for own in (one, other)]
            both = detector(_joined(one, other)).taps["bev.encoder"]
        torch.testing.assert_close(both, torch.cat(alone), atol=1e-5, rtol=1e-4)

    def test_padding_is_the_mean_colour(self) -> None:
        detector = self.make().eval()
        given: list[torch.Tensor] = []
        detector.backbone.register_forward_pre_hook(lambda _, args: given.append(args[0]))
        detector(self.inputs(1, 0))
        assert given[0].shape[-2:] == SMALL.padded_HW == (32, 64)
        assert bool((given[0][..., 30:, :] == 0).all())
        assert bool((given[0][..., 60:] == 0).all())

    def test_frozen_parts_stay(self) -> None:
        detector = self.make().train()
        before = {name: own.clone() for name, own in detector.backbone.state_dict().items()}
        batch = self.batch()
        self.total(detector, detector(batch), batch).backward()
        torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], 0.1).step()
        after = detector.backbone.state_dict()
        moved = {name for name, own in before.items() if not torch.equal(own, after[name])}
        assert moved
        assert not {n for n in moved if "bn" in n or n.startswith(("conv1", "layer1"))}


def _joined(one: Batch, other: Batch) -> Batch:
    return replace(
        one,
        tokens=one.tokens + other.tokens,
        **{
            name: torch.cat([getattr(one, name), getattr(other, name)])
            for name in (
                "bev_aug_B44",
                "images_BVCHW",
                "intrinsics_BV33",
                "image_aug_BV33",
                "camera_to_lidar_BV44",
                "can_bus_B18",
            )
        },
    )


def test_memory_of_some_samples() -> None:
    """A lane that begins anew beside one that goes on gives what each gives alone."""
    detector = small_bevformer().eval()
    with torch.inference_mode():
        before = detector(seen(1, 7)).memory
        now = seen(2, 3)
        memory = {name: torch.cat([own, torch.zeros_like(own)]) for name, own in before.items()}
        known = torch.tensor([True, False])
        both = detector(replace(now, memory=memory, known_B=known)).taps["bev.encoder"]
        goes_on = detector(replace(seen(1, 3), memory=before, known_B=torch.tensor([True])))
        anew = detector(seen(1, 4))
    alone = torch.cat([goes_on.taps["bev.encoder"], anew.taps["bev.encoder"]])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(alone[:1], detector(seen(1, 3)).taps["bev.encoder"], atol=1e-3)


def test_where_the_ego_went_since() -> None:
    now, before = can_bus(2, 0), can_bus(2, 5)
    gone = [0, 1, 2, 17]
    kept = [column for column in range(18) if column not in gone]
    read = since(now, before, torch.tensor([True, False]))
    assert torch.equal(read[0, gone], now[0, gone] - before[0, gone])
    assert not bool(read[1, gone].any())
    assert torch.equal(read[:, kept], now[:, kept])
    assert not bool(since(now, None, None)[:, gone].any())
    assert torch.equal(now, can_bus(2, 0)), "what was given is not changed"


def test_half_a_pixel_of_a_resize() -> None:
    batch = camera_batch(1, 0, (30, 60))
    assert batch.image_aug_BV33 is not None
    scale = torch.tensor([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])
    batch = replace(batch, image_aug_BV33=scale.expand(1, 6, 3, 3))
    detector = small_bevformer()
    point = torch.tensor([3.0, 20.0, 1.0, 1.0])
    seen_at = detector._lidar_to_image(batch)[0, 0] @ point
    detector.config = SMALL.model_copy(update={"half_pixel": True})
    centred = detector._lidar_to_image(batch)[0, 0] @ point
    gap = seen_at[:2] / seen_at[2] - centred[:2] / centred[2]
    torch.testing.assert_close(gap, torch.tensor([0.25, 0.25]), atol=1e-4, rtol=0)


def test_bev_augmentation_is_refused() -> None:
    batch = seen(1, 0)
    turned = torch.from_numpy(bev_matrix(0.1))[None].float()
    with pytest.raises(ConfigError, match="without BEV augmentation"):
        small_bevformer()(replace(batch, bev_aug_B44=turned))


@pytest.mark.parametrize(
    ("name", "levels", "bev"),
    [
        ("bevformer_base", [(116, 200), (58, 100), (29, 50), (15, 25)], (200, 200)),
        ("bevformer_small", [(23, 40)], (150, 150)),
        ("bevformer_tiny_published", [(15, 25)], (50, 50)),
        ("bevformer_focal_small", [(116, 200), (58, 100), (29, 50), (15, 25)], (100, 100)),
        ("bevformer_r50", [(116, 200), (58, 100), (29, 50), (15, 25)], (200, 200)),
        ("bevformer_tiny", [(20, 36), (10, 18), (5, 9), (3, 5)], (48, 48)),
        ("bevformer_tiny_student", [(20, 36), (10, 18), (5, 9), (3, 5)], (24, 24)),
    ],
)
def test_shapes_of_shipped_detectors(
    name: str, levels: list[tuple[int, int]], bev: tuple[int, int]
) -> None:
    config = shipped(name)
    taps = BEVFormer.describe_taps(config)
    for number, size in enumerate(levels):
        assert taps[f"image.level{number}"].shape == (6, config.channels, *size)
    assert taps["bev.encoder"].shape == (config.channels, *bev)
    assert taps["query.last"].shape == (config.queries, config.channels)
    rows = config.decoder_layers * config.queries
    assert taps["query.places"].shape == (rows, config.heads * config.decoder_points * 3)
    assert len(taps) == len(levels) + 7
    fixed = {name for name, tap in taps.items() if not tap.depends_on_images}
    assert fixed == {"query.values"}


def test_what_it_starts_as() -> None:
    """Classes are improbable, queries look around themselves, matrices are Xavier's."""
    torch.manual_seed(0)
    detector = BEVFormer(SMALL.model_copy(update={"channels": 64, "feed_forward": 96}))
    for branch in detector.decoder.classify:
        torch.testing.assert_close(branch[-1].bias.sigmoid(), torch.full((10,), 0.01))
    layer = detector.encoder.layers[0]
    ring = layer.temporal.offsets.bias.view(2, 2, 1, 4, 2)
    torch.testing.assert_close(ring[0, 0, 0], torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]))
    assert not bool(layer.temporal.weights.weight.any())
    for weight in (
        layer.feed_forward.inner.weight,
        detector.decoder.layers[0].attention.out_proj.weight,
        detector.encoder.can_bus[2].weight,
    ):
        bound = (6 / sum(weight.shape)) ** 0.5
        assert 0.95 * bound < float(weight.detach().abs().max()) <= bound

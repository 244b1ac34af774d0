import math
import subprocess
import sys

import numpy as np
import pytest

from bevcask.compose import compose
from bevcask.config import AugmentConfig
from bevcask.data.augment import (
    Draw,
    covering_scale,
    draw,
    image_ranges,
    images_only,
    stream,
    window_gaps,
)
from bevcask.errors import ConfigError
from bevcask.geometry import bev_matrix, inside_footprints, transform_boxes, transform_points
from bevcask.verbs import DistillConfig

SIZES = [(900, 1600)] * 6
NETWORK = (256, 704)
TOKEN = "ca9a282c9e77460f8360f564131a8af5"
EVERYTHING = AugmentConfig(
    resize=(-0.06, 0.11),
    crop=True,
    image_flip=True,
    image_rotation=5.4,
    bev_rotation=0.3925,
    bev_scale=(0.95, 1.05),
    bev_flip_x=True,
    bev_flip_y=True,
)


def _draw(
    config: AugmentConfig | None = EVERYTHING, seed: int = 0, token: str = TOKEN, view: int = 0
) -> Draw:
    return draw(config, seed, token, view, SIZES, NETWORK)


def _same(a: Draw, b: Draw) -> bool:
    return a.images == b.images and np.array_equal(a.bev_aug, b.bev_aug)


def test_a_draw_is_a_function_of_seed_token_and_view() -> None:
    assert _same(_draw(), _draw())
    for other in (_draw(seed=1), _draw(token="0" * 32), _draw(view=1)):
        assert _draw().images != other.images
        assert not np.array_equal(_draw().bev_aug, other.bev_aug)


def test_another_process_draws_the_same() -> None:
    code = f"from bevcask.data.augment import stream; print(stream(3, {TOKEN!r}, 2).random(3))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == str(stream(3, TOKEN, 2).random(3))


def test_a_reader_without_images_draws_the_same_bev_matrix() -> None:
    without = draw(EVERYTHING, 0, TOKEN, 5, SIZES, None)
    assert without.images == []
    np.testing.assert_array_equal(without.bev_aug, _draw(view=5).bev_aug)


def test_clean_is_the_identity_in_bev_and_the_covering_bottom_crop() -> None:
    clean = _draw(None, seed=3, view=8)
    np.testing.assert_array_equal(clean.bev_aug, np.eye(4))
    for image in clean.images:
        assert (image.scale, image.flip, image.rotation) == (0.44, False, 0.0)
        assert (image.crop_left, image.crop_top) == (0, 140)


def test_no_augmentation_draws_the_clean_sample() -> None:
    drawn = _draw(AugmentConfig(), view=4)
    assert _same(drawn, _draw(None))


@pytest.mark.parametrize("config", [None, AugmentConfig()], ids=["clean", "nothing drawn"])
def test_what_is_too_wide_is_cropped_in_the_middle(config: AugmentConfig | None) -> None:
    [image] = draw(config, 0, TOKEN, 0, [(450, 1600)], NETWORK).images
    assert (image.crop_left, image.crop_top) == (103, 0)


def test_turns_go_both_ways() -> None:
    config = AugmentConfig(bev_rotation=0.3)
    planes = [_draw(config, view=view).bev_aug[:2, :2] for view in range(200)]
    turns = np.array([math.atan2(plane[1, 0], plane[0, 0]) for plane in planes])
    assert -0.3 <= turns.min() < -0.28
    assert 0.28 < turns.max() <= 0.3


def test_draws_fill_their_ranges_and_stay_inside() -> None:
    draws = [_draw(view=view) for view in range(200)]
    images = [image for drawn in draws for image in drawn.images]
    scales = np.array([image.scale for image in images])
    rotations = np.array([image.rotation for image in images])
    flips = np.array([image.flip for image in images])
    assert 0.38 <= scales.min() < 0.39
    assert 0.54 < scales.max() <= 0.55
    assert math.radians(5.3) < np.abs(rotations).max() <= math.radians(5.4)
    assert 0.4 < flips.mean() < 0.6
    for image in images:
        spare = 1600 * image.scale - 704
        assert 0 <= image.crop_left <= max(0, round(spare))
        assert image.crop_top == round(900 * image.scale - 256)
    planes = np.array([drawn.bev_aug[:2, :2] for drawn in draws])
    determinants = np.linalg.det(planes)
    sizes = np.sqrt(np.abs(determinants))
    assert 0.95 <= sizes.min() < 0.96
    assert 1.04 < sizes.max() <= 1.05
    assert 0.4 < (determinants < 0).mean() < 0.6  # one flip of the two
    assert len({image.scale for image in draws[0].images}) == 6  # a draw a camera


def test_cameras_alike_see_one_draw() -> None:
    """It is the first camera's of those drawn one by one; frames and views differ."""
    alike = EVERYTHING.model_copy(update={"cameras_alike": True})
    seen = []
    for keys in ({}, {"view": 1}, {"token": "0" * 32}, {"seed": 1}):
        drawn, one_by_one = _draw(alike, **keys), _draw(EVERYTHING, **keys)
        assert len(drawn.images) == 6
        assert set(drawn.images) == {one_by_one.images[0]}
        np.testing.assert_array_equal(drawn.bev_aug, one_by_one.bev_aug)
        seen.append(drawn.images[0])
    assert len({image.scale for image in seen}) == 4
    assert image_ranges(alike) != image_ranges(EVERYTHING)
    assert images_only(alike).cameras_alike


def test_crops_of_whole_pixels_end_at_the_last_of_them() -> None:
    """Where Pillow resizes, to whole pixels: rounded up, a crop would end in a black row."""
    seen = []
    for view in range(50):
        fast, pillow = (
            draw(EVERYTHING, 0, TOKEN, view, SIZES, NETWORK, how).images[0]
            for how in ("fast", "pillow")
        )
        assert pillow.scale == fast.scale
        assert pillow.crop_top == int(900 * pillow.scale) - 256
        assert 0 <= pillow.crop_left <= max(0, int(1600 * pillow.scale) - 704)
        seen.append(pillow.crop_top - fast.crop_top)
    assert set(seen) == {-1, 0}
    assert draw(None, 0, TOKEN, 0, SIZES, NETWORK, "pillow").images == _draw(None).images


def test_the_ranges_of_streampetr() -> None:
    """Scales of 0.38 to 0.55, the crop uniform over what is spare, black to the right of less."""
    augment = compose(DistillConfig, ["experiment=streampetr_r50"]).augment
    draws = [_draw(augment, view=view) for view in range(400)]
    images = [drawn.images[0] for drawn in draws]
    assert all(set(drawn.images) == {drawn.images[0]} for drawn in draws)
    scales = np.array([image.scale for image in images])
    assert 0.38 <= scales.min() < 0.385
    assert 0.545 < scales.max() <= 0.55
    spare = 1600 * scales - 704
    left = np.array([image.crop_left for image in images])
    assert (left[spare < 0] == 0).all()
    shares = (left / spare)[spare > 60]
    assert np.ptp(np.histogram(shares, 4, (0, 1.01))[0] / len(shares)) < 0.15
    assert all(image.crop_top == round(900 * image.scale - 256) for image in images)
    assert not any(image.rotation for image in images)
    assert 0.4 < np.mean([image.flip for image in images]) < 0.6
    narrow = min(images, key=lambda image: (image.scale, image.flip))
    shown = narrow.apply(np.full((900, 1600, 3), 255, np.uint8))
    width = round(1600 * narrow.scale)
    shown = shown[:, ::-1] if narrow.flip else shown
    assert width < 704
    assert bool((shown[:, : width - 1] == 255).all())
    assert not bool(shown[:, width + 1 :].any())
    planes = np.array([drawn.bev_aug[:2, :2] for drawn in draws])
    turns, sizes = np.arctan2(planes[:, 1, 0], planes[:, 0, 0]), np.sqrt(np.linalg.det(planes))
    assert -0.3925 <= turns.min() < -0.38
    assert 0.38 < turns.max() <= 0.3925
    assert 0.95 <= sizes.min() < 0.951
    assert 1.049 < sizes.max() <= 1.05


@pytest.mark.parametrize("switched_on", ["bev_rotation", "bev_flip_x", "bev_flip_y"])
def test_switching_one_draw_on_leaves_the_others_as_they_are(switched_on: str) -> None:
    value = 0.3 if switched_on == "bev_rotation" else True
    base = AugmentConfig(bev_scale=(0.9, 1.1))
    more = base.model_copy(update={switched_on: value})
    for view in range(8):
        sizes = [
            abs(np.linalg.det(_draw(config, view=view).bev_aug[:2, :2])) for config in (base, more)
        ]
        assert sizes[0] == pytest.approx(sizes[1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("augment.resize=[0.1,-0.1]", "augment.resize: .*low <= high"),
        ("augment.bev_scale=[1.1,0.9]", "augment.bev_scale: .*low <= high"),
        ("augment.bev_scale=[0.0,1.0]", "augment.bev_scale: .*above 0"),
    ],
)
def test_impossible_ranges_are_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(DistillConfig, [words])


@pytest.mark.parametrize("low", [-0.5, -0.44])
def test_a_resize_that_leaves_no_image_is_refused(low: float) -> None:
    with pytest.raises(ConfigError, match=rf"augment.resize=\[{low}, 0.1\].*above -0.440"):
        _draw(AugmentConfig(resize=(low, 0.1)))


def test_the_covering_scale_covers_both_sides() -> None:
    assert covering_scale((900, 1600), (256, 704)) == pytest.approx(0.44)
    assert covering_scale((450, 1600), (256, 704)) == pytest.approx(256 / 450)


def _scene() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    boxes = np.zeros((12, 9), np.float32)
    boxes[:, :2] = random.uniform(-40, 40, (12, 2))
    boxes[:, 3:6] = random.uniform(1, 6, (12, 3))
    boxes[:, 6] = random.uniform(-np.pi, np.pi, 12)
    boxes[:, 7:] = random.uniform(-5, 5, (12, 2))
    points = random.uniform(-50, 50, (20000, 5)).astype(np.float32)
    return boxes, points


@pytest.mark.parametrize("view", range(6))
def test_boxes_keep_their_points(view: int) -> None:
    boxes, points = _scene()
    bev_aug = _draw(view=view).bev_aug
    before = inside_footprints(points[:, :2].astype(np.float64), boxes.astype(np.float64))
    moved_points = transform_points(points.astype(np.float64), bev_aug)
    moved_boxes = transform_boxes(boxes.astype(np.float64), bev_aug)
    after = inside_footprints(moved_points[:, :2], moved_boxes)
    assert before.sum() > 20
    np.testing.assert_array_equal(before.sum(0), after.sum(0))
    np.testing.assert_array_equal(moved_points[:, 3:], points[:, 3:])


@pytest.mark.parametrize("keys", [{"flip_x": True}, {"flip_y": True}, {"rotation": math.pi}])
def test_the_same_flip_twice_is_the_identity(keys: dict[str, float]) -> None:
    boxes, _ = _scene()
    matrix = bev_matrix(**keys)  # type: ignore[arg-type]
    twice = transform_boxes(transform_boxes(boxes, matrix), matrix)
    np.testing.assert_allclose(np.delete(twice, 6, 1), np.delete(boxes, 6, 1), atol=1e-4)
    turn = (twice[:, 6] - boxes[:, 6] + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(turn, 0, atol=1e-5)


def test_a_moved_velocity_is_the_velocity_of_the_moved_box() -> None:
    boxes, _ = _scene()
    later = boxes.copy()
    later[:, :2] += 0.5 * boxes[:, 7:]
    bev_aug = _draw(view=3).bev_aug
    moved, moved_later = transform_boxes(boxes, bev_aug), transform_boxes(later, bev_aug)
    np.testing.assert_allclose(moved_later[:, :2] - moved[:, :2], 0.5 * moved[:, 7:], atol=1e-4)


def test_one_frame_of_a_longer_window_is_left_out() -> None:
    config = AugmentConfig(drop_history=True)
    windows = [window_gaps((3, 2, 1), _draw(config, view=view).dropped) for view in range(100)]
    assert set(windows) == {(3, 2, 1), (4, 2, 1), (4, 3, 1), (4, 3, 2)}
    assert window_gaps((3, 2, 1), _draw(AugmentConfig()).dropped) == (3, 2, 1)
    assert window_gaps((), 0.5) == ()

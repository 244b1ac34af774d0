"""Changes of colour and stripes: identity, by hand, their ranges, and any size of the network."""

import numpy as np
import pytest

from bevcask.config import AugmentConfig
from bevcask.data.augment import draw, stream
from bevcask.data.colours import Colours, GridMask, draw_colours, draw_grid_mask
from bevcask.errors import ConfigError

TOKEN = "ca9a282c9e77460f8360f564131a8af5"
SIZES = [(900, 1600)] * 6
PIXEL = np.array([[[200, 100, 50]]], np.uint8)


def test_no_change_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(Colours().apply(image), image.astype(np.float32))


@pytest.mark.parametrize(
    ("colours", "wanted"),
    [
        (Colours(brightness=-60.0), (140, 40, -10)),
        (Colours(contrast=1.5), (300, 150, 75)),
        (Colours(brightness=10.0, contrast=2.0, contrast_first=False), (420, 220, 120)),
        (Colours(order=(2, 0, 1)), (50, 200, 100)),
        (Colours(saturation=0.5), (200, 150, 125)),  # half way to grey of the same value
        (Colours(hue=100.0), (50, 200, 50)),  # from 20 degrees to 120: green
    ],
)
def test_changes_by_hand(colours: Colours, wanted: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(colours.apply(PIXEL)[0, 0], wanted, atol=0.01)


def test_hue_turns_around() -> None:
    there = Colours(hue=300.0).apply(PIXEL)
    np.testing.assert_allclose(there, Colours(hue=-60.0).apply(PIXEL), atol=0.01)


def test_contrast_before_hue_or_behind_it_is_the_same_without_clipping() -> None:
    first, last = (
        Colours(contrast=1.3, saturation=0.7, contrast_first=own).apply(PIXEL)
        for own in (True, False)
    )
    np.testing.assert_allclose(first, last, atol=0.01)


def test_draws_fill_their_ranges() -> None:
    drawn = [draw_colours(stream(number)) for number in range(400)]
    for name, still, low, high in [
        ("brightness", 0.0, -32, 32),
        ("contrast", 1.0, 0.5, 1.5),
        ("saturation", 1.0, 0.5, 1.5),
        ("hue", 0.0, -18, 18),
    ]:
        values = np.array([getattr(own, name) for own in drawn])
        assert 0.4 < (values != still).mean() < 0.6, name
        assert low <= values.min() < low + 0.1 * (high - low), name
        assert high - 0.1 * (high - low) < values.max() <= high, name
    assert len({own.order for own in drawn}) == 6
    assert 0.4 < np.mean([own.contrast_first for own in drawn]) < 0.6


def released_mask(height: int, width: int, period: int, top: int, left: int) -> np.ndarray:
    """Lay stripes of ones on a canvas 1.5 times larger, and cut its middle."""
    tall, wide = int(1.5 * height), int(1.5 * width)
    length = min(max(int(period * 0.5 + 0.5), 1), period - 1)
    canvas = np.zeros((tall, wide))
    for number in range(tall // period):
        canvas[top + number * period : top + number * period + length] = 1
    for number in range(wide // period):
        canvas[:, left + number * period : left + number * period + length] = 1
    first_row, first_column = (tall - height) // 2, (wide - width) // 2
    return canvas[first_row : first_row + height, first_column : first_column + width]


@pytest.mark.parametrize("period", [2, 3, 7, 8, 29])
def test_stripes_as_released(period: int) -> None:
    random = np.random.default_rng(period)
    for _ in range(10):
        top, left = (int(value) for value in random.integers(period, size=2))
        found = GridMask(period, top, left, (30, 50)).at((30, 50))
        np.testing.assert_array_equal(found, released_mask(30, 50, period, top, left))


def test_a_mask_of_another_size_is_the_same_enlarged() -> None:
    mask = GridMask(7, 3, 5, (30, 50))
    doubled = np.repeat(np.repeat(mask.at((30, 50)), 2, axis=0), 2, axis=1)
    np.testing.assert_array_equal(mask.at((60, 100)), doubled)


def test_masks_happen_as_often_as_said() -> None:
    config = AugmentConfig(grid_mask=0.7)
    drawn = [draw_grid_mask(config, stream(number), (30, 50)) for number in range(400)]
    masks = [own for own in drawn if own is not None]
    assert 0.63 < len(masks) / 400 < 0.77
    periods = {own.period for own in masks}
    assert min(periods) == 2
    assert max(periods) == 29
    for name in ("offset_top", "offset_left"):
        offsets = [getattr(own, name) for own in masks]
        assert all(0 <= offset < own.period for offset, own in zip(offsets, masks, strict=True))
        assert len(set(offsets)) > 15
    assert draw_grid_mask(config, stream(0), None) is None


def test_draws_do_not_depend_on_the_networks_size() -> None:
    config = AugmentConfig(
        resize=(-0.02, 0.1),
        crop=True,
        image_flip=True,
        image_rotation=5.0,
        photometric=True,
        grid_mask=1.0,
        image_size_HW=(448, 800),
    )
    small, large = (draw(config, 0, TOKEN, 3, SIZES, size) for size in ((448, 800), (896, 1600)))
    assert small.colours == large.colours
    assert len(set(small.colours)) > 1, "each camera has its own"
    assert small.grid_mask == large.grid_mask
    double = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])
    for own, other in zip(small.images, large.images, strict=True):
        np.testing.assert_allclose(double @ own.matrix(), other.matrix(), atol=1e-9)


def test_colours_leave_the_other_draws_as_they_are() -> None:
    plain = AugmentConfig(resize=(-0.02, 0.1), crop=True, bev_rotation=0.3)
    more = plain.model_copy(update={"photometric": True, "grid_mask": 1.0})
    one, other = (draw(own, 0, TOKEN, 3, SIZES, (448, 800)) for own in (plain, more))
    assert one.images == other.images
    np.testing.assert_array_equal(one.bev_aug, other.bev_aug)
    assert one.colours == ()
    assert one.grid_mask is None


@pytest.mark.parametrize(
    ("size", "said"), [((512, 800), "proportions"), ((224, 400), "within a pixel")]
)
def test_a_size_that_does_not_fit_is_refused(size: tuple[int, int], said: str) -> None:
    config = AugmentConfig(image_size_HW=(448, 800), resize=(0.0, 0.1), crop=True)
    with pytest.raises(ConfigError, match=said):
        draw(config, 0, TOKEN, 0, SIZES, size)

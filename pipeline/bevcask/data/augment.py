"""Augmentation as a pure function of (seed, token, view): it draws matrices, it moves nothing.

Image and BEV draws come from separate streams, so that a reader without images (the teacher's)
draws the same BEV matrix as one with images.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevcask.config import AugmentConfig, ImageAugmentConfig, Resampling
from bevcask.data.colours import Colours, GridMask, draw_colours, draw_grid_mask
from bevcask.data.images import ImageTransform, whole_pixels
from bevcask.detectors.base import CLEAN_GAP
from bevcask.errors import ConfigError
from bevcask.geometry import Matrix, bev_matrix


@dataclass(frozen=True)
class Draw:
    """One augmentation of one sample.

    Attributes:
        images: one transform a camera; empty without images.
        bev_aug: 4x4, canonical LIDAR_TOP to augmented LIDAR_TOP.
        frame_gap: keyframes from a two-frame detector's earlier frame to this one.
        dropped: which earlier frame of a window is left out, 0 to 1 over them; None for none.
        colours: one change a camera; empty where colours stay.
        grid_mask: what is kept of all images; None for all of it.
    """

    images: list[ImageTransform]
    bev_aug: Matrix
    frame_gap: int = CLEAN_GAP
    dropped: float | None = None
    colours: tuple[Colours, ...] = ()
    grid_mask: GridMask | None = None


def draw(
    config: AugmentConfig | None,
    seed: int,
    token: str,
    view: int,
    image_sizes_HW: list[tuple[int, int]],
    network_HW: tuple[int, int] | None,
    resampling: Resampling = "fast",
) -> Draw:
    """Return the augmentation of a sample.

    Args:
        config: ranges; None for the clean sample (`clean_image`, identity).
        seed: of the run.
        token: sample token.
        view: which of the sample's augmentations.
        image_sizes_HW: original size of each camera's image.
        network_HW: network size; None without images.
        resampling: of the images: where it resizes to whole pixels, crops end at the last of them.
    """
    sizes = [] if network_HW is None else image_sizes_HW
    if config is None:
        return Draw([clean_image(size, network_HW) for size in sizes if network_HW], np.eye(4))
    camera_stream = stream(seed, token, view, "image")
    drawn_HW = config.image_size_HW or network_HW
    numbers_V4 = camera_stream.random((len(sizes), 4))  # always four, whatever is switched on
    if config.cameras_alike:
        numbers_V4[:] = numbers_V4[:1]
    images = [
        _draw_image(config, numbers_4, size, drawn_HW, resampling)
        for numbers_4, size in zip(numbers_V4.tolist(), sizes, strict=True)
        if drawn_HW
    ]
    nearest, farthest = config.frame_gap
    frame_stream = stream(seed, token, view, "frame")
    gap = frame_stream.integers(nearest, farthest + 1)
    colours = stream(seed, token, view, "colours")
    return Draw(
        images=[_fit(image, network_HW) for image in images if network_HW],
        bev_aug=_draw_bev(config, stream(seed, token, view, "bev")),
        frame_gap=int(gap),
        dropped=frame_stream.random() if config.drop_history else None,
        colours=tuple(draw_colours(colours) for _ in images if config.photometric),
        grid_mask=draw_grid_mask(config, stream(seed, token, view, "grid"), drawn_HW),
    )


def window_gaps(gaps: tuple[int, ...], dropped: float | None) -> tuple[int, ...]:
    """Return how many keyframes back a window's frames are, farthest first.

    Args:
        gaps: of a clean sample.
        dropped: see `Draw`.
    """
    if dropped is None or not gaps:
        return gaps
    reach = (gaps[0] + 1, *gaps)
    left_out = int(dropped * len(reach))
    return reach[:left_out] + reach[left_out + 1 :]


def _fit(image: ImageTransform, network_HW: tuple[int, int]) -> ImageTransform:
    """Return what was drawn for one size at another of the same proportions."""
    try:
        return image.enlarged(network_HW)
    except ValueError as error:
        raise ConfigError(
            f"augment.image_size_HW={list(image.size_HW)} cannot be enlarged to the network input "
            f"{list(network_HW)}: {error}. Give the smaller of the image sizes of teacher and "
            "student, which must have the same proportions; or leave it out."
        ) from None


def images_only(config: ImageAugmentConfig) -> AugmentConfig:
    """Return the augmentation without its BEV part."""
    return AugmentConfig(**image_ranges(config))


def image_ranges(config: ImageAugmentConfig) -> dict[str, Any]:
    """Return what decides the image part of an augmentation, as plain data."""
    names = ImageAugmentConfig.model_fields
    values = config.model_dump(mode="json")
    return {name: values[name] for name in names}


def stream(*key: object) -> np.random.Generator:
    """Return the counter-based generator of a key: same key, same numbers, in any process."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def covering_scale(size_HW: tuple[int, int], network_HW: tuple[int, int]) -> float:
    """Return the smallest resize factor at which the image covers the network size."""
    return max(network_HW[0] / size_HW[0], network_HW[1] / size_HW[1])


def clean_image(size_HW: tuple[int, int], network_HW: tuple[int, int]) -> ImageTransform:
    """Return the covering resize with the crop centred sideways and at the bottom: sky goes."""
    scale = covering_scale(size_HW, network_HW)
    return ImageTransform(
        scale=scale,
        crop_left=round((size_HW[1] * scale - network_HW[1]) / 2),
        crop_top=round(size_HW[0] * scale - network_HW[0]),
        size_HW=network_HW,
    )


def _draw_image(
    config: AugmentConfig,
    numbers_4: list[float],
    size_HW: tuple[int, int],
    network_HW: tuple[int, int],
    resampling: Resampling,
) -> ImageTransform:
    resize, left, flip, rotation = numbers_4
    low, high = config.resize
    covering = covering_scale(size_HW, network_HW)
    if covering + low <= 0:
        raise ConfigError(
            f"augment.resize={[low, high]}: leaves no image, the factor that covers "
            f"{network_HW[1]}x{network_HW[0]} from {size_HW[1]}x{size_HW[0]} is {covering:.3f}. "
            f"Take a lower bound above {-covering:.3f}."
        )
    scale = covering + low + (high - low) * resize
    resized_HW = (size_HW[0] * scale, size_HW[1] * scale)
    if resampling == "pillow":
        resized_HW = whole_pixels(size_HW, scale)
    spare = resized_HW[1] - network_HW[1]
    return ImageTransform(
        scale=scale,
        crop_left=round(max(0.0, spare) * left if config.crop else spare / 2),
        crop_top=round(resized_HW[0] - network_HW[0]),
        size_HW=network_HW,
        flip=config.image_flip and flip < 0.5,
        rotation=math.radians(config.image_rotation) * (2 * rotation - 1),
    )


def _draw_bev(config: AugmentConfig, random: np.random.Generator) -> Matrix:
    rotation, scale, flip_x, flip_y = random.random(4)
    low, high = config.bev_scale
    return bev_matrix(
        rotation=config.bev_rotation * (2 * rotation - 1),
        scale=low + (high - low) * scale,
        flip_x=config.bev_flip_x and flip_x < 0.5,
        flip_y=config.bev_flip_y and flip_y < 0.5,
    )

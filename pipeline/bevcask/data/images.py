"""Camera images: JPEG file -> network input, decoded no larger than needed, resampled once.

`image_aug` matrices map pixel coordinates (u, v, 1) of the original image to those of the network
image; the centre of the first pixel is (0, 0) in both.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from bevcask.config import Resampling
from bevcask.errors import DataError
from bevcask.geometry import Matrix

REDUCTIONS = (8, 4, 2, 1)
RESAMPLING: Mapping[Resampling, str] = {
    "fast": "JPEG decoded 8, 4, 2 or 1 times smaller, never below the target scale; one bilinear "
    "step: a resize, or a warp where there is rotation; crops at whole pixels",
    "pillow": "whole JPEG; Pillow's antialiased bicubic resize to whole pixels, rounded down; "
    "crops at whole pixels",
}
"""How pixels come about: part of the identity of what a network said about an image."""
Pixels = npt.NDArray[np.uint8]

_LONGEST_PERIOD = 64  # rows; clean frames have 25: 704 of 1600 columns, decoded half as large
_EXACT = 1e-9


@dataclass(frozen=True)
class ImageTransform:
    """Resize, crop, flip, rotate: one camera's way from original to network pixels.

    Attributes:
        scale: network pixels per original pixel.
        crop_left: left border of the crop in the resized image, whole pixels as published; what the
            crop takes from outside the image is black.
        crop_top: upper border of the crop in the resized image, whole pixels.
        flip: mirror left and right after the crop.
        rotation: about the centre after the flip, radians, counter-clockwise as seen; the corners
            that come in are black.
        size_HW: of the network image.
    """

    scale: float
    crop_left: int
    crop_top: int
    size_HW: tuple[int, int]
    flip: bool = False
    rotation: float = 0.0

    def enlarged(self, size_HW: tuple[int, int]) -> "ImageTransform":
        """Return the same at another network size.

        Raises:
            ValueError: of other proportions, or a crop would begin within a pixel.
        """
        times = Fraction(size_HW[0], self.size_HW[0])
        if times * self.size_HW[1] != size_HW[1]:
            raise ValueError("the proportions differ")
        left, top = times * self.crop_left, times * self.crop_top
        if left.denominator != 1 or top.denominator != 1:
            raise ValueError(f"a crop at ({left}, {top}) begins within a pixel")
        scale = float(times) * self.scale
        return replace(self, scale=scale, crop_left=int(left), crop_top=int(top), size_HW=size_HW)

    def matrix(self) -> Matrix:
        """Return the 3x3 from original pixels (u, v, 1) to network pixels, not to be changed."""
        return _matrix(self)

    @property
    def reduction(self) -> int:
        """How many times smaller than the original a JPEG is decoded: the most the resize allows.

        The decoder averages blocks of pixels (DCT scaling), so what is left to shrink, at most by
        half, needs no further antialiasing.
        """
        return next((times for times in REDUCTIONS if times * self.scale <= 1), 1)

    def apply(self, image_HW3: Pixels, reduction: int = 1) -> Pixels:
        """Resample an image to the network size: all steps in one bilinear interpolation.

        Without rotation that is a resize, at half the cost of a warp.

        Args:
            image_HW3: uint8, decoded `reduction` times smaller than the original.
            reduction: pixel (0, 0) of the image is the mean of so many by so many original pixels.
        """
        if self.rotation:
            return self._warp(image_HW3, reduction)
        resized_HW3 = self._resize_and_crop(image_HW3, reduction)
        return np.asarray(cv2.flip(resized_HW3, 1), np.uint8) if self.flip else resized_HW3

    def _warp(self, image_HW3: Pixels, reduction: int) -> Pixels:
        half = (reduction - 1) / 2
        to_original = np.array([[reduction, 0, half], [0, reduction, half], [0, 0, 1]])
        matrix = (self.matrix() @ to_original)[:2]
        return np.asarray(cv2.warpAffine(image_HW3, matrix, self.size_HW[::-1]), np.uint8)

    def _resize_and_crop(self, image_HW3: Pixels, reduction: int) -> Pixels:
        factor = self.scale * reduction  # given as factors: a size would bend them by rounding
        above = self._rows_above(factor, len(image_HW3))
        needed_HW3 = image_HW3[above:]
        resized_HW3 = np.asarray(cv2.resize(needed_HW3, None, fx=factor, fy=factor), np.uint8)
        return self._crop(resized_HW3, self.crop_top - round(above * factor))

    def by_pillow(self, image_HW3: Pixels) -> Pixels:
        """Resample a whole image as releases without rotation do: Pillow's resize, crop, mirror."""
        assert not self.rotation, "readers refuse it"
        height, width = whole_pixels((image_HW3.shape[0], image_HW3.shape[1]), self.scale)
        resized = Image.fromarray(image_HW3).resize((width, height), Image.Resampling.BICUBIC)
        cropped_HW3 = self._crop(np.asarray(resized), self.crop_top)
        return np.ascontiguousarray(cropped_HW3[:, ::-1]) if self.flip else cropped_HW3

    def _crop(self, resized_HW3: Pixels, crop_top: int) -> Pixels:
        height, width = self.size_HW
        cropped_HW3 = resized_HW3[
            max(0, crop_top) : max(0, crop_top + height),
            max(0, self.crop_left) : max(0, self.crop_left + width),
        ]
        top, left = max(0, -crop_top), max(0, -self.crop_left)
        network_HW3 = np.zeros((height, width, 3), np.uint8)
        network_HW3[top : top + cropped_HW3.shape[0], left : left + cropped_HW3.shape[1]] = (
            cropped_HW3
        )
        return network_HW3

    def _rows_above(self, factor: float, num_rows: int) -> int:
        """Return how many of an image's first rows the crop leaves out and a resize may skip.

        Only as many as become a whole number of rows: then the others land where they would.
        """
        period = Fraction(factor).limit_denominator(_LONGEST_PERIOD)
        if abs(float(period) - factor) > _EXACT:
            return 0
        out_of_sight = min(self.crop_top / factor, num_rows - self.size_HW[0] / factor) - 1
        return max(0, int(out_of_sight) // period.denominator * period.denominator)


@lru_cache(maxsize=64)  # pixels and labels of a frame ask for the same few
def _matrix(transform: ImageTransform) -> Matrix:
    _, width = transform.size_HW
    half = (transform.scale - 1) / 2
    resize_crop = np.array(
        [
            [transform.scale, 0, half - transform.crop_left],
            [0, transform.scale, half - transform.crop_top],
            [0, 0, 1],
        ]
    )
    flip = np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]])
    matrix: Matrix = _rotation(transform) @ (flip if transform.flip else np.eye(3)) @ resize_crop
    matrix.flags.writeable = False
    return matrix


def _rotation(transform: ImageTransform) -> Matrix:
    """Return the 3x3 of the rotation alone; v points down, so signs are mirrored."""
    height, width = transform.size_HW
    c, s = math.cos(transform.rotation), math.sin(transform.rotation)
    to_centre = np.array([[1, 0, -(width - 1) / 2], [0, 1, -(height - 1) / 2], [0, 0, 1]])
    back = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    matrix: Matrix = back @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) @ to_centre
    return matrix


def whole_pixels(size_HW: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return height and width of an image that released code resizes: rounded down."""
    height, width = (int(size * scale + _EXACT) for size in size_HW)
    return height, width


def load_image(
    path: Path,
    size_HW: tuple[int, int],
    transform: ImageTransform,
    resampling: Resampling = "fast",
) -> Pixels:
    """Return the network image (H, W, 3) uint8 of a JPEG; see `read_image`, `RESAMPLING`."""
    if resampling == "pillow":
        return transform.by_pillow(read_image(path, size_HW))
    reduction = transform.reduction
    return transform.apply(read_image(path, size_HW, reduction), reduction)


def read_image(path: Path, size_HW: tuple[int, int], reduction: int = 1) -> Pixels:
    """Decode a JPEG to RGB (H, W, 3) uint8, H and W divided by `reduction` and rounded up.

    Args:
        path: the file.
        size_HW: height and width that the sample_data table gives.
        reduction: one of `REDUCTIONS`.

    Raises:
        DataError: the file is missing, truncated, no JPEG, or of another size.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing image, named by sample_data.json or the info file. Expected a "
            f"{size_HW[1]}x{size_HW[0]} JPEG. Unpack the samples archive of this version into "
            "dataset.root."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot read image: {error.strerror}.") from error
    reduced_HW = [-(-size // reduction) for size in size_HW]
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        image: Pixels = simplejpeg.decode_jpeg(
            data, min_height=reduced_HW[0], min_width=reduced_HW[1], strict=True
        )
    except ValueError as error:
        if other := _other_format(data):
            raise DataError(
                f"{path}: a {other} image, expected a JPEG, which is decoded smaller and faster. "
                "Convert the images to JPEG once (quality 95 keeps them), and name the new files "
                "in sample_data.json or the info file."
            ) from error
        raise DataError(
            f"{path}: truncated or damaged image ({error}); {len(data)} bytes. Expected a complete "
            f"{size_HW[1]}x{size_HW[0]} JPEG. Copy or download the file again."
        ) from error
    if (height, width) != tuple(size_HW):
        raise DataError(
            f"{path}: image is {width}x{height}, expected {size_HW[1]}x"
            f"{size_HW[0]} as in sample_data.json (with an info file: as the first frame has). "
            "Intrinsics would be wrong: restore the original file, or correct width and height in "
            "the table."
        )
    assert list(image.shape[:2]) == reduced_HW
    return image


def _other_format(data: bytes) -> str | None:
    """Return the format of an image that is no JPEG; None if nothing knows it."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return None if image.format == "JPEG" else image.format
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def to_planes(
    image_HW3: Pixels | npt.NDArray[np.float32],
    out_CHW: Pixels | npt.NDArray[np.float32],
) -> None:
    """Write an image into (3, H, W), contiguous and of the same type, plane by plane."""
    cv2.split(image_HW3, list(out_CHW))

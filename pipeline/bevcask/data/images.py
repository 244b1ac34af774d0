"""Camera images: JPEG file -> network input, in one resampling.

`image_aug` matrices map pixel coordinates (u, v, 1) of the original image to those of the network
image; the centre of the first pixel is (0, 0) in both.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from bevcask.errors import DataError
from bevcask.geometry import Matrix

MEAN_RGB = (123.675, 116.28, 103.53)  # ImageNet, 0..255
STD_RGB = (58.395, 57.12, 57.375)
Pixels = npt.NDArray[np.uint8]

_SCALE_3 = (1 / np.array(STD_RGB)).astype(np.float32)
_OFFSET_3 = (-np.array(MEAN_RGB) / np.array(STD_RGB)).astype(np.float32)


@dataclass(frozen=True)
class ImageTransform:
    """Resize, crop, flip, rotate: one camera's way from original to network pixels.

    Attributes:
        scale: network pixels per original pixel.
        crop_left: left border of the crop in the resized image, pixels; what the crop takes from
            outside the image is black.
        crop_top: upper border of the crop in the resized image, pixels.
        flip: mirror left and right after the crop.
        rotation: about the centre after the flip, radians, counter-clockwise as seen; the corners
            that come in are black.
        size_HW: of the network image.
    """

    scale: float
    crop_left: float
    crop_top: float
    size_HW: tuple[int, int]
    flip: bool = False
    rotation: float = 0.0

    def matrix(self) -> Matrix:
        """Return the 3x3 from original pixels (u, v, 1) to network pixels."""
        half = (self.scale - 1) / 2
        resize_crop = np.array(
            [
                [self.scale, 0, half - self.crop_left],
                [0, self.scale, half - self.crop_top],
                [0, 0, 1],
            ]
        )
        flip = np.array([[-1.0, 0, self.size_HW[1] - 1], [0, 1, 0], [0, 0, 1]])
        matrix: Matrix = self._rotate() @ (flip if self.flip else np.eye(3)) @ resize_crop
        return matrix

    def _rotate(self) -> Matrix:
        """Return the 3x3 of the rotation alone; v points down, so signs are mirrored."""
        height, width = self.size_HW
        c, s = math.cos(self.rotation), math.sin(self.rotation)
        to_centre = np.array([[1, 0, -(width - 1) / 2], [0, 1, -(height - 1) / 2], [0, 0, 1]])
        turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        matrix: Matrix = np.linalg.inv(to_centre) @ turn @ to_centre
        return matrix

    def apply(self, image_HW3: Pixels) -> Pixels:
        """Resample an original image (H, W, 3) uint8 to the network size, antialiased."""
        out = self._resize_crop(image_HW3)
        if self.flip:
            out = np.ascontiguousarray(out[:, ::-1])
        if self.rotation:
            height, width = self.size_HW
            turn = self._rotate()[:2]
            out = np.asarray(cv2.warpAffine(out, turn, (width, height)), np.uint8)
        return out

    def _resize_crop(self, image_HW3: Pixels) -> Pixels:
        left, right = _covered(self.crop_left, image_HW3.shape[1] * self.scale, self.size_HW[1])
        top, bottom = _covered(self.crop_top, image_HW3.shape[0] * self.scale, self.size_HW[0])
        out = np.zeros((*self.size_HW, 3), np.uint8)
        if left >= right or top >= bottom:
            return out
        u0, u1 = ((self.crop_left + edge) / self.scale for edge in (left, right))
        v0, v1 = ((self.crop_top + edge) / self.scale for edge in (top, bottom))
        reach = math.ceil(1 / self.scale) + 1  # of the antialiasing filter, original pixels
        first = max(0, math.floor(v0) - reach)
        band = Image.fromarray(image_HW3[first : math.ceil(v1) + reach])
        box = (max(u0, 0), max(v0 - first, 0), min(u1, band.width), min(v1 - first, band.height))
        out[top:bottom, left:right] = band.resize(
            (right - left, bottom - top),
            Image.Resampling.BILINEAR,
            box=box,
            reducing_gap=1.0,  # below half size, average whole pixels first: 40 % less time
        )
        return out


def _covered(crop_start: float, resized: float, size: int) -> tuple[int, int]:
    """Return the range of output pixels that lie wholly inside the resized image."""
    tolerance = 1e-6
    first = max(0, math.ceil(-crop_start - tolerance))
    return first, min(size, math.floor(resized - crop_start + tolerance))


def read_image(path: Path, size_HW: tuple[int, int]) -> Pixels:
    """Decode a JPEG to RGB (H, W, 3) uint8.

    Args:
        path: the file.
        size_HW: height and width that the sample_data table gives.

    Raises:
        DataError: the file is missing, truncated, no JPEG, or of another size.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing image, named by sample_data.json. Expected a {size_HW[1]}x"
            f"{size_HW[0]} JPEG. Unpack the samples archive of this version into dataset.root."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot read image: {error.strerror}.") from error
    try:
        image: Pixels = simplejpeg.decode_jpeg(data, strict=True)
    except ValueError as error:
        raise DataError(
            f"{path}: truncated or damaged image ({error}); {len(data)} bytes. Expected a complete "
            f"{size_HW[1]}x{size_HW[0]} JPEG. Copy or download the file again."
        ) from error
    if image.shape[:2] != tuple(size_HW):
        raise DataError(
            f"{path}: image is {image.shape[1]}x{image.shape[0]}, expected {size_HW[1]}x"
            f"{size_HW[0]} as in sample_data.json. Intrinsics would be wrong: restore the original "
            "file, or correct width and height in the table."
        )
    return image


def normalise(image_HW3: Pixels, out_CHW: npt.NDArray[np.float32]) -> None:
    """Write (image - mean) / std into a float32 (3, H, W) array; ImageNet statistics, RGB."""
    for channel in range(3):
        np.multiply(image_HW3[..., channel], _SCALE_3[channel], out=out_CHW[channel])
        out_CHW[channel] += _OFFSET_3[channel]

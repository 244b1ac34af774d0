"""Changes of colour and a mask of stripes, as BEVFormer's release trains with.

What is drawn does not depend on the size of the network's input.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from bevcask.config import ImageAugmentConfig

_BRIGHTNESS = 32.0
_RATIO = (0.5, 1.5)
_HUE = 18.0  # degrees
_CANVAS = 1.5  # the grid is laid on a canvas so many times larger, cut at its middle


@dataclass(frozen=True)
class Colours:
    """What happens to the colours of one camera's image; values of 0..255 are not clipped.

    Attributes:
        brightness: added.
        contrast: factor.
        contrast_first: before saturation and hue rather than behind them.
        saturation: factor.
        hue: degrees, added.
        order: of the channels.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    contrast_first: bool = True
    saturation: float = 1.0
    hue: float = 0.0
    order: tuple[int, int, int] = (0, 1, 2)

    def apply(self, image_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the image, RGB, changed; float32."""
        changed: npt.NDArray[np.float32] = np.asarray(image_HW3, np.float32)
        changed = changed + np.float32(self.brightness)
        if self.contrast_first:
            changed = changed * np.float32(self.contrast)
        if self.saturation != 1 or self.hue:
            hsv = np.asarray(cv2.cvtColor(changed, cv2.COLOR_RGB2HSV), np.float32)
            hsv[..., 1] = hsv[..., 1] * np.float32(self.saturation)  # degrees, 0 to 1, value
            hsv[..., 0] = (hsv[..., 0] + np.float32(self.hue)) % 360
            changed = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float32)
        if not self.contrast_first:
            changed = changed * np.float32(self.contrast)
        return np.ascontiguousarray(changed[..., self.order])


def draw_colours(random: np.random.Generator) -> Colours:
    """Draw a change; each of its five parts happens half of the time."""
    happens = random.random(5) < 0.5  # always the same count of numbers
    shift, contrast, saturation, hue = random.random(4)
    first = bool(random.random() < 0.5)
    order = random.permutation(3)
    low, high = _RATIO
    return Colours(
        brightness=_BRIGHTNESS * (2 * shift - 1) if happens[0] else 0.0,
        contrast=low + (high - low) * contrast if happens[1] else 1.0,
        contrast_first=first,
        saturation=low + (high - low) * saturation if happens[2] else 1.0,
        hue=_HUE * (2 * hue - 1) if happens[3] else 0.0,
        order=(int(order[0]), int(order[1]), int(order[2])) if happens[4] else (0, 1, 2),
    )


@dataclass(frozen=True)
class GridMask:
    """Stripes of rows and of columns; pixels in one of either are kept (Chen et al. 2020, mode 1).

    Attributes:
        period: pixels from stripe to stripe.
        offset_top: of the first stripe of rows on the canvas.
        offset_left: of the first stripe of columns.
        size_HW: of the images it is drawn for.
    """

    period: int
    offset_top: int
    offset_left: int
    size_HW: tuple[int, int]

    def at(self, size_HW: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Return True where pixels of an image are kept, (H, W)."""
        rows_H, columns_W = (
            self._stripes(own, offset)[np.arange(size) * own // size]
            for own, offset, size in zip(
                self.size_HW, (self.offset_top, self.offset_left), size_HW, strict=True
            )
        )
        kept: npt.NDArray[np.bool_] = rows_H[:, None] | columns_W
        return kept

    def _stripes(self, size: int, offset: int) -> npt.NDArray[np.bool_]:
        canvas = int(_CANVAS * size)
        width = min(max(int(self.period * 0.5 + 0.5), 1), self.period - 1)
        place = np.arange(size) + (canvas - size) // 2 - offset
        number = place // self.period
        laid = (number >= 0) & (number < canvas // self.period)
        return np.asarray(laid & (place % self.period < width))


def draw_grid_mask(
    config: ImageAugmentConfig, random: np.random.Generator, size_HW: tuple[int, int] | None
) -> GridMask | None:
    """Draw a mask for images of a size, or none."""
    happens, period, top, left = random.random(4)
    if size_HW is None or happens >= config.grid_mask:
        return None
    pixels = 2 + int(period * (size_HW[0] - 2))
    return GridMask(pixels, int(top * pixels), int(left * pixels), size_HW)

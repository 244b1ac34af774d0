"""Boxes in image maps: by hand, against loops, under image augmentation, behind the camera."""

import itertools
import math

import pytest
import torch

from bevcask.errors import TargetMismatchError
from bevcask.targets.align import ImageAug
from bevcask.targets.rectangles import rectangle_mask

SIZE_HW = (32, 64)
FOCAL, MIDDLE = 20.0, (31.5, 15.5)  # pixels


def calibration(batch_size: int = 1) -> torch.Tensor:
    """Cameras that look along +y and -y from the origin, original pixels (B, 2, 4, 4)."""
    camera = torch.tensor([[FOCAL, 0, MIDDLE[0]], [0, FOCAL, MIDDLE[1]], [0, 0, 1]])
    turns = torch.tensor(
        [[[1.0, 0, 0], [0, 0, -1], [0, 1, 0]], [[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]]]
    )
    matrices = torch.eye(4).repeat(batch_size, 2, 1, 1)
    matrices[..., :3, :3] = camera @ turns
    return matrices.double()


def images(batch_size: int = 1, aug: torch.Tensor | None = None) -> ImageAug:
    aug = torch.eye(3) if aug is None else aug
    return ImageAug(aug.expand(batch_size, 2, 3, 3), SIZE_HW, calibration(batch_size))


def box(x: float, y: float, z: float = 0.0, side: float = 2.0, yaw: float = 0.0) -> torch.Tensor:
    return torch.tensor([[x, y, z, side, side, side, yaw, 0.0, 0.0]])


def span(mask: torch.Tensor) -> list[int]:
    """Return first and last row, first and last column; a rectangle is full."""
    rows, columns = mask.nonzero().T
    found = [int(v) for v in (rows.min(), rows.max(), columns.min(), columns.max())]
    assert len(rows) == (found[1] - found[0] + 1) * (found[3] - found[2] + 1)
    return found


def test_by_hand() -> None:
    """Corners at 4 m are the widest: 1 / 4 x 20 = 5 pixels to each side of pixel 31.5, 15.5."""
    mask = rectangle_mask([box(0, 5)], images(), (32, 64))[0]
    assert span(mask[0]) == [11, 20, 27, 36]  # pixel i covers i - 0.5 to i + 0.5
    assert not mask[1].any()
    # At stride 8 the edges are 11 / 8 to 21 / 8 and 27 / 8 to 37 / 8.
    assert span(rectangle_mask([box(0, 5)], images(), (4, 8))[0, 0]) == [1, 2, 3, 4]


def test_right_is_right_and_up_is_up() -> None:
    right_and_up = rectangle_mask([box(4, 8, 2)], images(), SIZE_HW)[0, 0]
    rows, columns = right_and_up.nonzero().T
    assert rows.max() < 16
    assert columns.min() > 32
    behind = rectangle_mask([box(4, -8, 2)], images(), SIZE_HW)[0]
    assert not behind[0].any()
    assert behind[1].nonzero()[:, 1].max() < 32  # seen from a camera that looks back


def test_no_box_and_several() -> None:
    nothing = rectangle_mask([torch.zeros(0, 9), box(0, 5)], images(2), SIZE_HW)
    assert not nothing[0].any()
    assert nothing[1].any()
    one, two = box(-3, 6), box(3, 9)
    both = rectangle_mask([torch.cat([one, two])], images(), SIZE_HW)
    parts = [rectangle_mask([own], images(), SIZE_HW) for own in (one, two)]
    assert torch.equal(both, parts[0] | parts[1])


def test_image_augmentation_moves_rectangles() -> None:
    """Mirrored columns; then half the size."""
    mirror = torch.tensor([[-1.0, 0, 63], [0, 1, 0], [0, 0, 1]])
    plain = rectangle_mask([box(3, 6)], images(), SIZE_HW)
    assert torch.equal(rectangle_mask([box(3, 6)], images(aug=mirror), SIZE_HW), plain.flip(-1))
    half = torch.tensor([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])
    small = rectangle_mask([box(3, 6)], images(aug=half), SIZE_HW)[0, 0]
    first_row, last_row, first, last = span(plain[0, 0])
    assert span(small) == [first_row // 2, last_row // 2, first // 2, last // 2]


def test_corners_behind_the_camera_are_left_out() -> None:
    beside = rectangle_mask([box(3, 0.5)], images(), SIZE_HW)[0]
    assert beside[0].any()  # corners at 1.5 m, right of the image's middle
    assert beside[0].nonzero()[:, 1].min() > 32
    assert not rectangle_mask([box(0, 0.05, side=0.04)], images(), SIZE_HW).any()


def test_stride_of_padded_images() -> None:
    """450 rows were padded to 464: 15 rows of stride 32, the last of them half."""
    frame = ImageAug(torch.eye(3).expand(1, 2, 3, 3), (450, 800), calibration())
    mask = rectangle_mask([box(0, 5)], frame, (15, 25))[0, 0]
    assert span(mask) == [0, 0, 0, 1]  # pixels 10.5 to 20.5 and 26.5 to 36.5


def expected(boxes: torch.Tensor, aug: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Loop over boxes, cameras, corners and cells."""
    out = torch.zeros(2, *size, dtype=torch.bool)
    stride = SIZE_HW[1] / size[1]
    for (x, y, z, length, width, height, yaw, _, _), camera in itertools.product(
        boxes.double().tolist(), range(2)
    ):
        points = []
        for i, j, k in itertools.product((-0.5, 0.5), repeat=3):
            px = x + i * length * math.cos(yaw) - j * width * math.sin(yaw)
            py = y + i * length * math.sin(yaw) + j * width * math.cos(yaw)
            ahead = py if camera == 0 else -py
            if ahead <= 0.1:
                continue
            u = FOCAL * (px if camera == 0 else -px) / ahead + MIDDLE[0]
            v = -FOCAL * (z + k * height) / ahead + MIDDLE[1]
            a = aug.double()
            points.append(
                (a[0, 0] * u + a[0, 1] * v + a[0, 2], a[1, 0] * u + a[1, 1] * v + a[1, 2])
            )
        if not points:
            continue
        (left, top), (right, bottom) = (
            [(float(f(p[axis] for p in points)) + 0.5) / stride for axis in (0, 1)]  # type: ignore[operator]
            for f in (min, max)
        )
        for row, column in itertools.product(range(size[0]), range(size[1])):
            across = column + 1 > left and column < right
            out[camera, row, column] |= across and row + 1 > top and row < bottom
    return out


@pytest.mark.parametrize("size", [(8, 16), (4, 8), (2, 4)])
def test_against_loops(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(size[0])
    boxes = torch.randn(12, 9, generator=generator) * torch.tensor([5.0, 8, 1, 0, 0, 0, 2, 1, 1])
    boxes[:, 3:6] = 0.3 + 2 * torch.rand(12, 3, generator=generator)
    aug = torch.tensor([[0.9, 0.1, -2.0], [-0.1, 0.9, 3.0], [0, 0, 1]])
    found = rectangle_mask([boxes], images(aug=aug), size)[0]
    assert torch.equal(found, expected(boxes, aug, size))
    assert 0.02 < found.float().mean() < 0.98


def test_without_calibration_it_says_so() -> None:
    bare = ImageAug(torch.eye(3).expand(1, 2, 3, 3), SIZE_HW)
    for given in (None, bare):
        with pytest.raises(TargetMismatchError, match="need a student that has images, and the"):
            rectangle_mask([box(0, 5)], given, SIZE_HW)

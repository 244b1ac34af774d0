import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from bevcask.data.augment import clean_image
from bevcask.data.images import (
    REDUCTIONS,
    ImageTransform,
    Pixels,
    load_image,
    read_image,
    to_planes,
    whole_pixels,
)
from bevcask.errors import DataError

NETWORK = (64, 176)
CAMERA = (900, 1600)


def _save(image_HW3: Pixels, path: Path) -> Path:
    Image.fromarray(image_HW3).save(path, quality=95)
    return path


def _spot(u: float, v: float, radius: float) -> Pixels:
    """A black camera image with one white Gaussian spot centred on pixel (u, v)."""
    rows, columns = np.ogrid[: CAMERA[0], : CAMERA[1]]
    light = 255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * radius**2))
    return np.repeat(np.rint(light).astype(np.uint8)[..., None], 3, axis=2)


def _centroid(image: Pixels) -> tuple[float, float]:
    weight = np.clip(image.astype(float).mean(axis=2) - 8, 0, None)  # 8: what JPEG rings
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    return (columns * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()


def _view(scale: float, u: float, v: float, **rest: Any) -> ImageTransform:
    """The transform that shows pixel (u, v) less than a pixel beside the middle."""
    return ImageTransform(scale, round(u * scale) - 80, round(v * scale) - 30, NETWORK, **rest)


MOVES: dict[str, dict[str, Any]] = {
    "crop": {},
    "flip": {"flip": True},
    "rotation": {"rotation": math.radians(5.4)},
    "all": {"flip": True, "rotation": math.radians(-5.4)},
}


@pytest.mark.parametrize(
    ("scale", "reduction"),
    [
        (1.2, 1),
        (0.51, 1),
        (0.5, 2),
        (0.44, 2),
        (0.386, 2),
        (0.25, 4),
        (0.2, 4),
        (0.125, 8),
        (0.11, 8),
    ],
)
def test_a_marked_pixel_lands_where_the_matrix_says(
    scale: float, reduction: int, tmp_path: Path
) -> None:
    for number, (u, v) in enumerate([(801, 452), (802.5, 455), (797, 447.5), (804, 450)]):
        path = _save(_spot(u, v, radius=4 / scale), tmp_path / f"{number}.jpg")
        for name, move in MOVES.items():
            transform = _view(scale, u, v, **move)
            assert transform.reduction == reduction
            out = load_image(path, CAMERA, transform)
            assert out.shape == (*NETWORK, 3)
            x, y, _ = transform.matrix() @ [u, v, 1]
            np.testing.assert_allclose(_centroid(out), (x, y), atol=0.03, err_msg=name)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_smaller_decode_is_the_mean_of_blocks_of_pixels(tmp_path: Path, reduction: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (15, 25), np.uint8)
    grey = Image.fromarray(noise).resize((200, 120), Image.Resampling.BICUBIC)
    image = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    path = _save(image, tmp_path / "smooth.jpg")
    blocks = image.reshape(120 // reduction, reduction, 200 // reduction, reduction, 3)
    found = read_image(path, (120, 200), reduction)
    assert found.shape == (120 // reduction, 200 // reduction, 3)
    assert np.abs(found - blocks.mean(axis=(1, 3))).mean() < 1.2  # a pixel aside: 6 and more


def test_a_side_that_does_not_divide_is_rounded_up(tmp_path: Path) -> None:
    path = _save(np.full((*CAMERA, 3), 99, np.uint8), tmp_path / "grey.jpg")
    assert read_image(path, CAMERA, 8).shape == (113, 200, 3)
    out = load_image(path, CAMERA, ImageTransform(0.12, 0, 44, NETWORK))
    np.testing.assert_allclose(out.astype(int), 99, atol=1)


def test_the_clean_crop_keeps_the_bottom_and_the_middle() -> None:
    transform = clean_image((900, 1600), (256, 704))
    assert transform.scale == pytest.approx(0.44)
    assert (transform.crop_left, transform.crop_top) == (0, 140)
    wide = clean_image((100, 400), (50, 100))
    assert (wide.scale, wide.crop_left, wide.crop_top) == (0.5, 50, 0)


def test_the_resize_keeps_the_border_of_the_image_not_the_centre_of_its_first_pixel() -> None:
    matrix = ImageTransform(0.44, 7, 3, NETWORK).matrix()
    np.testing.assert_allclose(matrix @ [-0.5, -0.5, 1], [-7.5, -3.5, 1], atol=1e-12)
    np.testing.assert_allclose(matrix @ [1599.5, 899.5, 1], [696.5, 392.5, 1], atol=1e-12)


def test_flipping_twice_is_the_image_itself() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*NETWORK, 3), np.uint8)
    flip = ImageTransform(1.0, 0, 0, NETWORK, flip=True)
    np.testing.assert_array_equal(flip.apply(image), image[:, ::-1])
    np.testing.assert_array_equal(flip.apply(flip.apply(image)), image)
    np.testing.assert_allclose(flip.matrix() @ flip.matrix(), np.eye(3), atol=1e-12)


def test_identity_changes_no_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*NETWORK, 3), np.uint8)
    identity = ImageTransform(1.0, 0, 0, NETWORK)
    np.testing.assert_array_equal(identity.apply(image), image)
    np.testing.assert_allclose(identity.matrix(), np.eye(3), atol=1e-12)


def test_what_lies_outside_the_image_is_black() -> None:
    white = np.full((225, 400, 3), 255, np.uint8)
    narrow = ImageTransform(0.4, 0, 20, NETWORK).apply(white)  # covers 160 of 176 columns
    assert (narrow[:, :160] == 255).all()
    assert (narrow[:, 161:] == 0).all()
    above = ImageTransform(0.44, 0, -10, NETWORK).apply(white)
    assert (above[:9] == 0).all()
    assert (above[10:] == 255).all()
    assert (ImageTransform(0.44, 500, 0, NETWORK).apply(white) == 0).all()
    assert (ImageTransform(0.44, 0, 5000, NETWORK).apply(white) == 0).all()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("scale", "left", "top"), [(0.44, 300, 150), (0.37, -20, -9), (0.513, 700, 400), (1.3, 400, 9)]
)
def test_a_resize_shows_what_the_warp_shows(
    scale: float, left: int, top: int, flip: bool, tmp_path: Path
) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 16, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(CAMERA[::-1], Image.Resampling.BICUBIC))
    path = _save(smooth, tmp_path / "smooth.jpg")
    resized = load_image(path, CAMERA, ImageTransform(scale, left, top, NETWORK, flip))
    warped = load_image(path, CAMERA, ImageTransform(scale, left, top, NETWORK, flip, 1e-12))
    apart = np.abs(resized.astype(int) - warped).max(axis=2)
    assert (apart > 2).mean() < 0.02  # the outermost line, which a warp blends with the black
    assert np.count_nonzero(resized) > 0


@pytest.mark.parametrize("scale", [0.44, 0.27])
def test_shrinking_does_not_alias(tmp_path: Path, scale: float) -> None:
    stripes = np.zeros((*CAMERA, 3), np.uint8)
    stripes[:, ::2] = 255  # more lines than the network image can show
    path = _save(stripes, tmp_path / "stripes.jpg")
    out = load_image(path, CAMERA, ImageTransform(scale, 10, 20, NETWORK))
    assert out[:, 4:-4].std() < 12


@pytest.mark.parametrize("scale", [0.44, 0.386, 0.55])
def test_pixels_are_close_to_an_antialiased_resize_of_the_whole(
    real_jpeg: Path, scale: float
) -> None:
    top = round(900 * scale) - 128
    box = (0, top / scale, 352 / scale, 900)
    whole = Image.open(real_jpeg).resize((352, 128), Image.Resampling.BILINEAR, box=box)
    out = load_image(real_jpeg, CAMERA, ImageTransform(scale, 0, top, (128, 352)))
    assert np.abs(out.astype(int) - np.asarray(whole)).mean() < 1.0


@pytest.mark.parametrize(
    ("scale", "left", "top", "flip"),
    [(0.44, 0, 140, False), (0.44, 0, 140, True), (0.3811, 0, 87, True), (0.5487, 131, 237, False)],
)
def test_pillow_is_pillow(scale: float, left: int, top: int, flip: bool, tmp_path: Path) -> None:
    """Pixel by pixel, from the file on; right of a narrow image there is black, then the mirror."""
    noise = np.random.default_rng(0).integers(0, 256, (45, 80, 3), np.uint8)
    smooth = Image.fromarray(noise).resize(CAMERA[::-1], Image.Resampling.BICUBIC)
    path = _save(np.asarray(smooth), tmp_path / "noise.jpg")
    network = (256, 704)
    transform = ImageTransform(scale, left, top, network, flip=flip)
    with Image.open(path) as whole:
        image = whole.resize((int(1600 * scale), int(900 * scale)))
    image = image.crop((left, top, left + 704, top + 256))
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    found = load_image(path, CAMERA, transform, "pillow")
    np.testing.assert_array_equal(found, np.asarray(image))
    fast = load_image(path, CAMERA, transform)
    assert 0 < np.abs(found.astype(int) - fast).mean() < 8  # loud noise; whole pixels bend it


def test_pillow_keeps_whole_pixels() -> None:
    assert whole_pixels((900, 1600), 0.44) == (396, 704)
    assert whole_pixels((900, 1600), 0.3811) == (342, 609)
    assert whole_pixels((112, 200), 28 / 112) == (28, 50)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_planes_are_the_channels(kind: type) -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(kind)
    out = np.zeros((2, 3, 4, 5), kind)
    to_planes(image, out[1])
    np.testing.assert_array_equal(out[1], image.transpose(2, 0, 1))
    assert not out[0].any()


def test_channels_are_red_green_blue(tmp_path: Path) -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    path = tmp_path / "red.jpg"
    Image.fromarray(red).save(path, quality=95)
    decoded = read_image(path, (16, 16))
    assert decoded[..., 0].min() > 240
    assert decoded[..., 1:].max() < 15


@pytest.fixture
def real_jpeg(nuscenes_root: Path) -> Path:
    return sorted((nuscenes_root / "samples" / "CAM_FRONT").glob("*.jpg"))[0]


@pytest.mark.parametrize("reduction", [1, 2, 8])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_jpeg_is_an_error(
    real_jpeg: Path, tmp_path: Path, share: float, reduction: int
) -> None:
    whole = real_jpeg.read_bytes()
    assert read_image(real_jpeg, (900, 1600)).shape == (900, 1600, 3)
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError) as caught:
        read_image(path, (900, 1600), reduction)
    message = str(caught.value)
    assert f"{path}: truncated or damaged image" in message
    assert "Expected a complete 1600x900 JPEG. Copy or download the file again." in message


def test_a_jpeg_without_its_last_two_bytes_is_an_error(real_jpeg: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(real_jpeg.read_bytes()[:-2])
    with pytest.raises(DataError, match="truncated or damaged"):
        read_image(path, (900, 1600))


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP"])
def test_an_image_of_another_format_is_called_by_its_name(tmp_path: Path, form: str) -> None:
    path = tmp_path / "x.jpg"
    Image.new("RGB", (64, 48)).save(path, form)
    with pytest.raises(DataError, match=f"x.jpg: a {form} image, expected a JPEG") as caught:
        read_image(path, (48, 64))
    assert "truncated" not in str(caught.value)


def test_a_missing_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg: missing image, named by sample_data.json"):
        read_image(tmp_path / "gone.jpg", (900, 1600))


def test_an_image_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read image: Is a directory"):
        read_image(tmp_path, (900, 1600))


@pytest.mark.parametrize("size", [(90, 160), (899, 1599)])
@pytest.mark.parametrize("reduction", [1, 2])
def test_an_image_of_another_size_is_an_error(
    tmp_path: Path, size: tuple[int, int], reduction: int
) -> None:
    path = tmp_path / "small.jpg"
    path.write_bytes(simplejpeg.encode_jpeg(np.zeros((*size, 3), np.uint8)))
    expected = rf"image is {size[1]}x{size[0]}, expected 1600x900 as in sample_data"
    with pytest.raises(DataError, match=expected):
        read_image(path, CAMERA, reduction)


@pytest.mark.parametrize(
    ("scale", "top", "rows"), [(0.44, 140, 150), (0.44, 0, 0), (0.5, 7, 6), (0.4399, 140, 0)]
)
def test_rows_that_the_crop_leaves_out_are_not_resized(
    scale: float, top: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 16, 3), np.uint8)
    half = np.asarray(Image.fromarray(coarse).resize((800, 450), Image.Resampling.BICUBIC))
    transform = ImageTransform(scale, 3, top, NETWORK)
    assert transform._rows_above(2 * scale, 450) == rows
    quick = transform.apply(half, 2)
    monkeypatch.setattr(ImageTransform, "_rows_above", lambda self, factor, num_rows: 0)
    assert np.abs(quick.astype(int) - transform.apply(half, 2)).max() <= 1

import math
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from bevcask.data.augment import clean_image
from bevcask.data.images import (
    MEAN_RGB,
    STD_RGB,
    ImageTransform,
    Pixels,
    normalise,
    read_image,
)
from bevcask.errors import DataError

NETWORK = (64, 176)


def _dot(u: int, v: int, size_HW: tuple[int, int] = (225, 400)) -> Pixels:
    """A black image with one white square, 9 pixels wide, centred on pixel (u, v)."""
    image = np.zeros((*size_HW, 3), np.uint8)
    image[v - 4 : v + 5, u - 4 : u + 5] = 255
    return image


def _centroid(image: Pixels) -> tuple[float, float]:
    weight = image[..., 0].astype(float)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    return (columns * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()


TRANSFORMS = {
    "clean": clean_image((225, 400), NETWORK),
    "resize": ImageTransform(0.5, 10.0, 40.0, NETWORK),
    "fraction": ImageTransform(0.47, 3.3, 39.6, NETWORK),
    "flip": ImageTransform(0.47, 3.3, 39.6, NETWORK, flip=True),
    "rotation": ImageTransform(0.5, 11.0, 42.5, NETWORK, rotation=math.radians(5.4)),
    "all": ImageTransform(0.48, 5.5, 40.0, NETWORK, flip=True, rotation=math.radians(-5.4)),
    "narrow": ImageTransform(0.4, 0.0, 20.0, NETWORK),  # 160 of 176 columns are covered
    "enlarge": ImageTransform(1.2, 140.0, 172.0, NETWORK),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("pixel", [(180, 170), (230, 150), (150, 190)])
def test_a_marked_pixel_lands_where_the_matrix_says(name: str, pixel: tuple[int, int]) -> None:
    transform = TRANSFORMS[name]
    out = transform.apply(_dot(*pixel))
    assert out.shape == (*NETWORK, 3)
    u, v, _ = transform.matrix() @ [*pixel, 1]
    assert 0 < u < NETWORK[1]
    assert 0 < v < NETWORK[0]
    np.testing.assert_allclose(_centroid(out), (u, v), atol=0.1)  # a half-pixel slip: 0.27


def test_the_clean_crop_keeps_the_bottom_and_the_middle() -> None:
    transform = clean_image((900, 1600), (256, 704))
    assert transform.scale == pytest.approx(0.44)
    assert transform.crop_left == pytest.approx(0)
    assert transform.crop_top == pytest.approx(140)
    wide = clean_image((100, 400), (50, 100))
    assert (wide.scale, wide.crop_left, wide.crop_top) == (0.5, 50.0, 0.0)


def test_flipping_twice_is_the_image_itself() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*NETWORK, 3), np.uint8)
    flip = ImageTransform(1.0, 0.0, 0.0, NETWORK, flip=True)
    np.testing.assert_array_equal(flip.apply(image), image[:, ::-1])
    np.testing.assert_array_equal(flip.apply(flip.apply(image)), image)
    np.testing.assert_allclose(flip.matrix() @ flip.matrix(), np.eye(3), atol=1e-12)


def test_identity_changes_no_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*NETWORK, 3), np.uint8)
    identity = ImageTransform(1.0, 0.0, 0.0, NETWORK)
    np.testing.assert_array_equal(identity.apply(image), image)
    np.testing.assert_allclose(identity.matrix(), np.eye(3), atol=1e-12)


def test_what_lies_outside_the_image_is_black() -> None:
    white = np.full((225, 400, 3), 255, np.uint8)
    narrow = TRANSFORMS["narrow"].apply(white)
    assert (narrow[:, :160] == 255).all()
    assert (narrow[:, 160:] == 0).all()
    above = ImageTransform(0.44, 0.0, -10.0, NETWORK).apply(white)
    assert (above[:10] == 0).all()
    assert (above[10:] == 255).all()
    assert (ImageTransform(0.44, 500.0, 0.0, NETWORK).apply(white) == 0).all()


@pytest.mark.parametrize("scale", [0.44, 0.55])
def test_only_the_rows_that_matter_are_resampled_and_that_shows_nowhere(scale: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (900, 1600, 3), np.uint8)
    top = 900 * scale - 260.3
    out = ImageTransform(scale, 0.0, top, (256, 704)).apply(image)
    box = (0, top / scale, 704 / scale, (top + 256) / scale)
    whole = Image.fromarray(image).resize(
        (704, 256), Image.Resampling.BILINEAR, box=box, reducing_gap=1.0
    )
    assert np.abs(out.astype(int) - np.asarray(whole)).max() <= 1  # float rounding of the box


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((900, 1600, 3), np.uint8)
    stripes[:, ::2] = 255  # a fifth of a cycle beyond what 704 columns can show
    out = clean_image((900, 1600), (256, 704)).apply(stripes)
    assert out[:, 4:-4].std() < 12


def test_normalise_uses_imagenet_statistics_per_channel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    out = np.empty((3, 4, 5), np.float32)
    normalise(image, out)
    expected = (image - np.array(MEAN_RGB)) / np.array(STD_RGB)
    np.testing.assert_allclose(out, expected.transpose(2, 0, 1), atol=1e-6)


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


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_jpeg_is_an_error(real_jpeg: Path, tmp_path: Path, share: float) -> None:
    whole = real_jpeg.read_bytes()
    assert read_image(real_jpeg, (900, 1600)).shape == (900, 1600, 3)
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError) as caught:
        read_image(path, (900, 1600))
    message = str(caught.value)
    assert f"{path}: truncated or damaged image" in message
    assert "Expected a complete 1600x900 JPEG. Copy or download the file again." in message


def test_a_jpeg_without_its_last_two_bytes_is_an_error(real_jpeg: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(real_jpeg.read_bytes()[:-2])
    with pytest.raises(DataError, match="truncated or damaged"):
        read_image(path, (900, 1600))


def test_a_missing_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg: missing image, named by sample_data.json"):
        read_image(tmp_path / "gone.jpg", (900, 1600))


def test_an_image_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read image: Is a directory"):
        read_image(tmp_path, (900, 1600))


def test_an_image_of_another_size_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "small.jpg"
    path.write_bytes(simplejpeg.encode_jpeg(np.zeros((90, 160, 3), np.uint8)))
    with pytest.raises(DataError, match=r"image is 160x90, expected 1600x900 as in sample_data"):
        read_image(path, (900, 1600))

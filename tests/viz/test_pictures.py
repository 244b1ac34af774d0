"""Wireframes land where the pinhole says, and the picture shows what it was given."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib import colors
from PIL import Image

from bevcask.geometry import CAMERAS, Grid
from bevcask.viz.layers import (
    TEACHER,
    TRUTH,
    UNSEEN_ALPHA,
    BevMap,
    BoxLayer,
    CameraView,
    Picture,
)
from bevcask.viz.pictures import (
    NEAR_PLANE,
    box_corners,
    draw,
    project_wireframe,
    shortened,
)

WIDTH, HEIGHT = 160, 90
# Looking along +y of LIDAR_TOP: camera x = x, camera y = -z, camera z = y.
FORWARD = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
INTRINSICS = np.array([[100.0, 0, WIDTH / 2], [0, 100, HEIGHT / 2], [0, 0, 1]])
CAR = np.array([0.0, 10, 0, 4, 2, 1.5, np.pi / 2, 0, 0])


def camera(lidar_to_camera: npt.NDArray[np.float64] = FORWARD) -> CameraView:
    return CameraView(np.zeros((HEIGHT, WIDTH, 3), np.uint8), INTRINSICS, lidar_to_camera)


def as_set(points: npt.NDArray[np.float64]) -> set[tuple[float, ...]]:
    return {tuple(round(float(value), 4) for value in point) for point in points}


def test_corners_of_a_turned_box() -> None:
    expected = {(x, y, z) for x in (-1.0, 1.0) for y in (8.0, 12.0) for z in (-0.75, 0.75)}
    assert as_set(box_corners(CAR)) == expected


def test_wireframe_meets_the_pinhole_by_hand() -> None:
    lines = project_wireframe(CAR, camera())
    expected = {
        (round(WIDTH / 2 + 100 * x / y, 4), round(HEIGHT / 2 - 100 * z / y, 4))
        for x in (-1, 1)
        for y in (8, 12)
        for z in (-0.75, 0.75)
    }
    assert lines.shape == (13, 2, 2)
    assert as_set(lines[:12].reshape(-1, 2)) == expected
    heading = lines[12]
    centre_v = HEIGHT / 2 + 100 * 0.75 / 10
    assert heading == pytest.approx(np.array([[80, centre_v], [80, 45 + 75 / 12]]))


def test_a_box_behind_the_camera_is_not_drawn() -> None:
    behind = CAR.copy()
    behind[1] = -10
    assert len(project_wireframe(behind, camera())) == 0


def test_a_box_beside_the_image_is_not_drawn() -> None:
    beside = CAR.copy()
    beside[0] = 40
    assert len(project_wireframe(beside, camera())) == 0


def test_edges_are_cut_at_the_near_plane() -> None:
    long = np.array([0.0, 2, 0, 8, 2, 1.5, np.pi / 2, 0, 0])  # y from -2 to 6
    lines = project_wireframe(long, camera())
    assert np.isfinite(lines).all()
    assert len(lines) == 9  # all but the four edges of the rear face
    depth_by_column = 100 * 1 / np.abs(lines[:8, :, 0] - WIDTH / 2)
    assert depth_by_column.min() == pytest.approx(NEAR_PLANE)
    assert depth_by_column.max() == pytest.approx(6)


def test_unseen_truth_is_faint_and_counted() -> None:
    layer = BoxLayer.truth(np.stack([CAR, CAR]), np.array([3, 0]), ["car", "bus"])
    assert layer.alpha_N.tolist() == [1.0, UNSEEN_ALPHA]
    assert "2, 1 of them without a LiDAR point" in layer.label


@pytest.mark.parametrize(
    ("scores", "kept", "text"),
    [([0.9, 0.3, 0.2], 2, "2 of 3, best 0.90"), ([0.1], 0, "0 of 1, best 0.10"), ([], 0, "no box")],
)
def test_weak_teacher_boxes_are_left_out_and_counted(
    scores: list[float], kept: int, text: str
) -> None:
    boxes = np.tile(CAR, (len(scores), 1))
    layer = BoxLayer.teacher(boxes, np.array(scores), ["car"] * len(scores), 0.3)
    assert len(layer.boxes_N9) == len(layer.alpha_N) == kept
    assert text in layer.label


def count_pixels(path: Path, colour: str) -> int:
    return int(like(load(path), colour).sum())


def load(path: Path) -> npt.NDArray[np.int64]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)


def like(pixels: npt.NDArray[np.int64], colour: str) -> npt.NDArray[np.bool_]:
    wanted = np.array(colors.to_rgb(colour)) * 255
    return np.asarray(np.abs(pixels - wanted).max(-1) < 30)


def picture(layers: list[BoxLayer], maps: int = 2) -> Picture:
    grid = Grid.square(51.2, 3.2)
    values = np.zeros(grid.shape_YX)
    values[20, 5] = 1.0
    return Picture(
        title="sample abc",
        subtitle="teacher x",
        cameras={name: camera() for name in CAMERAS},
        points_P5=np.zeros((10, 5), np.float32),
        maps=[BevMap(values, grid, f"map {number}") for number in range(maps)],
        layers=layers,
    )


def test_picture_shows_both_box_layers(tmp_path: Path) -> None:
    truth = BoxLayer.truth(CAR[None], np.array([5]), ["car"])
    teacher = BoxLayer.teacher(CAR[None] + 0.5, np.array([0.8]), ["bus"], 0.3)
    draw(picture([]), tmp_path / "none.png")
    draw(picture([truth, teacher]), tmp_path / "both.png")
    for colour in (TRUTH, TEACHER):
        assert count_pixels(tmp_path / "both.png", colour) > 500
        assert count_pixels(tmp_path / "none.png", colour) < 20
    assert not list(tmp_path.glob("*.partial"))


def test_north_is_up_and_east_is_right(tmp_path: Path) -> None:
    draw(picture([], maps=1), tmp_path / "map.png")
    pixels = load(tmp_path / "map.png")
    rows, columns = np.nonzero(like(pixels, "#fcfdbf"))  # brightest magma: the one hot cell
    middle = pixels.shape[1] // 3, 2 * pixels.shape[1] // 3
    inside = (columns > middle[0]) & (columns < middle[1]) & (rows > pixels.shape[0] * 0.6)
    assert inside.sum() > 50
    hot = np.median(columns[inside]), np.median(rows[inside])
    # Cell (row 20, column 5) of 32 lies at x = -33.6, y = 14.4: left of and above the ego car.
    assert hot[0] < pixels.shape[1] * 0.47
    assert hot[1] < pixels.shape[0] * 0.78


@pytest.mark.parametrize("maps", [0, 3])
def test_any_number_of_maps_is_drawn(tmp_path: Path, maps: int) -> None:
    draw(picture([BoxLayer.truth(np.zeros((0, 9)), np.zeros(0), [])], maps), tmp_path / "p.png")
    assert load(tmp_path / "p.png").shape == (1460, 1860 if maps < 3 else 2480, 3)


def test_every_box_that_is_shown_has_its_class(tmp_path: Path) -> None:
    empty = BoxLayer.truth(CAR[None], np.array([5]), [""])
    named = BoxLayer.truth(CAR[None], np.array([5]), ["construction_vehicle"])
    for layer, path in ((empty, tmp_path / "without.png"), (named, tmp_path / "with.png")):
        draw(picture([layer]), path)
    without, with_names = (
        np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
        for name in ("without", "with")
    )
    changed = (without != with_names).any(-1)
    assert changed.sum() > 200
    assert changed.mean() < 0.01


def test_a_teacher_names_the_boxes_it_shows() -> None:
    boxes = np.stack([CAR, CAR])
    layer = BoxLayer.teacher(boxes, np.array([0.1, 0.8]), ["car", "bus"], 0.3)
    assert list(layer.names) == ["bus"]


def test_a_long_title_loses_its_middle() -> None:
    assert shortened("short", 10) == "short"
    cut = shortened(f"scene-{'x' * 200}   sample 0123456789", 60)
    assert len(cut) == 60
    assert cut.startswith("scene-x")
    assert cut.endswith("sample 0123456789")

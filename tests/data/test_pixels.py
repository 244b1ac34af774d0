"""Points in original pixels: made rightly, drawn rightly, the same from a file and from a cache."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from torch import Tensor

from bevcask.cache import open_cache
from bevcask.compose import compose
from bevcask.config import AugmentConfig
from bevcask.data.augment import draw as augmentation
from bevcask.data.index.frames import Frames
from bevcask.data.lidar import read_points
from bevcask.data.pixels import first_box, pixel_points, read_pixels
from bevcask.data.samples import SampleReader
from bevcask.detectors.base import Inputs
from bevcask.errors import DataError, TargetMismatchError
from bevcask.geometry import CAMERAS
from bevcask.stages import teacher_extract
from bevcask.targets.pixels import CAPACITY, PIXELS, draw, nearest_depths, pad
from bevcask.verbs import ExtractConfig

Pair = tuple[Frames, NuScenes]
AUGMENT = AugmentConfig(
    resize=(-0.06, 0.11), crop=True, image_flip=True, image_rotation=5.4, bev_rotation=0.39,
    bev_scale=(0.95, 1.05), bev_flip_x=True, bev_flip_y=True,
)  # fmt: skip
NETWORK_HW = (64, 112)


def ahead(num_cameras: int = 6) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Camera poses and intrinsics: the first looks along +y, right is x; the others look up."""
    forward = np.eye(4)
    forward[:3, :3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]
    poses = np.stack([forward] + [np.eye(4)] * (num_cameras - 1))
    intrinsics = np.array([[100.0, 0, 50], [0, 100, 30], [0, 0, 1]])
    return poses, np.stack([intrinsics] * num_cameras)


SIZES = np.tile(np.array([60, 100], np.int32), (6, 1))


def test_points_by_hand() -> None:
    points = np.array(
        [
            [0, 10, 0, 1, 0],  # the optical axis: pixel (50, 30)
            [2, 10, -1, 1, 0],  # 2 m right, 1 m down: pixel (70, 40)
            [0, -10, 0, 1, 0],  # behind the camera
            [9, 10, 0, 1, 0],  # out of the picture
            [-5.04, 10, 0, 1, 0],  # pixel -0.4, within the first
            [-5.06, 10, 0, 1, 0],  # pixel -0.6
        ],
        np.float32,
    )
    boxes = np.array([[2.2, 10.5, -1, 2, 1.5, 1, 0, 0, 0]], np.float32)
    rows = pixel_points(points, boxes, *ahead(), SIZES)
    assert rows.dtype == np.float32
    step = round(-0.4 * 32) / 32
    expected = [[0, 50, 30, 10, 0], [0, 70, 40, 10, 1], [0, step, 30, 10, 0]]
    assert rows.tolist() == expected


@pytest.mark.parametrize("reach", [0.3, 60.0, 9e3])
def test_no_point_of_an_image_is_overlooked(reach: float) -> None:
    """What is left out before the exact projection is in no image, at borders and at the lens."""
    random, parts = np.random.default_rng(3), []
    poses = np.stack([np.eye(4)] * 6)
    poses[:, :3, :3] = Rotation.random(6, random_state=3).as_matrix()
    poses[:, :3, 3] = random.uniform(-2, 2, (6, 3))
    intrinsics = np.array([[1266.0, 0, 816], [0, 1266, 491], [0, 0, 1]])
    for pose in poses:
        uv = random.choice([-0.6, -0.5, 0, 449.4, 449.6, 450, 899.4, 1599.5, 1600], (4000, 2))
        depth = random.choice([0.0999, 0.1, 0.1001, *random.uniform(0.1, reach, 50)], (4000, 1))
        rays = np.c_[uv + random.normal(0, 0.05, uv.shape), np.ones(4000)]
        parts.append((depth * (rays @ np.linalg.inv(intrinsics).T)) @ pose[:3, :3].T + pose[:3, 3])
    points = np.concatenate(parts).astype(np.float32)
    found = pixel_points(points, np.empty((0, 9)), poses, np.stack([intrinsics] * 6), SIZES * 15)
    expected = []
    for camera, pose in enumerate(poses):
        seen = (points.astype(np.float64) - pose[:3, 3]) @ pose[:3, :3]
        with np.errstate(divide="ignore"):
            uv = np.rint((seen @ intrinsics.T)[:, :2] / seen[:, 2:] * 32) / 32
        inside = (seen[:, 2] > 0.1) & (uv >= -0.5).all(1) & (uv < [1499.5, 899.5]).all(1)
        expected += [(camera, *row) for row in np.c_[uv, seen[:, 2]][inside]]
    assert len(found) == len(expected) > 2000
    np.testing.assert_allclose(found[:, :4], expected, rtol=1e-6, atol=0.04)


def test_positions_are_rounded_to_the_steps_that_are_promised() -> None:
    points = np.array([[0.123, 7.3331, 0.05]], np.float32)
    ((camera, u, v, depth, box),) = pixel_points(points, np.empty((0, 9)), *ahead(), SIZES)
    assert (camera, box) == (0, 0)
    assert u == round((50 + 12.3 / 7.3331) * 32) / 32
    assert v == round((30 - 5 / 7.3331) * 32) / 32
    assert depth == round(7.3331 * 256) / 256


def test_the_first_box_that_holds_a_point_owns_it() -> None:
    boxes = np.array(
        [
            [0, 0, 0, 4, 2, 2, np.pi / 4, 0, 0],
            [1, 1, 0, 4, 4, 2, 0, 0, 0],
            [1, 1, 0, 40, 40, 20, 0, 0, 0],
        ],
        np.float64,
    )
    points = np.array(
        [[1.2, 1.2, 0], [1.2, -1.2, 0], [2.5, 0, 0.9], [2.5, 0, 1.1], [-1.8, 1.0, 0], [0, 50, 0]]
    )
    assert first_box(points, boxes).tolist() == [1, 3, 2, 3, 3, 0]
    assert first_box(points, boxes[:0]).tolist() == [0] * 6


def slow_boxes(xyz: npt.NDArray[np.float64], boxes: npt.NDArray[np.float64]) -> list[int]:
    owners = []
    for point in xyz:
        owner = 0
        for number, (x, y, z, length, width, height, yaw, *_) in enumerate(boxes, 1):
            c, s = np.cos(yaw), np.sin(yaw)
            dx, dy = point[0] - x, point[1] - y
            inside = abs(c * dx + s * dy) <= length / 2 and abs(c * dy - s * dx) <= width / 2
            if inside and abs(point[2] - z) <= height / 2:
                owner = number
                break
        owners.append(owner)
    return owners


def test_boxes_against_loops() -> None:
    random = np.random.default_rng(3)
    boxes = np.concatenate(
        [random.uniform(-9, 9, (12, 3)), random.uniform(0.5, 6, (12, 3)),
         random.uniform(-4, 4, (12, 1)), np.zeros((12, 2))], axis=1,
    )  # fmt: skip
    points = random.uniform(-10, 10, (600, 3))
    owners = first_box(points, boxes)
    assert owners.tolist() == slow_boxes(points, boxes)
    assert 20 < (owners > 0).sum() < 580


def test_points_lie_where_the_devkit_projects_them(pair: Pair) -> None:
    """Both ways, to two steps: the devkit goes by way of the global frame in float32."""
    frames, devkit = pair
    token = frames.tokens[0]
    rows = read_pixels(frames, token, boxes=False)
    sample = devkit.get("sample", token)
    cloud = LidarPointCloud.from_file(devkit.get_sample_data_path(sample["data"]["LIDAR_TOP"]))
    for camera in (0, 4):
        pixels, depths, image = devkit.explorer.map_pointcloud_to_image(
            sample["data"]["LIDAR_TOP"], sample["data"][CAMERAS[camera]]
        )
        image.close()
        theirs = np.column_stack([pixels[:2].T * 32, depths * 256])
        own = rows[rows[:, 0] == camera][:, 1:4] * [32, 32, 256]
        assert 100 < len(own) <= cloud.nbr_points()
        for one, other, most in ((own, theirs, 0), (theirs, own, 0.1)):  # ours are off the ego car
            inside = (one[:, 2] > 5 * 256) & (one[:, :2] > 100).all(1)
            inside &= (one[:, :2] < np.array(image.size) * 32 - 100).all(1)
            far, _ = cKDTree(other).query(one[inside], p=np.inf)
            assert (far > 2).mean() <= most


def test_boxes_hold_as_many_points_as_their_annotations_count(pair: Pair) -> None:
    frames, _ = pair
    for token in frames.tokens[:3]:
        boxes, _, counted = frames.labels(token)
        points = read_points(frames, token, 1, Inputs(ego_points="keep"))[:, :3]
        owners = first_box(points.astype(np.float64), boxes.astype(np.float64))
        found = np.bincount(owners, minlength=len(boxes) + 1)[1:]
        assert counted.sum() > 100
        assert np.abs(found - counted).sum() < 0.05 * counted.sum()  # annotated boxes tilt


def slow_draw(
    rows: list[list[float]],
    matrices: npt.NDArray[np.float64],
    stride: int,
    size_HW: tuple[int, int],
    depth_range: tuple[float, float],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Draw one sample point by point."""
    depth = np.zeros((len(matrices), *size_HW), np.float32)
    box = np.zeros((len(matrices), *size_HW), np.int64)
    for camera, u, v, far, owner in rows:
        matrix = matrices[int(camera)]
        x = float(matrix[0, 0]) * u + float(matrix[0, 1]) * v + float(matrix[0, 2])
        y = float(matrix[1, 0]) * u + float(matrix[1, 1]) * v + float(matrix[1, 2])
        j, i = round((x + 0.5) / stride - 0.5), round((y + 0.5) / stride - 0.5)  # halfway: even
        if not (0 <= i < size_HW[0] and 0 <= j < size_HW[1]):
            continue
        if not depth_range[0] <= far < depth_range[1]:
            continue
        cell = int(camera), i, j
        if depth[cell] == 0 or (far, owner) < (depth[cell], box[cell]):
            depth[cell], box[cell] = far, owner
    return depth, box


def random_rows(random: np.random.Generator, number: int) -> Tensor:
    """Points on the pixel and depth steps; some exactly between cells, some equally deep."""
    rows = np.column_stack(
        [
            random.integers(0, 6, number),
            random.integers(-16, 199 * 32 + 16, number) / 32,
            random.integers(-16, 111 * 32 + 16, number) / 32,
            random.integers(0, 70 * 256, number) / 256,
            random.integers(0, 9, number),
        ]
    )
    rows[: number // 4, 1:3] = 8 * random.integers(0, 14, (number // 4, 2)) - 0.5
    rows[: number // 4, 3] = random.integers(1, 4, number // 4)
    return torch.from_numpy(rows).float()


def random_matrices(number: int) -> Tensor:
    """Image augmentations of six 200 x 112 images, (number, 6, 3, 3) float32; the first is none."""
    drawn = [
        np.stack([t.matrix() for t in augmentation(
            AUGMENT, 5, f"{i:032x}", 0, [(112, 200)] * 6, NETWORK_HW).images])
        for i in range(number - 1)
    ]  # fmt: skip
    return torch.from_numpy(np.stack([np.tile(np.eye(3), (6, 1, 1)), *drawn])).float()


@pytest.mark.parametrize(
    ("stride", "number", "points"), [(8, 60, 400), (1, 10, 400), (16, 1000, 30)]
)
def test_drawing_against_a_slow_reference(stride: int, number: int, points: int) -> None:
    random = np.random.default_rng(stride)
    size_HW = (NETWORK_HW[0] // stride, NETWORK_HW[1] // stride)
    matrices = random_matrices(number)
    rows = torch.stack([random_rows(random, points) for _ in range(number)])
    count = torch.from_numpy(random.integers(0, points + 1, number))
    count[0] = points
    depth, box = draw(rows, count, matrices, stride, size_HW, (1.0, 60.0))
    assert (depth.dtype, box.dtype) == (torch.float32, torch.int64)
    for b in range(number):
        expected = slow_draw(
            rows[b, : count[b]].double().tolist(), matrices[b].double().numpy(), stride, size_HW,
            (1.0, 60.0),
        )  # fmt: skip
        np.testing.assert_array_equal(depth[b].numpy(), expected[0])
        np.testing.assert_array_equal(box[b].numpy(), expected[1])
    assert (box > 0).any()
    assert ((box == 0) & (depth > 0)).any()


def test_halfway_goes_to_the_even_cell_ties_to_the_lowest_box_and_far_is_far() -> None:
    rows = torch.tensor(
        [
            [0, 7.5, 0, 9, 4],
            [0, 15.5, 0, 9, 4],
            [0, 23.5, 0, 9, 5],
            [0, 16, 0, 9, 3],
            [0, 27, 0, 60, 1],  # too far
            [0, 35, 0, 1, 1],  # just near enough
            [0, 16, 0, 8, 7],  # behind the count
        ]
    )
    depth, box = draw(
        rows[None], torch.tensor([6]), torch.eye(3).expand(1, 6, 3, 3), 8, (1, 5), (1.0, 60.0)
    )
    # 7.5 lies between cells 0 and 1, 15.5 between 1 and 2, 23.5 between 2 and 3.
    assert depth[0, 0, 0].tolist() == [9, 0, 9, 0, 1]
    assert box[0, 0, 0].tolist() == [4, 0, 3, 0, 1]


def test_as_many_cameras_as_the_points_speak_of() -> None:
    with pytest.raises(TargetMismatchError, match="speaks of 6 cameras, the student sees 5"):
        draw(
            torch.zeros(1, 3, 5), torch.tensor([3]), torch.eye(3).expand(1, 5, 3, 3), 8, (2, 2),
            (1.0, 60.0),
        )  # fmt: skip


def test_more_points_than_room_are_refused() -> None:
    points = [torch.zeros(3, 5), torch.zeros(CAPACITY + 1, 5)]
    values, count = pad(points[:1], ["a"])
    assert values.shape == (1, *PIXELS.shape)
    assert count.tolist() == [3]
    with pytest.raises(DataError, match=f"sample b: {CAPACITY + 1} LiDAR points.*{CAPACITY}"):
        pad(points, ["a", "b"])


def test_depth_maps_hold_the_nearest_point_of_a_pixel() -> None:
    points = np.array([[0, 10, 0], [0, 20, 0], [2, 10, -1]], np.float32)
    rows = [torch.from_numpy(pixel_points(points, np.empty((0, 9)), *ahead(), SIZES))]
    (depth,) = nearest_depths(rows, torch.eye(3).expand(1, 6, 3, 3), 1, (60, 100))
    expected = torch.zeros(6, 60, 100)
    expected[0, 30, 50] = expected[0, 40, 70] = 10
    assert torch.equal(depth, expected)
    half = torch.tensor([[-0.5, 0, 49], [0, 0.5, 0], [0, 0, 1]])  # halved and flipped
    (small,) = nearest_depths(rows, half.expand(1, 6, 3, 3), 1, (30, 50))
    assert sorted(small.nonzero().tolist()) == [[0, 15, 24], [0, 20, 14]]


@pytest.mark.parametrize("stride", [1, 8, 16])
def test_blocks_hold_the_nearest_depth_of_their_pixels(stride: int) -> None:
    """Bit for bit what maps of all pixels, drawn on the host, and their nearest blocks were."""
    random = np.random.default_rng(stride)
    blocks_HW = (NETWORK_HW[0] // stride, NETWORK_HW[1] // stride)
    matrices = random_matrices(6)
    points = [random_rows(random, number) for number in (400, 0, 50, 900, 1, 300)]
    found = nearest_depths(points, matrices, stride, blocks_HW)
    assert found.dtype == torch.float32
    for b, rows in enumerate(points):
        depth, _ = slow_draw(
            rows.double().tolist(), matrices[b].double().numpy(), 1, NETWORK_HW, (0.0, np.inf)
        )
        blocks = depth.reshape(6, blocks_HW[0], stride, blocks_HW[1], stride)
        nearest = np.where(blocks > 0, blocks, np.inf).min((2, 4))
        np.testing.assert_array_equal(found[b], np.where(nearest < np.inf, nearest, 0))
    assert (found[0] > 0).sum() > 50


def test_points_that_no_sample_has_are_drawn_nowhere() -> None:
    depth = nearest_depths([torch.zeros(0, 5)] * 2, torch.eye(3).expand(2, 6, 3, 3), 8, (2, 3))
    assert depth.shape == (2, 6, 2, 3)
    assert not depth.any()


@pytest.fixture(scope="module")
def cached(
    tiny_frames: Frames, tiny_world: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], npt.NDArray[np.float32]]:
    """Return the stored rows of a token."""
    url = tmp_path_factory.mktemp("pixels") / "cache.zarr"
    words = ["dataset=synthetic", f"dataset.root={tiny_world}", "teacher=centerpoint_tiny"]
    more = ["dataset.split=all", "method=tigdistill", "device=cpu", "loader.num_workers=0"]
    teacher_extract.run(compose(ExtractConfig, [*words, *more, f"cache={url}"]))
    cache = open_cache(str(url))

    def rows(token: str) -> npt.NDArray[np.float32]:
        stored = cache.read(token, [PIXELS.name])[PIXELS.name]
        assert stored.count is not None
        assert not stored.values[int(stored.count) :].any()
        return stored.values[: int(stored.count)]

    return rows


def test_cache_and_file_draw_the_same_under_a_thousand_augmentations(
    cached: Callable[[str], npt.NDArray[np.float32]], tiny_frames: Frames
) -> None:
    matrices = random_matrices(1000)
    different = set()
    for token, part in zip(
        itertools.cycle(tiny_frames.tokens[:4]), matrices.split(100), strict=False
    ):
        maps, read = [], (cached(token), read_pixels(tiny_frames, token, boxes=True))
        np.testing.assert_array_equal(*read)
        for rows in (whole[::8].copy() for whole in read):
            points = torch.from_numpy(rows).expand(len(part), -1, -1)
            count = torch.full((len(part),), len(rows))
            maps.append(draw(points, count, part, 8, (8, 14), (1.0, 60.0)))
        for mine, theirs in zip(*maps, strict=True):
            assert torch.equal(mine, theirs)
        depth, box = maps[0]
        assert (depth.flatten(1) > 0).any(1).all()
        assert (box > 0).any()
        different |= {own.numpy().tobytes() for own in depth}
    assert len(different) > 950


def test_a_bev_augmentation_changes_nothing(tiny_frames: Frames) -> None:
    inputs = Inputs(image_size_HW=NETWORK_HW, depth=True)
    token = tiny_frames.tokens[1]
    bev = AugmentConfig(bev_rotation=0.39, bev_scale=(0.9, 1.1), bev_flip_x=True)
    plain = SampleReader(tiny_frames, inputs, None, 0, pixels=True).read(token)
    assert plain.pixels_P5 is not None
    for view in range(5):
        moved = SampleReader(tiny_frames, inputs, bev, 0, pixels=True).read(token, view)
        assert not np.array_equal(moved.bev_aug_44, plain.bev_aug_44)
        np.testing.assert_array_equal(moved.pixels_P5, plain.pixels_P5)
        np.testing.assert_array_equal(moved.image_aug_V33, plain.image_aug_V33)


def test_real_keyframes_fit_and_are_small(
    nuscenes_root: Path, select: Callable[..., Frames]
) -> None:
    frames = select(nuscenes_root, "v1.0-mini")
    for token in frames.tokens[::8]:
        rows = read_pixels(frames, token, boxes=True)
        assert 15_000 < len(rows) < 0.9 * CAPACITY
        owned = rows[:, 4] > 0
        assert 0.005 < owned.mean() < 0.5
        assert set(np.unique(rows[:, 0])) == set(range(6))

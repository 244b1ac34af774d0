"""Points of a query in all cameras, against a loop over everything."""

import itertools

import torch

from bevcask.detectors.blocks.point_reading import Levels, PointRead, project
from detectors.small_stream import SMALL_RAY, seen, small

GROUPS, POINTS, LEVELS, WIDTH = 2, 3, 2, 8


def test_against_a_loop() -> None:
    """One softmax over cameras, levels and points; groups have shares of their own."""
    torch.manual_seed(0)
    camera = small(SMALL_RAY)._cameras(seen(1, 0))
    read = PointRead(WIDTH, GROUPS, POINTS, LEVELS)
    torch.nn.init.normal_(read.weights.weight, std=0.5)
    maps = tuple(torch.randn(1, 6, WIDTH, 6 // 2**n, 8 // 2**n) for n in range(LEVELS))
    query, position = torch.randn(2, 1, 4, WIDTH)
    places = torch.tensor([[[3.0, 20, 1], [-15, 8, 0], [0, -12, 2], [9, 9, 1]]])
    found, offsets = read(query, position, places, Levels(maps, camera))

    code = read.cameras(camera.lidar_to_image_BV44[0, :, :3].flatten(1))
    points = places[0, :, None] + read.offsets(query[0]).view(4, POINTS, 3)
    torch.testing.assert_close(offsets[0].view(4, POINTS, 3), points - places[0, :, None])
    where = project(points[None], camera.lidar_to_image_BV44, camera.size_HW)[0]
    for row in range(4):
        asked = query[0, row] + position[0, row] + code
        shares = read.weights(asked).view(6 * LEVELS * POINTS, GROUPS).softmax(0)
        shares = shares.view(6, LEVELS, POINTS, GROUPS)
        total = torch.zeros(GROUPS, WIDTH // GROUPS)
        for view, level, point in itertools.product(range(6), range(LEVELS), range(POINTS)):
            value = torch.nn.functional.grid_sample(
                maps[level][:, view],
                2 * where[row, view, point].view(1, 1, 1, 2) - 1,
                align_corners=False,
            )
            total += shares[view, level, point, :, None] * value.view(GROUPS, -1)
        torch.testing.assert_close(
            found[0, row], read.output(total.flatten()), atol=1e-5, rtol=1e-4
        )


def test_what_is_behind_a_camera_is_far_outside() -> None:
    camera = small(SMALL_RAY)._cameras(seen(1, 0))
    behind = torch.tensor([[[[3.0, -20.0, 1.0]]]])
    seen_at = project(behind, camera.lidar_to_image_BV44, camera.size_HW)[0, 0, 0, 0]
    assert float(seen_at.abs().max()) > 1e3

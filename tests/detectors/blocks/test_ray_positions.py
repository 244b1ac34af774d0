"""Tokens and their positions: by hand, and which camera a token hears of."""

import torch

from bevcask.detectors.blocks.motion import Modulation, motion_code, octave_code, place_code, sines
from bevcask.detectors.blocks.ray_positions import Cameras, RayPositions, depth_bins, focal_camera

RELEASED = (1, 2, 0, 4, 3, 5)
LOW, HIGH = (-61.2, -61.2, -10.0), (61.2, 61.2, 10.0)


def test_a_token_hears_of_camera_i_mod_v() -> None:
    """Counted in the released order; CAM_BACK alone has another focal length."""
    heard = focal_camera(4, RELEASED, own=False)
    tokens = [(camera, cell) for camera in RELEASED for cell in range(4)]
    for number, (camera, cell) in enumerate(tokens):
        assert heard[camera, cell] == RELEASED[number % 6]
    assert torch.equal(focal_camera(4, RELEASED, own=True), torch.arange(6)[:, None].expand(6, 4))


def test_depths_are_the_lower_edges_of_bins() -> None:
    depths = depth_bins(64, 61.2)
    assert depths[0] == 1
    torch.testing.assert_close(depths[-1], torch.tensor(1 + 60.2 / (64 * 65) * 63 * 64))
    apart = depths.diff()
    torch.testing.assert_close(apart.diff(), apart.diff()[:1].expand(62), atol=1e-4, rtol=0)


def test_points_of_a_ray_lie_at_the_middle_of_their_cell() -> None:
    focal, centre = 100.0, (24.0, 16.0)
    matrix = torch.eye(4)
    matrix[0] = torch.tensor([focal, 0, centre[0], 0])
    matrix[1] = torch.tensor([0, focal, centre[1], 0])
    cameras = Cameras(matrix[None, None], matrix[None, None], torch.eye(4)[None, None], (32, 48))
    made = RayPositions(8, 32, 16, LOW, HIGH, (0,), own_focal=True)
    points = made.points(cameras, (2, 3)).unflatten(2, (2, 3))
    metres = points * (made.high_3 - made.low_3) + made.low_3
    for row, column in ((0, 0), (1, 2)):
        ray = metres[0, 0, row, column]
        torch.testing.assert_close(ray[:, 2], made.depths_D, atol=1e-3, rtol=1e-4)
        pixel = ray @ matrix[:3, :3].T
        wanted = torch.tensor([16.0 * column + 8, 16.0 * row + 8])
        torch.testing.assert_close(pixel[5, :2] / pixel[5, 2], wanted, atol=1e-3, rtol=0)


def test_places_are_told_in_the_order_y_x_z() -> None:
    place = torch.tensor([[[0.1, 0.2, 0.3]]])
    code = place_code(place, 4)[0, 0].view(3, 4)
    for row, value in zip(code, (0.2, 0.1, 0.3), strict=True):
        angle = torch.tensor([1.0, 0.01]) * 2 * torch.pi * value
        wanted = torch.stack([angle.sin(), angle.cos()], dim=1).flatten()
        torch.testing.assert_close(row, wanted)


def test_ages_are_told_in_float64() -> None:
    age = torch.tensor([[1e5 + 0.25]], dtype=torch.float64)
    exact = torch.tensor([torch.sin(2 * torch.pi * age[0, 0])]).float()
    torch.testing.assert_close(sines(age, 4)[0, 0, :1], exact)
    assert sines(age, 4).dtype == torch.float32


def test_motion_is_told_octave_by_octave() -> None:
    code = octave_code(torch.tensor([[[0.1, 0.2]]]))[0, 0].view(6, 2, 2)
    wanted = torch.tensor([0.1, 0.2])
    for octave, (sine, cosine) in enumerate(code):
        torch.testing.assert_close(sine, (2**octave * wanted).sin())
        torch.testing.assert_close(cosine, (2**octave * wanted).cos())
    still = motion_code(torch.zeros(1, 1, 2), torch.zeros(1, 1, 1), torch.eye(4)[None, None])
    ones = still[0, 0].view(6, 2, 15)[0, 0] > 0
    assert ones.nonzero()[:, 0].tolist() == [3, 8, 13], "the diagonal, row by row"


def test_a_modulation_normalises_zeros_too() -> None:
    """What has no content yet is shifted alone."""
    modulation = Modulation(5, 8)
    torch.nn.init.normal_(modulation.beta.weight)
    torch.nn.init.normal_(modulation.gamma.weight)
    code = torch.randn(1, 5)
    shift = modulation.beta(torch.relu(modulation.reduce(code)))
    torch.testing.assert_close(modulation(torch.zeros(1, 8), code), shift)
    assert not any(name.startswith("norm") for name in modulation.state_dict())

import pytest
import torch

from bevcask.detectors.blocks.pillars import PillarEncoder
from bevcask.geometry import Grid

GRID = Grid(-8.0, -4.0, 0.5, num_x=32, num_y=16)


def encoder(point_channels: int = 5, hidden: tuple[int, ...] = ()) -> PillarEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PillarEncoder(
            6, GRID, (-5.0, 3.0), point_channels=point_channels, hidden=hidden
        ).eval()


def cloud(seed: int, num_points: int = 400, point_channels: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    more = point_channels - 5
    low = torch.tensor([-9.0, -5.0, -6.0, 0.0, 0.0] + [0.0] * more)
    size = torch.tensor([18.0, 10.0, 10.0, 255.0, 0.5] + [1.0] * more)
    return low + size * torch.rand((num_points, point_channels), generator=generator)


def by_hand(net: PillarEncoder, points: torch.Tensor) -> torch.Tensor:
    """One pillar at a time, one point at a time."""
    low, high = net.z_range
    pillars: dict[tuple[int, int], list[torch.Tensor]] = {}
    for point in points:
        x, y, z = point[:3].tolist()
        row, column = int((y + 4) // 0.5), int((x + 8) // 0.5)
        if 0 <= row < 16 and 0 <= column < 32 and low <= z < high:
            pillars.setdefault((row, column), []).append(point)
    out = torch.zeros(6, 16, 32)
    more = [1.0] * (points.shape[1] - 5)
    scale = torch.tensor([8, 8, 5, 255, 1, *more, 0.5, 0.5, 1, 0.5, 0.5])
    for (row, column), members in pillars.items():
        mean = torch.stack(members)[:, :3].mean(0)
        centre = torch.tensor([-8 + (column + 0.5) * 0.5, -4 + (row + 0.5) * 0.5])
        rows = [torch.cat([p, p[:3] - mean, p[:2] - centre]) / scale for p in members]
        features = torch.stack(rows)
        for linear, norm, _ in net.hidden:
            own = norm(linear(features)).relu()
            features = torch.cat([own, own.amax(0).expand_as(own)], dim=1)
        embedded = net.norm(net.linear(features)).relu()
        out[:, row, column] = embedded.amax(0)
    return out


@pytest.mark.parametrize(("point_channels", "hidden"), [(5, ()), (5, (8,)), (5, (8, 4)), (17, ())])
def test_equals_the_loop_over_pillars(point_channels: int, hidden: tuple[int, ...]) -> None:
    net = encoder(point_channels, hidden)
    clouds = [cloud(0, 400, point_channels), cloud(1, 30, point_channels)]
    with torch.inference_mode():
        map_BCYX = net(clouds)
        assert map_BCYX.shape == (2, 6, 16, 32)
        for got, points in zip(map_BCYX, clouds, strict=True):
            torch.testing.assert_close(got, by_hand(net, points), atol=1e-5, rtol=1e-5)


def test_order_of_points_does_not_matter() -> None:
    net, points = encoder(), cloud(2)
    shuffled = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))]
    with torch.inference_mode():
        torch.testing.assert_close(net([points]), net([shuffled]), atol=1e-6, rtol=1e-5)


def test_same_points_give_the_same_bits() -> None:
    net, points = encoder(), cloud(3)
    with torch.inference_mode():
        assert torch.equal(net([points]), net([points]))


@pytest.mark.parametrize(
    "point",
    [
        [8.0, 0.0, 0.0],
        [-8.01, 0.0, 0.0],
        [0.0, 4.0, 0.0],
        [0.0, -4.01, 0.0],
        [0.0, 0.0, 3.0],
        [0.0, 0.0, -5.01],
    ],
)
def test_points_out_of_range_are_dropped(point: list[float]) -> None:
    net, points = encoder(), cloud(4)
    outside = torch.tensor([[*point, 100.0, 0.0]])
    with torch.inference_mode():
        assert torch.equal(net([torch.cat([points, outside])]), net([points]))


def test_a_scan_without_points_in_range_is_a_blank_map() -> None:
    net = encoder()
    with torch.inference_mode():
        map_BCYX = net([torch.zeros((0, 5)), torch.full((3, 5), 99.0)])
    assert map_BCYX.shape == (2, 6, 16, 32)
    assert not map_BCYX.any()


def test_gradient_flows_to_the_strongest_point_only() -> None:
    net = encoder()
    points = torch.tensor([[0.2, 0.2, 0.5, 250.0, 0.0], [0.3, 0.3, -1.0, 10.0, 0.1]])
    embedded = net.norm(net.linear(net._features(net._assign([points])) / net.scale_F)).relu()
    net([points]).sum().backward()
    got = net.linear.weight.grad
    net.zero_grad()
    winners = embedded.amax(0).sum()
    winners.backward()
    assert got is not None
    torch.testing.assert_close(got, net.linear.weight.grad)
    assert got.abs().sum() > 0


def test_mixed_precision_leaves_coordinates_alone() -> None:
    net, points = encoder(), cloud(6)
    with torch.inference_mode():
        expected = net([points])
        with torch.autocast("cpu", torch.bfloat16):
            got = net([points])
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_gradients_are_deterministic() -> None:
    grads = []
    for _ in range(2):
        net = encoder().train()
        net([cloud(5, 5000)]).square().sum().backward()
        grads.append(net.linear.weight.grad)
    assert torch.equal(*grads)


def test_a_bound_keeps_the_first_points_and_adds_points_of_zeros() -> None:
    """Two of three points make one pillar; the other pillar has room for a point of zeros."""
    bounded, free = (
        PillarEncoder(6, Grid.square(4.0, 1.0), (-5.0, 3.0), centre_axes=3, most_points=most).eval()
        for most in (2, None)
    )
    free.load_state_dict(bounded.state_dict())
    for net in (bounded, free):
        net.norm.running_mean.fill_(-0.4)
    full = torch.tensor([[0.2, 0.2, 0.5, 200.0, 0.0], [0.3, 0.4, -1.0, 10.0, 0.1]])
    third, lone = torch.tensor([[0.9, 0.9, 2.9, 255.0, 0.5]]), torch.tensor([[2.5, 2.5, -1, 9, 0]])
    with torch.inference_mode():
        got = bounded([torch.cat([lone, full, third])])[0]
        wanted = free([torch.cat([lone, full])])[0]
        assert not torch.equal(free([torch.cat([full, third])])[0, :, 4, 4], wanted[:, 4, 4])
    torch.testing.assert_close(got[:, 4, 4], wanted[:, 4, 4])
    zero_C = (0.4 / (1 + bounded.norm.eps) ** 0.5) * torch.ones(6)
    torch.testing.assert_close(got[:, 6, 6], wanted[:, 6, 6].maximum(zero_C))
    assert not torch.equal(got[:, 6, 6], wanted[:, 6, 6])
    assert not got[:, 0, 0].any()

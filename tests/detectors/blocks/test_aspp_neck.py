import torch

from bevcask.detectors.blocks.aspp_neck import ASPPNeck

DILATIONS = (1, 2, 5)


def neck() -> ASPPNeck:
    torch.manual_seed(0)
    return ASPPNeck(3, 4, DILATIONS).eval()


def nine_taps(map_CYX: torch.Tensor, weight: torch.Tensor, step: int) -> torch.Tensor:
    """Sum what lies one step around every cell, cell by cell; nothing lies outside."""
    _, num_y, num_x = map_CYX.shape
    out = torch.zeros((len(weight), num_y, num_x))
    for y in range(num_y):
        for x in range(num_x):
            for i in range(3):
                for j in range(3):
                    row, column = y + (i - 1) * step, x + (j - 1) * step
                    if 0 <= row < num_y and 0 <= column < num_x:
                        out[:, y, x] += weight[:, :, i, j] @ map_CYX[:, row, column]
    return out


def test_equals_the_loop_over_cells() -> None:
    net = neck()
    map_BCYX = torch.rand((1, 3, 7, 9))
    with torch.inference_mode():
        entered = net.enter(map_BCYX)[0]
        parts = [entered, torch.einsum("oc,cyx->oyx", net.point.weight[:, :, 0, 0], entered)]
        parts += [nine_taps(entered, net.shared.weight, step) for step in DILATIONS]
        expected = net.join(torch.cat(parts)[None])
        got = net([torch.rand(1), map_BCYX])
    assert expected.abs().sum() > 0
    torch.testing.assert_close(got, expected)


def test_the_dilated_branches_share_one_weight_and_all_of_them_teach_it() -> None:
    net = neck()
    assert sum("shared" in name for name, _ in net.named_parameters()) == 1
    width, slopes = 4, []
    for branch in range(len(DILATIONS)):
        net.zero_grad()
        kept = torch.zeros((1, 5 * width, 1, 1))
        kept[:, (2 + branch) * width : (3 + branch) * width] = 1
        hook = net.join.register_forward_pre_hook(lambda _, args, kept=kept: (args[0] * kept,))
        net([torch.rand((1, 3, 7, 9), generator=torch.Generator().manual_seed(1))]).sum().backward()
        hook.remove()
        assert net.shared.weight.grad is not None
        slopes.append(net.shared.weight.grad.clone())
    assert all(slope.abs().sum() > 0 for slope in slopes)
    assert not torch.equal(slopes[0], slopes[1])


def test_the_map_keeps_its_size_and_is_nonnegative() -> None:
    with torch.inference_mode():
        map_BCYX = neck()([torch.randn((2, 3, 8, 6))])
    assert map_BCYX.shape == (2, 4, 8, 6)
    assert bool((map_BCYX >= 0).all())

import pytest
import torch

from bevcask.detectors.mmdet3d.detector import Mmdet3dDetector
from bevcask.detectors.mmdet3d.families import FAMILIES, Tap, taps_of
from bevcask.detectors.mmdet3d.recipe import Mmdet3dConfig
from bevcask.detectors.mmdet3d.taps import _arrange, _in_our_order, _pick
from bevcask.errors import ConfigError
from bevcask.geometry import CLASSES, Grid
from bevcask.groups import load_group
from bevcask.targets.kinds import kind_of
from bevcask.targets.spec import TapInfo

pytestmark = pytest.mark.mmdet3d


def tiny(**more: object) -> Mmdet3dConfig:
    section = load_group("detector", "mmdet3d_centerpoint_tiny")
    del section["type"]
    return Mmdet3dConfig.model_validate({**section, **more})


def describe(**more: object) -> dict[str, TapInfo]:
    return dict(Mmdet3dDetector.describe_taps(tiny(**more)))


def test_short_names_describe_the_tiny_model_like_ours() -> None:
    taps = describe()
    shapes = {name: tap.shape for name, tap in taps.items()}
    assert shapes == {
        "bev.block0": (32, 128, 128),
        "bev.block1": (64, 64, 64),
        "bev.block2": (96, 32, 32),
        "bev.neck": (96, 128, 128),
        "head.heatmap": (10, 128, 128),
        "head.boxes": (500, 11),
    }
    assert taps["bev.block2"].grid == Grid.square(51.2, 3.2)
    assert taps["head.heatmap"].classes == CLASSES
    assert not any(tap.depends_on_images for tap in taps.values())
    for tap in taps.values():
        assert kind_of(tap).describe_problems(tap) == []


def test_module_path_is_a_tap() -> None:
    taps = describe(
        taps={
            "bev.pillars": "pts_middle_encoder",
            "bev.shared": {"at": "pts_bbox_head.shared_conv", "nonnegative": True},
        }
    )
    assert taps["bev.pillars"].shape == (32, 256, 256)
    assert taps["bev.pillars"].grid == Grid.square(51.2, 0.4)
    assert not taps["bev.pillars"].nonnegative
    assert taps["bev.shared"].nonnegative


@pytest.mark.parametrize(
    ("tap", "words"),
    [
        ("pts_nek[0]", "no module 'pts_nek'. Did you mean 'pts_neck'? Its parts: data_preproc"),
        ("pts_neck[7]", "cannot read pts_neck[7] as a dense_bev with axes BCYX: IndexError"),
        ("pts_neck", "the output is a list, not a tensor"),
        ("pts_voxel_encoder", "the output has shape"),
        ({"at": "pts_neck[0]", "kind": "query_set"}, "as a query_set with axes BQC"),
    ],
)  # fmt: skip
def test_wrong_paths_are_named(tap: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        describe(taps={"mine": tap})
    assert "taps.mine" in str(caught.value)
    assert words in str(caught.value)


def test_maps_without_a_place_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"are not square\. Check detector\.extent"):
        describe(extent=(-51.2, -51.2, 51.2, 60.0))


@pytest.mark.parametrize(
    ("kind", "axes", "shape", "expected"),
    [
        ("query_set", "LBQC", (6, 2, 5, 3), (2, 5, 3)),
        ("query_set", "LQBC", (6, 5, 2, 3), (2, 5, 3)),
        ("query_set", "BCQ", (2, 3, 5), (2, 5, 3)),
        ("image_feature", "NCHW", (12, 3, 4, 5), (2, 6, 3, 4, 5)),
        ("dense_bev", "BCXY", (2, 3, 4, 5), (2, 3, 5, 4)),
    ],
)
def test_axes_are_brought_in_order(
    kind: str, axes: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    raw = torch.arange(torch.Size(shape).numel()).reshape(shape).float()
    got = _arrange(raw, Tap(at="any", kind=kind, axes=axes), num_samples=2)
    assert tuple(got.shape) == expected
    if axes == "LQBC":
        assert torch.equal(got[1, 4], raw[5, 4, 1])
    if axes == "NCHW":
        assert torch.equal(got[1, 0], raw[6])


def test_indices_and_keys_are_followed() -> None:
    output = ([{"dense_heatmap": 3}],)
    assert _pick(output, "bbox_head[0][0][dense_heatmap]") == 3


def test_channels_follow_names_not_positions() -> None:
    tasks = load_group("detector", "mmdet3d_centerpoint_tiny")
    del tasks["type"]
    names = [["pedestrian", "traffic_cone"], ["car"], ["bus", "trailer"], ["barrier"],
             ["construction_vehicle", "truck"], ["motorcycle", "bicycle"]]  # fmt: skip
    head = tasks["options"]["model"]["pts_bbox_head"]
    head["tasks"] = [{"num_class": len(own), "class_names": own} for own in names]
    detector = Mmdet3dDetector(Mmdet3dConfig.model_validate(tasks))
    order, classes = _in_our_order(detector.recipe)
    assert classes == CLASSES
    output = [[{"heatmap": torch.full((1, 1, 2, 2), float(CLASSES.index(name)))}]
              for own in names for name in own]  # fmt: skip
    values = detector._reader._heatmap("head.heatmap", output)
    expected = torch.arange(10.0).sigmoid()
    torch.testing.assert_close(values[0, :, 0, 0], expected)
    assert order[0] == 2


def test_every_family_row_is_well_formed() -> None:
    for taps in FAMILIES.values():
        for tap in taps.values():
            assert sorted(tap.order.replace("N", "BV").replace("L", "")) in (
                sorted("BCYX"), sorted("BQC"), sorted("BVCHW"),
            )  # fmt: skip
    assert taps_of({"type": "Unheard"}) == {}

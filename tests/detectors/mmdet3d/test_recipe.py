import sys
from pathlib import Path

import pytest

from bevcask.config import build_config
from bevcask.detectors.base import Inputs
from bevcask.detectors.mmdet3d import recipe as recipes
from bevcask.detectors.mmdet3d.detector import Mmdet3dDetector
from bevcask.detectors.mmdet3d.recipe import VIEWS, Mmdet3dConfig, Recipe
from bevcask.errors import ConfigError, MissingDependencyError
from bevcask.geometry import CAMERAS, CLASSES
from bevcask.groups import load_group

pytestmark = pytest.mark.mmdet3d

PILLAR02 = "centerpoint_pillar02_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d"
FCOS3D = "fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d"
POINTPILLARS = "pointpillars_hv_fpn_sbn-all_8xb4-2x_nus-3d"
KITTI = "pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class"


def read(config: str, **more: object) -> Recipe:
    return recipes.read(Mmdet3dConfig.model_validate({"config": config, **more}))


@pytest.mark.parametrize("name", ["pillar02", "voxel01", "voxel0075"])
def test_shipped_groups_read_what_their_pipelines_prepare(name: str) -> None:
    section = load_group("teacher", f"mmdet3d_centerpoint_{name}")["detector"]
    plugin, own = build_config("detector", section, "teacher.detector")
    assert plugin is Mmdet3dDetector
    assert isinstance(own, Mmdet3dConfig)
    recipe = recipes.read(own)
    assert recipe.inputs == Inputs(num_sweeps=10, ego_points="keyframe", pad="empty")
    assert recipe.point_columns == (0, 1, 2, 3, 4)
    assert recipe.classes == CLASSES
    assert recipe.box_columns == 9
    half = 54.0 if name == "voxel0075" else 51.2
    assert recipe.extent == (-half, -half, half, half)
    filtered = None if name == "pillar02" else (-half, -half, -5, half, half, 3)
    assert recipe.point_range == filtered


def test_class_names_are_read_where_they_stand() -> None:
    flat = ("car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle")
    assert read(FCOS3D).classes == (*flat, "pedestrian", "traffic_cone", "barrier")
    assert read(PILLAR02).task_classes[1] == ("truck", "construction_vehicle")


def test_camera_configs_say_size_and_cameras() -> None:
    recipe = read(FCOS3D)
    assert recipe.inputs == Inputs(image_size_HW=(900, 1600), ego_points="keep", pad="never")
    assert recipe.monocular
    assert set(VIEWS) == set(CAMERAS)
    assert recipe.cameras == VIEWS
    assert read(FCOS3D, image_size_HW=(448, 800)).inputs.image_size_HW == (448, 800)


def test_sweeps_without_padding_are_not_padded() -> None:
    recipe = read(POINTPILLARS)
    assert recipe.inputs == Inputs(num_sweeps=11, ego_points="keep", pad="never")
    assert recipe.point_columns == (0, 1, 2, 4)


def test_weights_to_download_are_left_out() -> None:
    assert "init_cfg" not in read(FCOS3D).model["backbone"]


def test_options_change_the_model() -> None:
    changed = read(PILLAR02, options={"model.test_cfg.pts.score_threshold": 0.3})
    assert changed.model["test_cfg"]["pts"]["score_threshold"] == 0.3


def test_identity_is_of_the_model_not_of_the_file(tmp_path: Path) -> None:
    shipped = recipes.find(PILLAR02)
    copy = tmp_path / "mine.py"
    copy.write_text(f"_base_ = [{str(shipped)!r}]\n")
    one, two = (recipes.identity(Mmdet3dConfig(config=str(path))) for path in (PILLAR02, copy))
    assert one == two
    assert set(one["versions"]) == {"mmdet3d", "mmcv", "mmdet", "mmengine"}
    copy.write_text(
        f"_base_ = [{str(shipped)!r}]\nmodel = dict(pts_bbox_head=dict(norm_bbox=False))"
    )
    assert recipes.identity(Mmdet3dConfig(config=str(copy))) != one


def test_missing_config_is_named_with_the_nearest_shipped_one() -> None:
    with pytest.raises(ConfigError) as caught:
        read(PILLAR02.replace("circlenms", "circlnms"))
    message = str(caught.value)
    assert "no such file, and mmdet3d 1.4.0 ships no config of that name" in message
    assert f"Did you mean {PILLAR02!r}?" in message


def test_class_that_is_none_of_ours_is_refused_until_it_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        read(KITTI)
    message = str(caught.value)
    assert "has class 'Pedestrian', which is none of ours. Did you mean 'pedestrian'?" in message
    assert "classes=[...]" in message
    assert "Pedestrian, Cyclist, Car" in message
    named = read(KITTI, classes=("pedestrian", "bicycle", "car"))
    assert named.classes == ("pedestrian", "bicycle", "car")
    assert named.box_columns == 7
    assert named.extent == (0, -39.68, 69.12, 39.68)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("car", "bus"), "has 3 classes (Pedestrian, Cyclist, Car), `classes` lists 2"),
        (("car", "car", "bus"), "two of its classes one name"),
    ],
)
def test_wrong_class_lists_are_refused(classes: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(KITTI, classes=classes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = dict(", "cannot read this config"),
        ("anything = 1", "no `model` section"),
        ("custom_imports = dict(imports=['projects.Nowhere'])", "on PYTHONPATH"),
    ],
)
def test_broken_config_files_have_one_message(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(str(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.fixture
def without_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """An mmcv that was built without its compiled ops."""
    for name in [name for name in sys.modules if name.startswith("mmcv.ops")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mmcv._ext", None)


@pytest.mark.usefixtures("without_ops")
def test_missing_ops_name_the_command_that_installs_them() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        read(PILLAR02)
    assert "mmcv.ops cannot be imported" in str(caught.value)
    assert "`make mmdet3d`" in str(caught.value)

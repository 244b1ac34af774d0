"""What a user without mmdet3d sees; the rest is in the mmdet3d tier."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bevcask.cli import app
from bevcask.detectors.mmdet3d.recipe import Mmdet3dConfig
from bevcask.groups import load_group

Words = Callable[[Path], list[str]]


@pytest.mark.parametrize(
    "words",
    [
        lambda root: ["plan", "teacher=mmdet3d_centerpoint_pillar02"],
        lambda root: ["teacher-extract", "x.zarr", "teacher=mmdet3d_centerpoint_voxel01",
                      "dataset=synthetic", f"dataset.root={root}"],
    ],
    ids=["plan", "extract"],
)  # fmt: skip
def test_one_message_names_the_command_that_installs_it(
    words: Words, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mmengine", None)
    answer = CliRunner().invoke(app, words(tiny_world))
    assert answer.exit_code == 2
    assert "mmengine cannot be imported" in answer.stderr
    assert "`make mmdet3d`" in answer.stderr
    assert answer.stderr.count("error:") == 1


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, "config: needed, and not given: config file, or the name of one"),
        ({"config": "x", "cameras": ["CAM_TOP"]}, "expected some of CAM_FRONT"),
        ({"config": "x", "taps": {"a": "neck[0"}}, "taps.a.at"),
    ],
)
def test_wrong_sections_need_no_mmdet3d_to_be_refused(
    section: dict[str, object], words: str
) -> None:
    from bevcask.config import validate
    from bevcask.errors import ConfigError

    with pytest.raises(ConfigError) as caught:
        validate(Mmdet3dConfig, section, "teacher.detector")
    assert words in str(caught.value)


def test_a_path_stands_for_a_dense_map() -> None:
    config = Mmdet3dConfig.model_validate({"config": "x", "taps": {"bev.mine": "neck[0]"}})
    assert config.taps["bev.mine"].at == "neck[0]"
    assert config.taps["bev.mine"].kind == "dense_bev"


def test_groups_of_detector_teacher_and_student_agree() -> None:
    for name in ("pillar02", "voxel01", "voxel0075", "tiny"):
        detector = load_group("detector", f"mmdet3d_centerpoint_{name}")
        assert load_group("teacher", f"mmdet3d_centerpoint_{name}")["detector"] == detector

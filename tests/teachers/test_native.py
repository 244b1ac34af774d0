"""Detectors of ours as teachers."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bevcask.config import NativeTeacherConfig, TeacherConfig, validate
from bevcask.detectors.base import Batch
from bevcask.detectors.weights import save_weights
from bevcask.errors import CacheIdentityError, ConfigError
from bevcask.groups import load_group
from bevcask.teachers import build_teacher, find_teacher
from bevcask.teachers.native import NativeTeacher
from contracts.teacher import TeacherContract
from detectors.scenes import camera_batch, scan


def small(name: str, **more: Any) -> dict[str, Any]:
    section = load_group("teacher", name)
    section["detector"] |= more
    return section


class TestCenterPoint(TeacherContract):
    section: Mapping[str, Any] = small("centerpoint_tiny", half_extent=12.8)

    def batch(self, num_samples: int) -> Batch:
        return Batch(
            tokens=[str(i) for i in range(num_samples)],
            bev_aug_B44=torch.eye(4).expand(num_samples, 4, 4),
            points=[scan(i) for i in range(num_samples)],
        )


class TestBEVDepth(TeacherContract):
    section: Mapping[str, Any] = small(
        "bevdepth_tiny", half_extent=12.8, image_size_HW=[64, 96], image_channels=16
    )

    def batch(self, num_samples: int) -> Batch:
        return camera_batch(num_samples, 0, (64, 96))


def test_weights_of_a_file_are_claimed_without_being_loaded(tmp_path: Path) -> None:
    teacher = TestCenterPoint().make()
    path = tmp_path / "teacher.safetensors"
    save_weights(teacher.weights(), path, {})
    section = {**TestCenterPoint.section, "checkpoint": str(path)}
    plugin, own = find_teacher(TeacherConfig.model_validate(section))
    assert plugin.claims(own)["weights"] == teacher.fingerprint()["weights"]


@pytest.mark.parametrize("name", ["raydn_tiny", "bevformer_tiny"])
def test_a_published_file_is_the_teacher_that_it_becomes(name: str, tmp_path: Path) -> None:
    """A cache made with it takes the same file again."""
    section = load_group("teacher", name)
    path = tmp_path / "released.safetensors"
    random = build_teacher(TeacherConfig.model_validate(section), seed=0)
    save_weights(random.published(), path, {})
    plugin, own = find_teacher(TeacherConfig.model_validate(section | {"checkpoint": str(path)}))
    assert plugin.claims(own)["weights"] == plugin(own, 0).fingerprint()["weights"]


def test_an_unknown_key_of_a_native_teacher_is_refused_when_it_is_said() -> None:
    with pytest.raises(ConfigError, match=r"chekpoint: unknown key\. Did you mean 'checkpoint'"):
        validate(TeacherConfig, {"chekpoint": "x"}, "teacher")


REMEMBERS = {"type": "detectors.remembering:Remembering"}


@pytest.mark.parametrize(
    ("detector", "keys", "said"),
    [
        ({}, {"memory": "window"}, "does not remember"),
        ({}, {"history": 2}, "does not remember"),
        ({}, {"parts": 2}, "does not remember"),
        (REMEMBERS, {"memory": "window", "parts": 2}, r"teacher\.parts=2 cuts scenes"),
        (REMEMBERS, {"history": 2}, r"teacher\.history=2 is the length of a window"),
        (REMEMBERS, {"memory": "scene", "history": 2}, "is the length of a window"),
    ],
)
def test_memory_and_detector_go_together(
    detector: dict[str, Any], keys: dict[str, Any], said: str
) -> None:
    section = small("centerpoint_tiny", **detector)
    with pytest.raises(ConfigError, match=said):
        build_teacher(TeacherConfig.model_validate({**section, **keys}), 0)


@pytest.mark.parametrize(
    ("stored", "asked", "same"),
    [
        ({}, None, True),
        ({}, 1, True),
        ({}, 2, False),
        ({"parts": 2}, None, True),
        ({"parts": 2}, 2, True),
        ({"parts": 2}, 1, False),
    ],
)
def test_a_cache_of_other_parts_is_refused(
    stored: dict[str, int], asked: int | None, same: bool
) -> None:
    """As far as the parts are named; whole scenes are recorded by nothing."""
    tree = {"teacher": {}, "memory": {"policy": "scene", **stored}}
    cache: Any = SimpleNamespace(url="cache", identity=tree, fingerprint=tree)
    config = NativeTeacherConfig(memory="scene", parts=asked)
    if same:
        NativeTeacher.matches(config, cache)
        return
    with pytest.raises(CacheIdentityError, match=r"memory\.parts.*teacher\.parts"):
        NativeTeacher.matches(config, cache)


def test_what_a_teacher_reads_and_what_its_taps_depend_on_follow_its_memory() -> None:
    section = small("centerpoint_tiny", **REMEMBERS)

    def make(**keys: Any) -> Any:
        return build_teacher(TeacherConfig.model_validate({**section, **keys}), 0)

    scene, window, short = make(), make(memory="window"), make(memory="window", history=1)
    assert [t.memory for t in (scene, window, short)] == ["scene", "window", "window"]
    assert [t.reads().history for t in (scene, window, short)] == [0, 2, 1]
    context = [t.offers()["bev.neck"].context for t in (scene, window, short)]
    assert context == ["scene", "window of 2", "window of 1"]
    assert scene.remembering() == {"policy": "scene"}
    assert window.remembering() == {"policy": "window", "history": 2, "gaps": [2, 1]}
    halves = make(parts=2)
    assert halves.memory == "scene"
    assert halves.offers()["bev.neck"].context == "scene in 2 parts"
    assert halves.offers()["bev.neck"].in_order
    assert halves.remembering() == {"policy": "scene", "parts": 2}
    assert make(parts=1).remembering() == scene.remembering()
    forgets = TestCenterPoint().make()
    assert (forgets.memory, forgets.offers()["bev.neck"].context) == ("none", "none")
    section = small("bevdepth_tiny", num_frames=2)
    two_frames = build_teacher(TeacherConfig.model_validate(section), 0)
    assert two_frames.offers()["bev.neck"].context == "window of 1"
    assert two_frames.offers()["image.fpn0"].context == "none"

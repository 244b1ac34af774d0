"""Detectors of ours as teachers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from bevcask.config import TeacherConfig, validate
from bevcask.detectors.base import Batch
from bevcask.detectors.weights import save_weights
from bevcask.errors import ConfigError
from bevcask.groups import load_group
from bevcask.teachers import find_teacher
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


def test_an_unknown_key_of_a_native_teacher_is_refused_when_it_is_said() -> None:
    with pytest.raises(ConfigError, match=r"chekpoint: unknown key\. Did you mean 'checkpoint'"):
        validate(TeacherConfig, {"chekpoint": "x"}, "teacher")

"""HarmoDistill cases that several tests share: taps, steps, and a teacher with larger maps."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from bevcask.geometry import bev_matrix
from bevcask.methods.base import Method
from bevcask.methods.harmodistill import HarmoDistill
from bevcask.targets.spec import TapInfo
from contracts.method import MethodContract, Step
from methods.focaldistiller_cases import values

SIZES = ((3, 5), (2, 3), (2, 2), (1, 2))  # rows and columns of the student's image levels
LARGER = ((3, 5), (4, 5), (2, 2), (1, 2))  # of the teacher's
LEVELS = tuple(f"level{i}/balanced" for i in range(4))


def images(
    name: str, first: int, sizes: tuple[tuple[int, int], ...], rest: int = 3
) -> dict[str, TapInfo]:
    """Return levels of two cameras, the first as wide as it is told."""
    taps = [
        TapInfo(
            f"{name}{i}", "image_feature", (2, rest if i else first, *size), depends_on_images=True
        )
        for i, size in enumerate(sizes)
    ]
    return {tap.name: tap for tap in taps}


class Small(MethodContract):
    """Level 0 passes an adapter, level 1 is resized, the others meet as they are."""

    section: Mapping[str, Any] = {"type": "harmodistill"}
    student: Mapping[str, TapInfo] = images("image.level", 2, SIZES)
    teacher: Mapping[str, TapInfo] = images("image.level", 3, LARGER)
    perfect_terms = ("balanced",)

    def perfect(self, step: Step) -> Step:
        said = {f"image.level{i}": step.targets[f"image.level{i}"].values.clone() for i in (2, 3)}
        return replace(step, student={**step.student, **said})

    def test_perfect_student_loses_nothing(self) -> None:
        losses = values(self.perfect(self.step()).run(self.build().eval()))
        assert [losses[name] for name in LEVELS[2:]] == [0, 0]
        assert min(losses[name] for name in LEVELS[:2]) > 0

    def test_student_out_of_sight(self) -> None:
        """Images show what they show, wherever the car is thought to be."""
        away = bev_matrix()
        away[0, 3] = 1e4
        method = self.build()
        found, expected = (
            values(step.run(method)) for step in (self.step(matrix=away), self.step())
        )
        for name in LEVELS:
            assert found[name] == pytest.approx(expected[name], rel=1e-6)


class Plain(Small):
    """Student maps as wide and as large as the teacher's, and nothing learned between them."""

    student: Mapping[str, TapInfo] = images("image.level", 3, SIZES)
    teacher: Mapping[str, TapInfo] = student

    def build(self, seed: int = 0) -> Method:
        method = super().build(seed)
        assert isinstance(method, HarmoDistill)
        assert all(isinstance(own, nn.Identity) for own in method.widen.values())
        return method


CASE, PLAIN = Small(), Plain()

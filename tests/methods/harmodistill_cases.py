"""HarmoDistill cases that several tests share: taps, steps, and a teacher with larger maps."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
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

LAYERS, QUERIES, CHANNELS, POINTS = 2, 4, 3, 2


def queries(channels: int, num: int = QUERIES) -> dict[str, TapInfo]:
    """Return what a decoder of two layers says of its queries."""
    rows = LAYERS * num
    taps = (
        TapInfo("query.states", "query_set", (rows, channels)),
        TapInfo("query.references", "query_points", (num, 3)),
        TapInfo("query.offsets", "query_points", (rows, 3 * POINTS)),
        TapInfo("query.scores", "query_set", (rows, 10), nonnegative=True),
    )
    return {tap.name: tap for tap in taps}


class Local(Small):
    """Maps of 7 x 7 cells; the student has other channels and another number of queries."""

    section: Mapping[str, Any] = {
        "type": "harmodistill",
        "balanced": 0.0,
        "local": 0.1,
        "cells": 7,
        "layers": LAYERS,
        "low": (-6.4, -6.4, -5.0),
        "high": (6.4, 6.4, 3.0),
    }
    student: Mapping[str, TapInfo] = queries(2, 5)
    teacher: Mapping[str, TapInfo] = queries(CHANNELS)
    positions = ("query.references", "query.offsets", "query.scores")
    perfect_terms = ("local",)

    def step(
        self, batch_size: int = 2, num_boxes: int = 4, seed: int = 0, matrix: Any = None
    ) -> Step:
        """Return one whose points lie on both sides of the border."""
        step = super().step(batch_size, num_boxes, seed, matrix)
        generator = torch.Generator().manual_seed(seed + 1)
        for taps in (step.student, {name: own.values for name, own in step.targets.items()}):
            for name, scale in (("query.references", 1.2), ("query.offsets", 4.0)):
                if name in taps:
                    drawn = torch.rand(taps[name].shape, generator=generator)
                    taps[name].data.copy_((drawn - (0.1 if scale < 2 else 0.5)) * scale)
        return step

    def test_perfect_student_loses_nothing(self) -> None:
        """One that says what its teacher says, before either convolution has learnt."""
        case = with_settings(self)
        case.student = case.teacher
        step = case.step()
        said = {name: own.values.clone() for name, own in step.targets.items()}
        assert values(replace(step, student=said).run(case.build())) == {"queries/local": 0}

    def test_student_out_of_sight(self) -> None:
        """The teacher's points are kept at the border."""
        away = bev_matrix()
        away[0, 3] = 1e4
        assert values(self.step(matrix=away).run(self.build()))["queries/local"] > 0


class Response(Small):
    """Camera-modulated levels, as they are and as queries hear them."""

    section: Mapping[str, Any] = {
        "type": "harmodistill",
        "balanced": 0.0,
        "modulated": 0.1,
        "response": 0.1,
        "layers": LAYERS,
    }
    student: Mapping[str, TapInfo] = images("image.modulated", 2, SIZES, 2) | queries(2)
    teacher: Mapping[str, TapInfo] = images("image.modulated", 3, LARGER) | queries(CHANNELS)

    def test_perfect_student_loses_nothing(self) -> None:
        case = with_settings(self)
        case.teacher = images("image.modulated", 3, SIZES) | queries(CHANNELS)
        case.student = case.teacher
        step = case.step()
        said = {name: own.values.clone() for name, own in step.targets.items()}
        assert set(values(replace(step, student=said).run(case.build())).values()) == {0}

    def test_student_out_of_sight(self) -> None:
        """Nothing here is a matter of places."""
        away = bev_matrix()
        away[0, 3] = 1e4
        method = self.build()
        found, expected = (
            values(step.run(method)) for step in (self.step(matrix=away), self.step())
        )
        assert found == pytest.approx(expected, rel=1e-6)


def with_settings(case: MethodContract, **settings: Any) -> Any:
    """Return the case with other settings of its method, to be given other taps."""
    other = type(case)()
    other.section = {**case.section, **settings}
    return other


LOCAL, RESPONSE = Local(), Response()

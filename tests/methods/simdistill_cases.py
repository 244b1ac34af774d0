"""SimDistill cases that several tests share: taps, steps, and a silent scene."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.detectors.base import Labels
from bevcask.geometry import CLASSES, Grid, bev_matrix
from bevcask.methods.base import Method, Target
from bevcask.targets.align import Align
from bevcask.targets.spec import TapInfo
from contracts.method import FLIP, TURN, MethodContract, Step

GRID = Grid.square(6.0, 1.0)
TERMS = ("intra_modal", "cross_modal", "fusion", "quality", "box")
QUARTER = bev_matrix(math.pi / 2)
MOVES = {"clean": bev_matrix(), "flip": FLIP, "quarter": QUARTER, "turn": TURN}
WEIGHT = {"intra_modal": 1.0, "cross_modal": 100.0, "fusion": 1.0, "quality": 0.25, "box": 0.25}


def dense(name: str, channels: int, grid: Grid = GRID, images: bool = True) -> TapInfo:
    shape = (channels, *grid.shape_YX)
    return TapInfo(name, "dense_bev", shape, grid, nonnegative=True, depends_on_images=images)


def taps(camera: int, fused: int, grid: Grid = GRID) -> dict[str, TapInfo]:
    """Return what both sides have."""
    shape = grid.shape_YX
    return {
        "bev.camera": dense("bev.camera", camera, grid),
        "bev.fused": dense("bev.fused", fused, grid),
        "head.heatmap": TapInfo(
            "head.heatmap", "heatmap", (10, *shape), grid, True, CLASSES, depends_on_images=True
        ),
        "head.codes": TapInfo("head.codes", "box_code", (60, *shape), grid, depends_on_images=True),
    }


def student_taps(simulated: int = 3, grid: Grid = GRID) -> dict[str, TapInfo]:
    return taps(3, 5, grid) | {"bev.simulated": dense("bev.simulated", simulated, grid)}


def teacher_taps(lidar: int = 4, grid: Grid = GRID) -> dict[str, TapInfo]:
    return taps(3, 5, grid) | {"bev.lidar": dense("bev.lidar", lidar, grid, images=False)}


class Fused(MethodContract):
    section: Mapping[str, Any] = {"type": "simdistill"}
    reads_a_sample = 1  # the peaks of its heatmap
    student: Mapping[str, TapInfo] = student_taps()
    teacher: Mapping[str, TapInfo] = teacher_taps()
    extent = 4.0
    blind_without_boxes = True
    perfect_terms = ("intra_modal", "fusion", "quality", "box")

    def perfect(self, step: Step) -> Step:
        said = {name: target.values.clone() for name, target in step.targets.items()}
        return replace(step, student={**step.student, **said})

    def test_batch_is_the_mean_of_its_samples(self) -> None:
        """Of the dense terms; `quality` is a sum over samples, `box` counts over the batch."""
        method, step = self.build().eval(), self.step(3, matrix=TURN)
        assert isinstance(method, Method)
        singles = [values(step.sample(b).run(method)) for b in range(3)]
        whole = values(step.run(method))
        for name in ("intra_modal", "cross_modal", "fusion"):
            mean = sum(single[name] for single in singles) / 3
            assert whole[name] == pytest.approx(mean, rel=1e-5)
        total = sum(single["quality"] for single in singles)
        assert whole["quality"] == pytest.approx(total, rel=1e-5)
        thrice = values(repeated(step.sample(0), 3).run(method))
        assert thrice["box"] == pytest.approx(singles[0]["box"], rel=1e-5)


CASE = Fused()


class Identity(Fused):
    """Student and teacher LiDAR maps of equal width meet without an adapter."""

    student: Mapping[str, TapInfo] = student_taps(4)

    def build(self, seed: int = 0) -> Method:
        method = super().build(seed)
        method.widen = torch.nn.Identity()
        return method


PLAIN = Identity()


def values(losses: Mapping[str, Tensor]) -> dict[str, float]:
    return {name.rpartition("/")[2]: float(loss.detach()) for name, loss in losses.items()}


def repeated(step: Step, times: int) -> Step:
    """Return a batch of one sample, several times."""
    student = {name: value.repeat(times, 1, 1, 1) for name, value in step.student.items()}
    targets = {
        name: Target(
            t.values.repeat(times, 1, 1, 1),
            None if t.region_BYX is None else t.region_BYX.repeat(times, 1, 1),
        )
        for name, t in step.targets.items()
    }
    labels = step.labels
    return Step(
        student,
        targets,
        Labels(labels.boxes * times, labels.classes * times, labels.canonical_boxes * times),
        Align(torch.as_tensor(step.align.matrices_B44).repeat(times, 1, 1)),
    )


def scene(matrix: Any = None, **boxes: tuple[int, float, float]) -> Step:
    """Return one silent sample with small boxes: name -> (class, x, y)."""
    align = Align(torch.as_tensor(bev_matrix() if matrix is None else matrix)[None])
    canonical = torch.tensor(
        [[x, y, -1.0, 1.0, 1.0, 1.0, 0.3, 2.0, -1.0] for _, x, y in boxes.values()]
    ).reshape(-1, 9)
    classes = torch.tensor([k for k, _, _ in boxes.values()], dtype=torch.int64)
    labels = Labels(align.boxes([canonical]), [classes], [canonical])
    student = {name: torch.zeros(1, *tap.shape) for name, tap in PLAIN.student.items()}
    targets = {name: Target(torch.zeros(1, *tap.shape)) for name, tap in PLAIN.teacher.items()}
    return Step(student, targets, labels, align)

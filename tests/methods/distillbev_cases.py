"""DistillBEV cases that several tests share: taps, steps, and the loop oracle of a batch."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bevcask.geometry import CLASSES, Grid, bev_matrix
from bevcask.methods import build_method
from bevcask.methods.base import Method
from bevcask.targets.spec import TapInfo
from contracts.method import TURN, MethodContract, Step
from methods.oracle_distillbev import sample_terms

GRID = Grid.square(6.0, 1.0)
WIDE = Grid.square(8.0, 1.0)
CHANNELS = 3
TERMS = ("foreground", "background", "false_positive", "spatial")


MOVES = {
    "clean": bev_matrix(),
    "flip": bev_matrix(flip_x=True),
    "quarter": bev_matrix(math.pi / 2, flip_y=True),
    "turn": TURN,
    "hard": bev_matrix(-0.3925, 0.95, True, True),
}


def dense(name: str, channels: int, grid: Grid) -> TapInfo:
    return TapInfo(name, "dense_bev", (channels, *grid.shape_YX), grid, nonnegative=True)


def heatmap(grid: Grid) -> TapInfo:
    return TapInfo("head.heatmap", "heatmap", (10, *grid.shape_YX), grid, True, CLASSES)


class ThreeLevels(MethodContract):
    section: Mapping[str, Any] = {"type": "distillbev"}
    student: Mapping[str, TapInfo] = {
        "bev.block1": dense("bev.block1", 4, GRID.coarsen(2)),
        "bev.block2": dense("bev.block2", 5, GRID.coarsen(4)),
        "bev.neck": dense("bev.neck", 6, GRID),
    }
    teacher: Mapping[str, TapInfo] = {
        "bev.block1": dense("bev.block1", 3, GRID),
        "bev.block2": dense("bev.block2", 4, GRID.coarsen(2)),
        "bev.neck": dense("bev.neck", 5, GRID),
        "head.heatmap": heatmap(GRID),
        "head.boxes": TapInfo("head.boxes", "box_set", (500, 11), classes=CLASSES),
    }


class OneLevel(MethodContract):
    """One level without an adapter: the student's map meets the teacher's directly."""

    section: Mapping[str, Any] = {
        "type": "distillbev",
        "levels": [
            {
                "name": "neck",
                "student": "bev.neck",
                "teacher": "bev.neck",
                "adapter": "identity",
                "false_positives": True,
            }
        ],
    }
    student: Mapping[str, TapInfo] = {"bev.neck": dense("bev.neck", CHANNELS, WIDE)}
    teacher: Mapping[str, TapInfo] = {
        "bev.neck": dense("bev.neck", CHANNELS, WIDE),
        "head.heatmap": heatmap(WIDE),
    }
    perfect_terms = ("foreground", "background", "false_positive")
    extent = 8.5

    def perfect(self, step: Step) -> Step:
        return replace(step, student={"bev.neck": step.targets["bev.neck"].values.clone()})

    def test_shipped_configuration_is_the_default(self) -> None:
        assert build_method({"type": "distillbev"}).needs() != build_method(self.section).needs()


ONE = OneLevel()


def wider(channels: int) -> OneLevel:
    """Return the one-level case with other channels on both sides."""
    case = OneLevel()
    case.student = {"bev.neck": dense("bev.neck", channels, WIDE)}
    case.teacher = {**case.teacher, "bev.neck": dense("bev.neck", channels, WIDE)}
    return case


def set_kernel(method: Method, kernel: Tensor, bias: float = 0.0) -> None:
    convolution = method.get_submodule("levels.neck.smooth")
    with torch.no_grad():
        convolution.weight.copy_(kernel.reshape(1, 1, 3, 3))
        convolution.bias.fill_(bias)


def delta() -> Tensor:
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = 1
    return kernel


def values(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name.rpartition("/")[2]: float(loss.detach()) for name, loss in losses.items()}


def oracle(
    method: Method,
    step: Step,
    reach: Grid = WIDE,
    target: Grid = WIDE,
    both_look: bool = True,
) -> dict[str, float]:
    def plain(grid: Grid) -> tuple[float, float, float, int, int]:
        return grid.x_min, grid.y_min, grid.cell, grid.num_x, grid.num_y

    convolution = method.get_submodule("levels.neck.smooth")
    total = dict.fromkeys(TERMS, 0.0)
    batch_size = len(step.align)
    for b in range(batch_size):
        terms = sample_terms(
            step.student["bev.neck"][b].detach().double().numpy(),
            plain(reach),
            plain(reach),
            step.targets["bev.neck"].values[b].double().numpy(),
            plain(target),
            step.align.matrices_B44[b],
            step.labels.boxes[b].double().numpy(),
            step.labels.canonical_boxes[b].double().numpy(),
            step.targets["head.heatmap"].values[b].double().numpy(),
            convolution.weight[0, 0].detach().double().numpy(),
            float(convolution.bias.detach()),
            both_look,
        )
        for name, value in terms.items():
            total[name] += value / batch_size
    return total

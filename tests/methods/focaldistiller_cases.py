"""FocalDistiller cases that several tests share: taps, steps, and a silent scene."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bevcask.detectors.base import Labels
from bevcask.geometry import Grid, bev_matrix
from bevcask.methods.base import Method, Target
from bevcask.methods.focaldistiller import FocalDistiller
from bevcask.targets.align import Align
from bevcask.targets.spec import TapInfo
from contracts.method import FLIP, TURN, MethodContract, Step

FINE, COARSE = Grid.square(6.4, 0.32), Grid.square(6.4, 0.64)  # the mask: 16 cells of 0.8 m
SIZES = ((3, 5), (2, 3), (2, 2), (1, 2))  # rows and columns of the image levels
MOVES = {
    "clean": bev_matrix(),
    "flip": FLIP,
    "quarter": bev_matrix(math.pi / 2),
    "turn": TURN,
}
IMAGES = tuple(f"level{i}/channelwise" for i in range(4))


def bev(channels: int, grid: Grid) -> TapInfo:
    shape = (channels, *grid.shape_YX)
    return TapInfo("bev.encoder", "dense_bev", shape, grid, depends_on_images=True)


def taps(first: int, encoder: int, grid: Grid) -> dict[str, TapInfo]:
    """Return four image levels of two cameras, the first of its own width, and a BEV map."""
    levels = {
        f"image.level{i}": TapInfo(
            f"image.level{i}",
            "image_feature",
            (2, 3 if i else first, *size),
            depends_on_images=True,
        )
        for i, size in enumerate(SIZES)
    }
    return {**levels, "bev.encoder": bev(encoder, grid)}


class Small(MethodContract):
    section: Mapping[str, Any] = {"type": "focaldistiller"}
    student: Mapping[str, TapInfo] = taps(2, 3, COARSE)
    teacher: Mapping[str, TapInfo] = taps(3, 4, FINE)
    blind_without_boxes = True
    perfect_terms = ("channelwise",)

    def perfect(self, step: Step) -> Step:
        """Level 0 passes an adapter; a student as wide as the teacher would pass none."""
        said = {name: step.targets[name].values.clone() for name in list(self.student)[1:4]}
        return replace(step, student={**step.student, **said})

    def test_perfect_student_loses_nothing(self) -> None:
        losses = values(self.perfect(self.step()).run(self.build().eval()))
        assert [losses[name] for name in IMAGES[1:]] == [0, 0, 0]
        assert losses["level0/channelwise"] > 0

    def test_student_out_of_sight(self) -> None:
        """Of the BEV map; images show what they show."""
        away = bev_matrix()
        away[0, 3] = 1e4
        losses = values(self.step(matrix=away).run(self.build()))
        assert losses["bev/masked"] == 0

    def test_batch_is_the_mean_of_its_samples(self) -> None:
        """Of image levels; the BEV term has one divisor for the whole batch, as released."""
        method, step = self.build().eval(), self.step(3, matrix=TURN)
        assert isinstance(method, Method)
        singles = [values(step.sample(b).run(method)) for b in range(3)]
        whole = values(step.run(method))
        for name in IMAGES:
            mean = sum(single[name] for single in singles) / 3
            assert whole[name] == pytest.approx(mean, rel=1e-5)
        masked = [single["bev/masked"] for single in singles]
        assert min(masked) < whole["bev/masked"] < max(masked)


class Plain(Small):
    """Student maps as wide and as fine as the teacher's, and nothing learned between them."""

    student: Mapping[str, TapInfo] = taps(3, 4, FINE)

    def build(self, seed: int = 0) -> Method:
        method = super().build(seed)
        assert isinstance(method, FocalDistiller)
        method.restore = nn.Identity()
        return method


CASE, PLAIN = Small(), Plain()


def values(losses: Mapping[str, Tensor]) -> dict[str, float]:
    return {name.partition("/")[2]: float(loss.detach()) for name, loss in losses.items()}


def double(step: Step) -> Step:
    """Return the step in float64, without gradients."""
    targets = {
        name: replace(target, values=target.values.double())
        for name, target in step.targets.items()
    }
    student = {name: value.detach().double() for name, value in step.student.items()}
    return replace(step, student=student, targets=targets)


def scene(*boxes: tuple[float, float, float, float], matrix: Any = None) -> Step:
    """Return one silent sample with boxes (x, y, length, width)."""
    align = Align(torch.as_tensor(bev_matrix() if matrix is None else matrix)[None])
    canonical = torch.tensor([[x, y, 0, le, wi, 1.5, 0.3, 0, 0] for x, y, le, wi in boxes])
    canonical = canonical.reshape(-1, 9).float()
    classes = torch.zeros(len(canonical), dtype=torch.int64)
    labels = Labels(align.boxes([canonical]), [classes], [canonical])
    student = {name: torch.zeros(1, *tap.shape) for name, tap in PLAIN.student.items()}
    targets = {name: Target(torch.zeros(1, *tap.shape)) for name, tap in PLAIN.teacher.items()}
    return Step(student, targets, labels, align)

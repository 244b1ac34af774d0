"""FD3D cases that several tests share: taps, calibrated steps, and a frozen head's targets."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from bevcask.geometry import bev_matrix
from bevcask.methods.base import Method, Target
from bevcask.methods.fd3d import FD3D
from bevcask.targets.align import Align
from bevcask.targets.spec import TapInfo
from contracts.method import TURN, MethodContract, Step
from methods.focaldistiller_cases import COARSE, FINE, bev, values
from targets.test_rectangles import images

SIZES = ((8, 16), (4, 8), (2, 4), (1, 2))  # strides 4 to 32 of images of 32 x 64 pixels
IMAGES = tuple(f"level{i}/generative" for i in range(4))
HEAD: Mapping[str, Any] = {"queries": 5, "layers": 2, "heads": 2, "points": 3, "width": 6}
LAYERS, QUERIES, PLACES, CHANNELS = 2, 5, 6, 4  # PLACES: two heads of three


def level(i: int, channels: int) -> TapInfo:
    name = f"image.level{i}"
    return TapInfo(name, "image_feature", (2, channels, *SIZES[i]), depends_on_images=True)


def taps(first: int, encoder: TapInfo) -> dict[str, TapInfo]:
    levels = [level(i, 3 if i else first) for i in range(4)]
    return {tap.name: tap for tap in [*levels, encoder]}


QUERY_TAPS = {
    tap.name: tap
    for tap in (
        TapInfo("query.reads", "query_set", (LAYERS * QUERIES, CHANNELS)),
        TapInfo("query.places", "query_places", (LAYERS * QUERIES, 3 * PLACES)),
        TapInfo("query.scores", "query_set", (LAYERS * QUERIES, 10), nonnegative=True),
        TapInfo("query.values", "query_set", (LAYERS * CHANNELS, CHANNELS + 1)),
        TapInfo("head.boxes", "box_set", (6, 11)),
    )
}


class Trained(MethodContract):
    """A head with small queries that already says boxes: their prior is 0.01."""

    section: Mapping[str, Any] = {"type": "fd3d", **HEAD, "score": 0.002}
    reads_a_sample = 11  # queries are matched to boxes on the host, each sample and layer
    student: Mapping[str, TapInfo] = taps(2, bev(3, COARSE))
    teacher: Mapping[str, TapInfo] = taps(3, bev(CHANNELS, FINE))
    perfect_terms = ()
    blind_without_boxes = False

    def step(
        self, batch_size: int = 2, num_boxes: int = 4, seed: int = 0, matrix: Any = None
    ) -> Step:
        step = super().step(batch_size, num_boxes, seed, matrix)
        step.align = Align(torch.as_tensor(step.align.matrices_B44), images(batch_size))
        return step

    def test_student_out_of_sight(self) -> None:
        """Of the BEV map; images show what they show, and the head learns from its teacher."""
        away = bev_matrix()
        away[0, 3] = 1e4
        losses = values(self.step(matrix=away).run(self.build()))
        assert losses["bev/masked"] == losses["bev/generative"] == losses["bev/focal"] == 0

    def test_batch_is_the_mean_of_its_samples(self) -> None:
        """Of the channel-wise terms; others have one divisor for the batch and draw by place."""
        method, step = self.build().eval(), self.step(3, matrix=TURN)
        assert isinstance(method, Method)
        singles = [values(step.sample(b).run(method)) for b in range(3)]
        whole = values(step.run(method))
        for i in range(4):
            name = f"level{i}/channelwise"
            mean = sum(single[name] for single in singles) / 3
            assert whole[name] == pytest.approx(mean, rel=1e-5, abs=1e-8)


class Frozen(Trained):
    """The teacher's own decoder: what its queries read is stored."""

    section: Mapping[str, Any] = {"type": "fd3d", "head": "frozen", "heads": 2}
    teacher: Mapping[str, TapInfo] = {**taps(3, bev(CHANNELS, FINE)), **QUERY_TAPS}

    def step(
        self, batch_size: int = 2, num_boxes: int = 4, seed: int = 0, matrix: Any = None
    ) -> Step:
        step = super().step(batch_size, num_boxes, seed, matrix)
        generator = torch.Generator().manual_seed(seed + 1)

        def draw(*shape: int) -> torch.Tensor:
            return torch.rand(shape, generator=generator)

        if "query.reads" in step.targets:
            rows = (batch_size, LAYERS * QUERIES)
            shares = draw(*rows, 2, 3).softmax(3)
            places = torch.cat([draw(*rows, 2, 3, 2), shares[..., None]], 4)
            step.targets["query.places"] = Target(places.flatten(2))
            step.targets["query.reads"] = Target(draw(*rows, CHANNELS) - 0.5)
            step.targets["query.scores"] = Target(draw(*rows, 10))
            constant = draw(1, LAYERS * CHANNELS, CHANNELS + 1) - 0.5
            step.targets["query.values"] = Target(constant.expand(batch_size, -1, -1).clone())
        if "head.boxes" in step.targets:
            rows_BN11 = torch.zeros(batch_size, 6, 11)
            for own, canonical in zip(rows_BN11, step.labels.canonical_boxes, strict=True):
                found = len(canonical[:4])
                own[:found, :9] = canonical[:4]
                own[:found, 9] = torch.tensor([0.9, 0.6, 0.31, 0.29])[:found]
            count = torch.full((batch_size,), min(num_boxes, 4))
            step.targets["head.boxes"] = Target(rows_BN11, None, count)
        return step


class Truth(Frozen):
    """Ground truth says where: the BEV map is sparse."""

    section: Mapping[str, Any] = {**Frozen.section, "boxes_by": "truth"}


class Bare(Truth):
    """Student maps as wide and as fine as the teacher's; generators hand on what they get."""

    student: Mapping[str, TapInfo] = taps(3, bev(CHANNELS, FINE))
    section: Mapping[str, Any] = {**Truth.section, "blank": [0.0, 0.0]}

    def build(self, seed: int = 0) -> Method:
        method = super().build(seed)
        assert isinstance(method, FD3D)
        for name in method.generate:
            method.generate[name] = torch.nn.Identity()
        method.restore = torch.nn.Identity()
        return method


TRAINED, FROZEN, TRUTH, BARE = Trained(), Frozen(), Truth(), Bare()


def silent(step: Step) -> Step:
    """Return the step with maps and readings of zeros."""
    for name, target in step.targets.items():
        if name in ("query.reads", "bev.encoder") or name.startswith("image"):
            step.targets[name] = replace(target, values=torch.zeros_like(target.values))
    student = {name: torch.zeros_like(value.detach()) for name, value in step.student.items()}
    return replace(step, student=student)

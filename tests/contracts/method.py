"""What every distillation method promises.

A method's test inherits `MethodContract`, names the section that builds it, the student's taps and
the teacher's taps, and says which terms vanish for a perfect student.
"""

from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.config import StoreConfig
from bevcask.detectors.base import Labels
from bevcask.errors import TargetMismatchError
from bevcask.geometry import bev_matrix
from bevcask.groups import load_group
from bevcask.methods import build_method
from bevcask.methods.base import Method, Target
from bevcask.targets.align import Align
from bevcask.targets.plan import plan
from bevcask.targets.region import region_mask
from bevcask.targets.spec import TapInfo, TargetSpec
from contracts.waiting import Waits

FLIP = bev_matrix(0.0, 1.0, True, False)
TURN = bev_matrix(0.3, 1.04, False, True)


@dataclass
class Step:
    """Everything a forward takes."""

    student: dict[str, Tensor]
    targets: dict[str, Target]
    labels: Labels
    align: Align

    def run(self, method: Method, progress: float = 0.5) -> dict[str, Tensor]:
        return method(self.student, self.targets, self.labels, self.align, progress)

    def tensors(self) -> Iterator[Tensor]:
        yield from self.student.values()
        for target in self.targets.values():
            yield target.values
            if target.region_BYX is not None:
                yield target.region_BYX
        for group in (self.labels.boxes, self.labels.classes, self.labels.canonical_boxes):
            yield from group

    def sample(self, b: int) -> "Step":
        """Return one sample as a batch."""
        one = slice(b, b + 1)
        targets = {
            name: Target(
                t.values[one],
                None if t.region_BYX is None else t.region_BYX[one],
                None if t.count_B is None else t.count_B[one],
            )
            for name, t in self.targets.items()
        }
        labels = Labels(
            self.labels.boxes[one], self.labels.classes[one], self.labels.canonical_boxes[one]
        )
        student = {
            name: value.detach()[one].requires_grad_() for name, value in self.student.items()
        }
        images = self.align.images
        if images is not None:
            to_image = images.lidar_to_image_BV44
            images = replace(
                images,
                matrices_BV33=images.matrices_BV33[one],
                lidar_to_image_BV44=None if to_image is None else to_image[one],
            )
        align = Align(torch.as_tensor(self.align.matrices_B44[one]), images)
        return Step(student, targets, labels, align)


class MethodContract(ABC):
    """Inherit, name the class `Test...`."""

    section: Mapping[str, Any]
    student: Mapping[str, TapInfo]
    teacher: Mapping[str, TapInfo]
    perfect_terms: tuple[str, ...] = ()
    extent: float = 6.0  # metres; boxes lie within
    blind_without_boxes: bool = False  # nothing is learnt from an empty scene
    positions: tuple[str, ...] = ()  # student taps that say where, and have no gradient
    reads_a_sample: int = 0  # values a device is asked for, for each sample of a batch

    def specs(self) -> dict[str, TargetSpec]:
        method = build_method(self.section)
        chosen = plan(method.needs(), self.teacher, 1, StoreConfig(codec="float32"), None)
        return {spec.name: spec for spec in chosen.specs}

    def build(self, seed: int = 0) -> Method:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            method = build_method(self.section)
            method.build(self.student, self.specs())
        return method

    def step(
        self, batch_size: int = 2, num_boxes: int = 4, seed: int = 0, matrix: Any = None
    ) -> Step:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        student = {
            name: (draw(batch_size, *tap.shape) - 0.3).requires_grad_()
            for name, tap in self.student.items()
        }
        said = {name: draw(batch_size, *spec.tap.shape) ** 4 for name, spec in self.specs().items()}
        canonical = []
        for _ in range(batch_size):
            boxes = torch.zeros(num_boxes, 9)
            boxes[:, :2] = (draw(num_boxes, 2) * 2 - 1) * self.extent
            boxes[:, 3:6] = 0.3 + 3 * draw(num_boxes, 3)
            boxes[:, 6] = draw(num_boxes) * 6.28
            canonical.append(boxes)
        targets = {}
        for name, spec in self.specs().items():
            region = region_mask(spec.region, said[name], spec.tap.grid, canonical)
            kept = said[name] if region is None else said[name] * region[:, None]
            targets[name] = Target(kept, region)
        matrix = bev_matrix() if matrix is None else matrix
        align = Align(torch.as_tensor(matrix).expand(batch_size, 4, 4))
        classes = [torch.arange(num_boxes) % 10 for _ in range(batch_size)]
        return Step(student, targets, Labels(align.boxes(canonical), classes, canonical), align)

    def test_needs_are_met_by_the_teacher(self) -> None:
        method = build_method(self.section)
        specs = self.specs()
        for need in method.needs():
            assert specs[need.tap].tap.kind == need.kind
            assert specs[need.tap].region == need.region
        assert len({need.role for need in method.needs()}) == len(method.needs())

    def test_student_taps_exist_and_are_read(self) -> None:
        method, step = self.build(), self.step()
        assert set(method.student_taps()) <= set(self.student)
        step.student = {name: step.student[name] for name in method.student_taps()}
        step.targets = {need.tap: step.targets[need.tap] for need in method.needs()}
        step.run(method)  # nothing else is asked for

    def test_build_names_every_mismatch(self) -> None:
        method = build_method(self.section)
        if not method.needs():
            method.build({}, {})
            return
        with pytest.raises(TargetMismatchError) as caught:
            method.build({}, {})
        for name in [*method.student_taps(), *(need.tap for need in method.needs())]:
            assert repr(name) in str(caught.value)

    def test_shipped_configuration_is_the_default(self) -> None:
        name = self.section["type"]
        shipped = build_method(load_group("method", name))
        default = build_method({"type": name})
        assert shipped.needs() == default.needs()
        assert shipped.student_taps() == default.student_taps()
        if hasattr(default, "config"):
            assert shipped.config == default.config

    @pytest.mark.parametrize("matrix", [bev_matrix(), FLIP, TURN], ids=["clean", "flip", "turn"])
    @pytest.mark.parametrize("num_boxes", [0, 1, 5])
    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_losses_are_finite_scalars(self, matrix: Any, num_boxes: int, batch_size: int) -> None:
        method = self.build()
        step = self.step(batch_size, num_boxes, matrix=matrix)
        losses = step.run(method)
        for name, loss in losses.items():
            assert name.startswith(f"{self.section['type']}/")
            assert loss.shape == ()
            assert loss.dtype == torch.float32
            assert loss.isfinite()
            assert loss >= 0
        if losses:
            torch.stack(list(losses.values())).sum().backward()
            for name in method.student_taps():
                gradient = step.student[name].grad
                assert (gradient is None) == (name in self.positions)
                if gradient is None:
                    continue
                assert gradient.isfinite().all()
                assert (gradient.abs().sum() > 0) or (self.blind_without_boxes and not num_boxes)
            for parameter in method.parameters():
                assert parameter.grad is not None
                assert parameter.grad.isfinite().all()

    def test_empty_scene_beside_a_full_one(self) -> None:
        method, step = self.build(), self.step()
        for group in (step.labels.boxes, step.labels.canonical_boxes, step.labels.classes):
            group[0] = group[0][:0]
        for target in step.targets.values():
            target.values[0] = 0
            if target.region_BYX is not None:
                target.region_BYX[0] = False
        assert all(loss.isfinite() for loss in step.run(method).values())

    def test_student_out_of_sight(self) -> None:
        """No cell of the target lies on the student's grid: nothing to learn, nothing breaks."""
        away = bev_matrix()
        away[0, 3] = 1e4
        method, step = self.build(), self.step(matrix=away)
        losses = step.run(method)
        assert all(float(loss.detach()) == 0 for loss in losses.values())

    def test_names_are_stable(self) -> None:
        method = self.build()
        names = list(self.step().run(method))
        for step in (self.step(1, 0), self.step(matrix=TURN), self.step(3, 9, seed=5)):
            assert list(step.run(method)) == names
            assert list(step.run(method, progress=1.0)) == names

    def test_half_precision(self) -> None:
        method, step = self.build(), self.step(matrix=TURN)
        exact = step.run(method)
        with torch.autocast("cpu", torch.bfloat16):
            step.student = {name: value.bfloat16() for name, value in step.student.items()}
            rounded = step.run(method)
        for name, loss in rounded.items():
            assert loss.dtype == torch.float32
            assert loss.isfinite()
            torch.testing.assert_close(loss, exact[name], rtol=0.1, atol=1e-3)

    def test_purity(self) -> None:
        """No random numbers, no change of inputs, parameters or modes; twice the same bits."""
        method, step = self.build(), self.step(matrix=TURN)
        method.eval()
        before = [tensor.detach().clone() for tensor in step.tensors()]
        state = {name: value.clone() for name, value in method.state_dict().items()}
        random_state = torch.get_rng_state()
        first = step.run(method)
        second = step.run(method)
        assert torch.equal(torch.get_rng_state(), random_state)
        for name in first:
            assert torch.equal(first[name], second[name])
        for old, new in zip(before, step.tensors(), strict=True):
            assert torch.equal(old, new)
        for name, value in method.state_dict().items():
            assert torch.equal(value, state[name])
        assert not method.training

    def test_weights_survive_a_checkpoint(self) -> None:
        method, other = self.build(seed=1), self.build(seed=2)
        other.load_state_dict(method.state_dict(), strict=True)
        step = self.step()
        method.eval()
        other.eval()
        for name, loss in step.run(method).items():
            assert torch.equal(loss, step.run(other)[name])

    def test_batch_is_the_mean_of_its_samples(self) -> None:
        method, step = self.build().eval(), self.step(3, matrix=TURN)
        assert isinstance(method, Method)
        singles = [step.sample(b).run(method) for b in range(3)]
        for name, loss in step.run(method).items():
            mean = torch.stack([single[name] for single in singles]).mean()
            torch.testing.assert_close(loss, mean, rtol=1e-5, atol=1e-7)

    def test_a_larger_batch_waits_no_more_often(self) -> None:
        """On a GPU, reading values back stops both sides; copying numbers there does, too."""
        method = self.build()
        found = []
        for batch_size in (2, 4, 4):
            step = self.step(batch_size, matrix=TURN)
            with Waits() as waits:
                step.run(method)
            found.append(waits)
        assert not found[2].copies
        assert len(found[2].reads) <= len(found[0].reads) + self.reads_a_sample * 2

    def perfect(self, step: Step) -> Step:
        """Return the step with a student whose adapted maps equal the teacher's."""
        return step

    def test_perfect_student_loses_nothing(self) -> None:
        method = self.build().eval()
        assert isinstance(method, Method)
        losses = self.perfect(self.step()).run(method)
        for name, loss in losses.items():
            if name.rpartition("/")[2] in self.perfect_terms:
                assert float(loss.detach()) == 0.0

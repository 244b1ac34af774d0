"""What every detector promises.

A plug-in's test inherits `CenterHeadContract`, or `DetectorContract` where the head is another,
sets `detector` and `config`, and fills `inputs`. If it remembers, it inherits `StreamContract` too.
"""

import itertools
from abc import ABC, abstractmethod
from typing import cast

import pytest
import torch

from bevcask.config import Config
from bevcask.detectors.base import Batch, Detector, Labels, Output
from bevcask.detectors.blocks.heads import CenterHead
from bevcask.geometry import CLASSES
from contracts.waiting import Waits


def boxes_of_all_classes(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Twenty boxes, two a class, 9 m apart or more, anywhere but on the diagonal x = y."""
    generator = torch.Generator().manual_seed(seed)
    spots = [
        (float(x), float(y))
        for x, y in itertools.product(range(-36, 37, 18), range(-36, 37, 9))
        if x != y
    ]
    chosen = torch.randperm(len(spots), generator=generator)[:20]
    boxes = torch.rand((20, 9), generator=generator)
    boxes[:, :2] = torch.tensor(spots)[chosen] + boxes[:, :2] - 0.5
    boxes[:, 2] -= 1.0
    boxes[:, 3:6] = 0.5 + 4 * boxes[:, 3:6]
    boxes[:, 6] = (boxes[:, 6] - 0.5) * 6.2
    boxes[:, 7:9] = (boxes[:, 7:9] - 0.5) * 20
    return boxes, torch.arange(20) % len(CLASSES)


def labels_of(*samples: tuple[torch.Tensor, torch.Tensor]) -> Labels:
    boxes = [sample[0] for sample in samples]
    return Labels(boxes, [sample[1] for sample in samples], boxes)


def no_boxes() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros((0, 9)), torch.zeros(0, dtype=torch.int64)


class DetectorContract(ABC):
    """Inherit and name the class `TestX`; keep the network small, the tests run many forwards.

    Attributes:
        unsaid: a perfect output gives boxes that are not there at most this score.
    """

    detector: type[Detector]
    config: Config
    unsaid = 0.5
    copies_numbers = False  # to the device in a step: foreign code may

    def make(self) -> Detector:
        """Build the detector with fixed weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.detector(self.config)

    @abstractmethod
    def inputs(self, num_samples: int, seed: int) -> Batch:
        """Return a batch without labels; sample i depends on seed + i alone."""

    @abstractmethod
    def perfect(self, detector: Detector, labels: Labels) -> Output:
        """Return the output a flawless network would give."""

    @abstractmethod
    def head_loss(self, detector: Detector, output: Output, labels: Labels) -> float:
        """Return the detection loss alone, without depth and other side losses."""

    @abstractmethod
    def test_rows_are_y_and_columns_are_x(self) -> None:
        """Show that what is at (x, y) changes the BEV maps there."""

    def batch(self, seed: int = 0) -> Batch:
        batch = self.inputs(2, seed)
        batch.labels = labels_of(boxes_of_all_classes(seed), boxes_of_all_classes(seed + 1))
        return batch

    def total(self, detector: Detector, output: Output, batch: Batch) -> torch.Tensor:
        return torch.stack(list(detector.loss(output, batch).values())).sum()

    def test_taps_are_as_described(self) -> None:
        detector = self.make()
        output = detector(self.inputs(2, 0))
        described = detector.describe_taps(self.config)
        tensors = {name for name, tap in described.items() if tap.kind != "box_set"}
        assert set(output.taps) == tensors
        for name in tensors:
            tap, values = described[name], output.taps[name]
            assert tap.name == name
            assert tuple(values.shape) == (2, *tap.shape), name
            if tap.grid is not None:
                assert tap.shape[-2:] == tap.grid.shape_YX, name

    def test_nonnegative_taps_are(self) -> None:
        detector = self.make()
        output = detector(self.inputs(2, 0))
        described = detector.describe_taps(self.config)
        for name, values in output.taps.items():
            assert bool((values >= 0).all()) or not described[name].nonnegative, name

    def test_perfect_output_decodes_to_the_boxes(self) -> None:
        detector = self.make()
        samples = [boxes_of_all_classes(1), no_boxes(), boxes_of_all_classes(2)]
        found = detector.decode(self.perfect(detector, labels_of(*samples)))
        for own, (boxes, classes) in zip(found, samples, strict=True):
            assert own.classes_N.dtype == torch.int64
            assert bool((own.scores_N[1:] <= own.scores_N[:-1]).all())
            said = own.scores_N > self.unsaid
            assert int(said.sum()) == len(boxes)
            for box, cls in zip(boxes, classes, strict=True):
                near = (own.boxes_N9[said, :2] - box[:2]).norm(dim=1).argmin()
                torch.testing.assert_close(own.boxes_N9[said][near], box, atol=1e-4, rtol=1e-4)
                assert own.classes_N[said][near] == cls

    def test_perfect_output_has_hardly_any_loss(self) -> None:
        detector = self.make()
        labels = labels_of(boxes_of_all_classes(1), boxes_of_all_classes(2))
        losses = self.head_loss(detector, self.perfect(detector, labels), labels)
        assert 0 <= losses < 0.1

    def test_loss_is_finite_with_and_without_boxes(self) -> None:
        detector = self.make()
        for samples in ([no_boxes(), no_boxes()], [no_boxes(), boxes_of_all_classes()]):
            batch = self.inputs(2, 0)
            batch.labels = labels_of(*samples)
            losses = detector.loss(detector(batch), batch)
            assert losses
            for name, value in losses.items():
                assert value.shape == (), name
                assert bool(value.isfinite()), name

    def test_gradients_reach_every_parameter(self) -> None:
        detector = self.make().train()
        silent = {name for name, own in detector.named_parameters() if own.requires_grad}
        for seed in range(4):  # signs of an L1 loss may cancel in a bias, but not every time
            detector.zero_grad()
            batch = self.batch(seed)
            self.total(detector, detector(batch), batch).backward()
            for name, own in detector.named_parameters():
                if own.requires_grad:
                    assert own.grad is not None, name
                    assert bool(own.grad.isfinite().all()), name
                    silent -= {name} if bool(own.grad.abs().sum() > 0) else set()
        assert not silent

    def test_boxes_off_the_grid_are_not_trained(self) -> None:
        detector = self.make().eval()
        batch = self.batch()
        assert batch.labels is not None
        far = torch.tensor([[80.0, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0, 0.0, 0.0]])
        output = detector(batch)
        before = self.total(detector, output, batch)
        boxes = [torch.cat([own, far]) for own in batch.labels.boxes]
        classes = [torch.cat([own, torch.tensor([0])]) for own in batch.labels.classes]
        batch.labels = Labels(boxes, classes, boxes)
        assert torch.equal(self.total(detector, output, batch), before)

    def test_same_input_gives_the_same_output(self) -> None:
        first, second = self.make().eval(), self.make().eval()
        with torch.inference_mode():
            outputs = [net(self.inputs(2, 3)) for net in (first, second, first)]
        for other in outputs[1:]:
            for name, values in outputs[0].taps.items():
                assert torch.equal(values, other.taps[name]), name

    def test_a_step_copies_no_numbers_to_the_device(self) -> None:
        """On a GPU the host would wait until all that the device was asked is done."""
        detector, batch = self.make().train(), self.batch()
        for _ in range(2):
            with Waits() as waits:
                self.total(detector, detector(batch), batch)
        assert bool(waits.copies) == self.copies_numbers
        assert self.copies_numbers or not {"linalg_inv", "inverse"} & set(waits.reads)

    def test_state_dict_round_trip(self) -> None:
        source, other = self.make(), self.make()
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.mul_(0.9)
        other.load_state_dict(source.state_dict())
        with torch.inference_mode():
            expected, got = (net.eval()(self.inputs(1, 0)) for net in (source, other))
        for name, values in expected.taps.items():
            assert torch.equal(values, got.taps[name]), name

    def test_samples_do_not_see_each_other_in_eval(self) -> None:
        detector = self.make().eval()
        with torch.inference_mode():
            both = detector(self.inputs(2, 5))
            alone = detector(self.inputs(1, 5))
            second = detector(self.inputs(1, 6))
        for name, values in both.taps.items():
            torch.testing.assert_close(values[:1], alone.taps[name], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(values[1:], second.taps[name], atol=1e-5, rtol=1e-4)

    def test_bfloat16_autocast_trains_and_decodes(self) -> None:
        detector = self.make().train()
        batch = self.batch()
        with torch.autocast("cpu", torch.bfloat16):
            output = detector(batch)
            total = self.total(detector, output, batch)
        total.backward()
        assert bool(total.isfinite())
        assert all(bool(p.grad.isfinite().all()) for p in detector.parameters() if p.requires_grad)
        for own in detector.decode(output):
            assert own.boxes_N9.dtype == torch.float32
            assert len(own.boxes_N9) <= 500

    def test_a_training_step_lowers_the_loss(self) -> None:
        detector = self.make().train()
        batch = self.batch()
        optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
        losses = []
        for _ in range(4):
            total = self.total(detector, detector(batch), batch)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(float(total.detach()))
        assert losses[-1] < losses[0]


class CenterHeadContract(DetectorContract):
    """What is also true of detectors whose head is `blocks.heads.CenterHead`."""

    unsaid = -1.0  # boxes that are not there are not given at all

    def perfect(self, detector: Detector, labels: Labels) -> Output:
        """Return the output a flawless network would give."""
        head = cast(CenterHead, detector.head)
        targets = head.targets(labels)
        num_samples, _, *shape_YX = targets.heatmap_BKYX.shape
        code = torch.zeros((num_samples, 6, 10, *shape_YX))
        rows_N, columns_N = targets.cells_N2.unbind(1)
        code[targets.sample_N, targets.task_N, :, rows_N, columns_N] = targets.code_NE
        preds = {"heatmap": torch.where(targets.heatmap_BKYX == 1, 8.0, -12.0), "code": code}
        return Output({"head.heatmap": head.probabilities(preds)}, preds)

    def head_loss(self, detector: Detector, output: Output, labels: Labels) -> float:
        """Return the detection loss alone, without depth and other side losses."""
        head = cast(CenterHead, detector.head)
        return sum(float(value) for value in head.loss(output.preds, labels).values())

    def test_heatmaps_are_probabilities_of_the_ten_classes(self) -> None:
        detector = self.make()
        output = detector(self.inputs(1, 0))
        described = detector.describe_taps(self.config)
        heatmaps = [name for name, tap in described.items() if tap.kind == "heatmap"]
        assert "head.heatmap" in heatmaps
        for name in heatmaps:
            assert described[name].classes == CLASSES
            values = output.taps[name]
            assert values.dtype == torch.float32
            assert bool(((values > 0) & (values < 1)).all())

    def test_rows_are_y_and_columns_are_x(self) -> None:
        detector = self.make()
        box = torch.tensor([[20.3, -10.2, 0.0, 4.0, 2.0, 1.5, 0.0, 0.0, 0.0]])
        output = self.perfect(detector, labels_of((box, torch.tensor([0]))))
        heatmap = output.taps["head.heatmap"][0, 0]
        grid = detector.describe_taps(self.config)["head.heatmap"].grid
        assert grid is not None
        row, column = divmod(int(heatmap.argmax()), heatmap.shape[1])
        assert grid.centres()[row, column] == pytest.approx([20.3, -10.2], abs=grid.cell)

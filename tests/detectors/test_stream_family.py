"""StreamPETR and RayDN keep the detector contract, sample by sample and frame by frame."""

from dataclasses import replace

import torch

from bevcask.detectors.base import Batch, Detector, Labels, Output
from bevcask.detectors.raydn import RayDN
from bevcask.detectors.stream_config import StreamConfig
from bevcask.detectors.stream_family import StreamDetector
from bevcask.detectors.streampetr import StreamPETR
from bevcask.geometry import CLASSES
from bevcask.targets.metric_code import encode_metric_boxes
from contracts.detector import DetectorContract
from contracts.stream import StreamContract
from detectors.small_stream import SMALL_PETR, SMALL_RAY, seen, small


class StreamFamilyContract(DetectorContract, StreamContract):
    config: StreamConfig

    def make(self) -> StreamDetector:
        return small(self.config)

    def inputs(self, num_samples: int, seed: int) -> Batch:
        return seen(num_samples, seed)

    def batch(self, seed: int = 0) -> Batch:
        """Return frames that go on with others: states of memory are modulated where there are any.

        Two boxes are large enough for the coarse levels of a head in the images.
        """
        batch = super().batch(seed)
        large = torch.tensor([[0.0, 6, 1.5, 9, 4, 9, 0, 0, 0], [-6.9, 4, 1.5, 5, 5, 5, 0, 0, 0]])
        assert batch.labels is not None
        boxes = [torch.cat([own, large]) for own in batch.labels.boxes]
        classes = [torch.cat([own, torch.tensor([1, 3])]) for own in batch.labels.classes]
        memory = self.make().eval()(self.inputs(2, seed + 7)).memory
        known = torch.tensor([True, True])
        return replace(batch, labels=Labels(boxes, classes, boxes), memory=memory, known_B=known)

    def perfect(self, detector: Detector, labels: Labels) -> Output:
        samples, rows = len(labels.boxes), self.config.rows
        logits = torch.full((2, samples, rows, len(CLASSES)), -12.0)
        codes = torch.zeros((2, samples, rows, 10))
        codes[..., 0] = 99.0
        for sample, (boxes, kinds) in enumerate(zip(labels.boxes, labels.classes, strict=True)):
            places = torch.arange(len(kinds))
            logits[:, sample, places, kinds] = 8.0
            codes[:, sample, places] = encode_metric_boxes(boxes)
        return Output({}, {"logits": logits, "codes": codes})

    def head_loss(self, detector: Detector, output: Output, labels: Labels) -> float:
        batch = replace(self.inputs(len(labels.boxes), 0), labels=labels)
        return sum(float(value) for value in detector.loss(output, batch).values())

    def test_rows_are_y_and_columns_are_x(self) -> None:
        """There is no BEV map; queries are where their centres say."""
        detector = self.make().eval()
        with torch.no_grad():
            detector.decoder.regress[-1].weight.zero_()
            detector.decoder.regress[-1].bias.zero_()
            detector.queries.references[0] = torch.tensor([0.9, 0.4, 0.5])
            output = detector(self.inputs(1, 0))
        centre = output.preds["codes"][0, 0, 0, :2]
        torch.testing.assert_close(centre, torch.tensor([0.8 * 51.2, -0.2 * 51.2]))


class TestStreamPETR(StreamFamilyContract):
    detector = StreamPETR
    config = SMALL_PETR


class TestRayDN(StreamFamilyContract):
    detector = RayDN
    config = SMALL_RAY

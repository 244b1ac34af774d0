"""The detector of CONTRIBUTING's example keeps the contract of those that remember."""

from pathlib import Path

import torch

from bevcask.detectors.base import Batch
from contracts.stream import StreamContract
from detectors.remembering import Remembering
from detectors.scenes import scan
from detectors.test_centerpoint import SMALL as CENTERPOINT

SMALL = CENTERPOINT.model_copy(update={"half_extent": 12.8})


class TestRemembering(StreamContract):
    detector = Remembering
    config = SMALL

    def make(self) -> Remembering:
        torch.manual_seed(0)
        return Remembering(SMALL)

    def inputs(self, num_samples: int, seed: int) -> Batch:
        return Batch(
            tokens=[str(seed + i) for i in range(num_samples)],
            bev_aug_B44=torch.eye(4).expand(num_samples, 4, 4),
            points=[scan(seed + i) for i in range(num_samples)],
        )


def test_the_example_of_contributing_is_this_detector() -> None:
    here = Path(__file__)
    guide = (here.parent.parent.parent / "CONTRIBUTING.md").read_text()
    shown = guide.split("Its author writes one frame:")[1].split("```")[1].splitlines()[1:]
    code = [line.strip() for line in here.with_name("remembering.py").read_text().splitlines()]
    lines = [line.strip() for line in shown if line.strip() not in ("", "...")]
    places = [code.index(line) for line in lines]
    assert len(lines) == 9
    assert places == sorted(places)

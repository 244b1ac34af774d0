"""StreamPETR and RayDN from frame to frame: what stands stays, lanes do not hear one another."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.detectors.base import Batch, Labels
from bevcask.detectors.memory import Stream
from bevcask.detectors.stream_family import StreamDetector
from bevcask.evaluation.detect import detect
from bevcask.geometry import ego_motion, transform_points
from contracts.detector import boxes_of_all_classes, labels_of
from contracts.stream import joined
from detectors.small_stream import SMALL_PETR, SMALL_RAY, pose, seen, small


@pytest.fixture(params=[SMALL_PETR, SMALL_RAY], ids=["streampetr", "raydn"])
def detector(request: pytest.FixtureRequest) -> StreamDetector:
    return small(request.param)


def frame(number: int, after: int | None = None) -> Batch:
    """Return a frame that goes on with another; it is called by its number."""
    return replace(seen(1, number), after=[None if after is None else str(after)])


def motion(then: int, now: int) -> Any:
    """Return the way from the augmented frame of one to that of the other."""
    aug = [seen(1, number).bev_aug_B44[0].double().numpy() for number in (then, now)]
    return ego_motion(aug[1], pose(now).numpy(), pose(then).numpy(), aug[0])


def certain_places(output: Any, kept: int) -> Tensor:
    """Return the centres of the queries that are to be remembered, surest first."""
    logits, codes = (output.preds[name][-1, 0] for name in ("logits", "codes"))
    return codes[logits.amax(1).topk(kept).indices, :3]


def test_what_stands_is_asked_for_where_it_stands(detector: StreamDetector) -> None:
    """Two frames later as well; the car drives and turns, no two BEV augmentations are alike."""
    config, stream, asked = detector.config, Stream(), []
    hook = detector.queries.register_forward_hook(
        lambda _m, given, found: asked.append((given[0], found))
    )
    first, second, third = 1, 4, 6
    bev = [seen(1, number).bev_aug_B44 for number in (first, second, third)]
    assert not any(torch.equal(bev[n], bev[n - 1]) for n in range(3))
    with torch.inference_mode():
        outputs = [
            stream.show(detector.eval(), frame(*keys))
            for keys in ((first,), (second, first), (third, second))
        ]
    hook.remove()
    kept, low, high = config.kept, detector.queries.low_3, detector.queries.high_3
    for now, number, begin, said, then in (
        (second, 1, 0, outputs[0], first),
        (third, 2, 0, outputs[1], second),
        (third, 2, kept, outputs[0], first),
    ):
        stood = certain_places(said, kept)
        wanted = torch.from_numpy(transform_points(stood.double().numpy(), motion(then, now)))
        assert float((wanted - stood).norm(dim=1).min()) > 1, "or nothing has moved"
        rows, query = asked[number]
        places = rows.places_BM3[0, begin : begin + kept]
        torch.testing.assert_close(places.double(), wanted, atol=2e-3, rtol=0)
        ages = torch.full((kept, 1), 0.5 * (now - then), dtype=torch.float64)
        torch.testing.assert_close(rows.ages_BM1[0, begin : begin + kept], ages)
        if not begin:
            own = query.references_BQ3[0, config.queries :] * (high - low) + low
            torch.testing.assert_close(own.double(), wanted[: config.propagated], atol=5e-3, rtol=0)


def test_two_lanes_are_one_lane_twice(detector: StreamDetector) -> None:
    """In training, with as many boxes as there are, and a scene that begins beside another."""
    lanes = ([frame(0), frame(1, 0), frame(2, 1)], [frame(7), frame(3), frame(4, 3)])
    boxes = [
        [(own[:count], kinds[:count]) for count in (3, 20, 0)]
        for own, kinds in (boxes_of_all_classes(lane) for lane in range(2))
    ]
    boxes[1].reverse()
    beside, alone = Stream(), [Stream(), Stream()]
    detector.train()
    for step in range(3):
        labels = [boxes[lane][step] for lane in range(2)]
        own = [told(lanes[lane][step], labels_of(labels[lane])) for lane in range(2)]
        both = beside.show(
            detector, told(joined([lane[step] for lane in lanes]), labels_of(*labels))
        )
        for lane in range(2):
            single = alone[lane].show(detector, own[lane])
            for name in ("logits", "codes"):
                torch.testing.assert_close(
                    both.preds[name][:, lane], single.preds[name][:, 0], atol=1e-5, rtol=1e-4
                )
            for name, remembered in single.memory.items():
                torch.testing.assert_close(
                    both.memory[name][lane], remembered[0], atol=1e-4, rtol=1e-4
                )


def test_scenes_side_by_side_are_evaluated_as_frame_after_frame(detector: StreamDetector) -> None:
    lanes = ([frame(0), frame(1, 0)], [frame(3), frame(4, 3)])
    cpu = torch.device("cpu")
    found = detect(detector, [joined([lane[step] for lane in lanes]) for step in range(2)], cpu)
    forgetful = detect(detector, [frame(1)], cpu)["1"]
    assert not torch.allclose(found["1"].scores_N, forgetful.scores_N, atol=1e-4)
    for lane in lanes:
        stream = Stream()
        for batch in lane:
            with torch.inference_mode():
                (own,) = detector.eval().decode(stream.show(detector, batch))
            both = found[batch.tokens[0]]
            torch.testing.assert_close(both.scores_N, own.scores_N, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(both.boxes_N9, own.boxes_N9, atol=1e-3, rtol=1e-4)


def told(batch: Batch, labels: Labels) -> Batch:
    return replace(batch, labels=labels)

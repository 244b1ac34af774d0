"""Memory is data: lanes do not leak, order is kept, a split run equals a whole one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from bevcask.config import Config
from bevcask.data.lanes import SceneSteps, in_lanes
from bevcask.data.samples import Key
from bevcask.detectors.base import Batch, Detections, Detector, Inputs, Labels, Output
from bevcask.detectors.memory import Stream, joined_states, rows_of, unroll, unroll_trained
from bevcask.errors import DataError
from bevcask.targets.spec import TapInfo

SCENES = [range(4), range(4, 9), range(9, 11), range(11, 15)]
SEEN = [frame - scene.start + 1 for scene in SCENES for frame in scene]


class Counts(Detector):
    """Remembers how many frames of its scene it has seen."""

    class Config(Config):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    @classmethod
    def inputs(cls, config: Any) -> Inputs:
        return Inputs(history=2, memory=True)

    @classmethod
    def describe_taps(cls, config: Any) -> Mapping[str, TapInfo]:
        return {}

    def forward(self, batch: Batch) -> Output:
        old = torch.zeros(len(batch.tokens)) if batch.memory is None else batch.memory["seen"]
        seen = old + self.weight
        return Output({"seen": seen}, memory={"seen": seen})

    def loss(self, output: Output, batch: Batch) -> dict[str, torch.Tensor]:
        return {}

    def decode(self, output: Output) -> list[Detections]:
        return []


def load(keys: list[Key], history: tuple[Batch, ...] = ()) -> Batch:
    return Batch(
        tokens=[f"{key.frame:032x}" for key in keys],
        bev_aug_B44=torch.eye(4).expand(len(keys), 4, 4),
        after=[f"{key.after:032x}" if key.after >= 0 else None for key in keys],
        history=history,
    )


def show(detector: Detector, stream: Stream, keys: list[Key]) -> list[float]:
    batch = stream.recall(load(keys))
    output = detector(batch)
    stream.keep(batch, output.memory)
    return output.taps["seen"].tolist()


@pytest.mark.parametrize("width", [1, 2, 3, 4, 9])
def test_lanes_do_not_leak(width: int) -> None:
    stream, said = Stream(), {}
    for keys in in_lanes(SCENES, width):
        said |= dict(zip((key.frame for key in keys), show(Counts(), stream, keys), strict=True))
    assert [said[frame] for frame in range(15)] == SEEN


def test_a_training_resumed_in_mid_scene_goes_on_exactly() -> None:
    steps, whole, cut = SceneSteps(SCENES, 7, 2, max_steps=60), Stream(), Stream()
    batches = list(steps)
    expected = [show(Counts(), whole, keys) for keys in batches]
    assert expected == [[float(SEEN[key.frame]) for key in keys] for keys in batches]
    for keys in batches[:31]:
        show(Counts(), cut, keys)
    again = Stream()
    again.load_state_dict(cut.state_dict())
    assert [show(Counts(), again, keys) for keys in batches[31:]] == expected[31:]


def test_a_frame_whose_predecessor_was_not_shown_is_refused() -> None:
    stream = Stream()
    show(Counts(), stream, [Key(0), Key(4)])
    show(Counts(), stream, [Key(1, after=0)])
    with pytest.raises(DataError, match=f"after frame {4:032x}"):
        stream.recall(load([Key(5, after=4)]))


def test_what_is_kept_has_no_gradient_and_does_not_change() -> None:
    stream, detector = Stream(), Counts()
    show(detector, stream, [Key(0)])
    batch = stream.recall(load([Key(1, after=0)]))
    assert batch.memory is not None
    before = batch.memory["seen"].clone()
    output = detector(batch)
    assert not batch.memory["seen"].requires_grad
    output.taps["seen"].sum().backward()
    assert torch.equal(batch.memory["seen"], before)


def test_what_is_kept_is_a_copy() -> None:
    """A detector may remember what it began with, which training then changes."""
    stream, start = Stream(), torch.nn.Parameter(torch.ones(1, 3))
    stream.keep(load([Key(0)]), {"start": start.expand(1, 3)})
    with torch.no_grad():
        start.zero_()
    memory = stream.recall(load([Key(1, after=0)])).memory
    assert memory is not None
    assert memory["start"].tolist() == [[1, 1, 1]]


def test_a_new_scene_has_no_memory_beside_one_that_goes_on() -> None:
    stream = Stream()
    show(Counts(), stream, [Key(0), Key(4)])
    batch = stream.recall(load([Key(5, after=4), Key(9)]))
    assert batch.memory is not None
    assert batch.known_B is not None
    assert batch.memory["seen"].tolist() == [1, 0]
    assert batch.known_B.tolist() == [True, False]
    assert stream.recall(load([Key(9)])).memory is None


def test_a_window_is_a_short_stream_that_starts_from_nothing() -> None:
    detector = Counts().train()
    history = load([Key(4), Key(11)]), load([Key(5, after=4), Key(12, after=11)])
    output = unroll(detector, load([Key(6, after=5), Key(13, after=12)], history))
    assert output.taps["seen"].tolist() == [3, 3]
    assert detector.training
    output.taps["seen"].sum().backward()
    assert detector.weight.grad is not None
    assert float(detector.weight.grad) == 2  # of the two current frames alone
    assert unroll(detector, load([Key(0)])).taps["seen"].tolist() == [1]


class Tells(Counts):
    """Notes how it is run; its loss is what it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, batch: Batch) -> Output:
        self.modes.append((self.training, torch.is_grad_enabled()))
        return super().forward(batch)

    def loss(self, output: Output, batch: Batch) -> dict[str, torch.Tensor]:
        return {"seen": output.taps["seen"].sum()}


def window(trained: int) -> Batch:
    """Return frames 4 to 7 of a scene as a window, of which so many are trained."""
    labels = Labels([torch.zeros(0, 9)], [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, 9)])
    history = [load([Key(frame, after=frame - 1 if frame > 4 else -1)]) for frame in (4, 5, 6)]
    frames = [*history, load([Key(7, after=6)])]
    shown = [
        replace(own, labels=labels if place >= 4 - trained else None)
        for place, own in enumerate(frames)
    ]
    return replace(shown[-1], history=tuple(shown[:-1]))


@pytest.mark.parametrize(("trained", "gradient"), [(1, 1.0), (2, 2.0), (4, 4.0)])
def test_frames_of_a_window_that_are_trained(trained: int, gradient: float) -> None:
    """Each counts from a memory without gradient: one count of its own is all that is learned."""
    detector = Tells().train()
    frames = unroll_trained(detector, window(trained))
    remembered = [(False, False)] * (4 - trained)
    assert detector.modes == remembered + [(True, True)] * trained
    assert [batch.tokens[0] for batch, _ in frames] == [
        f"{8 - trained + n:032x}" for n in range(trained)
    ]
    assert [own.taps["seen"].item() for _, own in frames] == list(range(5 - trained, 5))
    sum(own.taps["seen"].sum() for _, own in frames).backward()
    assert float(detector.weight.grad) == gradient
    whole = unroll(Tells(), window(trained)).taps["seen"]
    assert torch.equal(whole, frames[-1][1].taps["seen"])


class Hears(Counts):
    """Remembers the images it was shown."""

    def forward(self, batch: Batch) -> Output:
        old = torch.zeros(len(batch.tokens)) if batch.memory is None else batch.memory["seen"]
        assert batch.images_BVCHW is not None
        seen = 10 * old + batch.images_BVCHW.flatten(1).mean(1)
        return Output({"seen": seen}, memory={"seen": seen})


def shown_as(values: list[float], batch: Batch) -> Batch:
    images = torch.tensor(values).view(-1, 1, 1, 1, 1)
    return replace(batch, images_BVCHW=images)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_windows_that_share_a_frame_keep_it_apart(order: list[int]) -> None:
    """A scene's first two frames in one batch, each under colours of its own."""
    keys, colours = [Key(1, after=0), Key(0)], [1.0, 2.0]
    history = shown_as([colours[row] for row in order], load([Key(0), Key(0)]))
    frames = load([keys[row] for row in order], (history,))
    found = unroll(Hears(), shown_as([colours[row] + 2 for row in order], frames)).taps["seen"]
    assert found[order].tolist() == [13.0, 4.0]


def test_lanes_that_meet_in_a_frame_keep_it_apart() -> None:
    stream, detector = Stream(), Hears()
    stream.show(detector, shown_as([1.0, 2.0], load([Key(0), Key(0)])))
    state = stream.state_dict()
    stream = Stream()
    stream.load_state_dict(state)
    goes_on = load([Key(1, after=0), Key(1, after=0)])
    assert stream.show(detector, shown_as([3.0, 4.0], goes_on)).taps["seen"].tolist() == [
        13.0,
        24.0,
    ]


def test_a_stream_goes_on_on_another_number_of_ranks() -> None:
    state = {"memory": {"x": torch.arange(8.0).view(4, 2)}, "tokens": list("abcd"), "on_host": []}
    halves = [rows_of(state, rank, 2) for rank in (0, 1)]
    assert halves[1]["tokens"] == ["c", "d"]
    again = joined_states(halves)
    assert torch.equal(again.pop("memory")["x"], state["memory"]["x"])
    assert again == {"tokens": list("abcd"), "on_host": []}
    nothing = {"memory": {}, "tokens": [], "on_host": []}
    assert rows_of(joined_states([nothing, nothing]), 1, 2) == nothing

"""What every detector that remembers promises, beside `DetectorContract`.

A plug-in's test inherits `StreamContract` too: it shows what `inputs` gives frame by frame, as
whoever loops over time does.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.config import Config
from bevcask.data.lanes import in_lanes
from bevcask.data.samples import Key
from bevcask.detectors.base import Batch, Detector
from bevcask.detectors.memory import Stream, unroll
from bevcask.errors import DataError

SCENES = [range(2), range(2, 3), range(3, 6)]
Taps = dict[str, Tensor]


def joined(batches: list[Batch]) -> Batch:
    """Return batches without labels as one."""

    def join(values: list[Any]) -> Any:
        if isinstance(values[0], Tensor):
            return torch.cat(values)
        if isinstance(values[0], list):
            return [value for own in values for value in own]
        return values[0]

    names = [field.name for field in fields(Batch)]
    return Batch(**{name: join([getattr(own, name) for own in batches]) for name in names})


def same(one: Taps, other: Taps) -> None:
    """Compare what is said of a frame; where a tensor lies in memory decides its last bits."""
    assert one.keys() == other.keys()
    for name, values in one.items():
        torch.testing.assert_close(values, other[name], atol=1e-5, rtol=1e-4)


class StreamContract(ABC):
    """Inherit beside `DetectorContract`, whose `make` and `inputs` these tests use."""

    detector: type[Detector]
    config: Config

    @abstractmethod
    def make(self) -> Any:
        """Build the detector with fixed weights."""

    @abstractmethod
    def inputs(self, num_samples: int, seed: int) -> Batch:
        """Return a batch without labels; sample i depends on seed + i alone."""

    def shown(self, keys: list[Key]) -> Batch:
        """Return the frames of some keys, as a loader would."""
        frames = [
            replace(
                self.inputs(1, key.frame),
                tokens=[f"frame {key.frame}"],
                after=[f"frame {key.after}" if key.after >= 0 else None],
            )
            for key in keys
        ]
        return joined(frames)

    def walk(self, stream: Stream, steps: Iterator[list[Key]]) -> dict[int, Taps]:
        """Show some steps; return what is said of each frame."""
        detector, said = self.make().eval(), dict[int, Taps]()
        with torch.inference_mode():
            for keys in steps:
                taps = stream.show(detector, self.shown(keys)).taps
                for row, key in enumerate(keys):
                    said[key.frame] = {name: own[row].clone() for name, own in taps.items()}
        return said

    def test_it_says_that_it_remembers(self) -> None:
        assert self.detector.inputs(self.config).memory

    def test_a_frame_depends_on_the_one_before(self) -> None:
        steps = iter([[Key(0)], [Key(1, after=0)]])
        remembered = self.walk(Stream(), steps)[1]
        alone = self.walk(Stream(), iter([[Key(1)]]))[1]
        assert not all(torch.equal(remembered[name], alone[name]) for name in alone)

    def test_what_it_remembers_is_batch_first_and_its_own(self) -> None:
        detector, batch = self.make().train(), self.shown([Key(0), Key(3)])
        memory = detector(batch).memory
        assert memory
        stream = Stream()
        stream.keep(batch, memory)
        given = stream.recall(self.shown([Key(1, after=0), Key(4, after=3)])).memory
        assert given is not None
        for name, value in memory.items():
            assert len(value) == 2, name
            assert not given[name].requires_grad, name
            torch.testing.assert_close(given[name], value.detach())

    def test_a_new_scene_is_a_fresh_start(self) -> None:
        whole = self.walk(Stream(), in_lanes(SCENES, 1))
        for scene in SCENES:
            first = self.walk(Stream(), iter([[Key(scene.start)]]))[scene.start]
            same(whole[scene.start], first)

    def test_lanes_do_not_leak(self) -> None:
        alone = self.walk(Stream(), in_lanes(SCENES, 1))
        for width in (2, 3):
            beside = self.walk(Stream(), in_lanes(SCENES, width))
            assert beside.keys() == alone.keys()
            for frame, taps in alone.items():
                same(beside[frame], taps)

    def test_the_wrong_order_is_refused(self) -> None:
        stream = Stream()
        self.walk(stream, iter([[Key(0)]]))
        with pytest.raises(DataError, match="frame 1, which it was not shown just before"):
            self.walk(stream, iter([[Key(2, after=1)]]))

    def test_a_split_run_equals_a_whole_one(self) -> None:
        steps = list(in_lanes(SCENES, 2))
        whole = self.walk(Stream(), iter(steps))
        first, second = Stream(), Stream()
        self.walk(first, iter(steps[:2]))
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second.load_state_dict(torch.load(file, weights_only=True))
        before, after = (stream.state_dict()["memory"] for stream in (first, second))
        assert all(torch.equal(before[name], after[name]) for name in before)
        for frame, taps in self.walk(second, iter(steps[2:])).items():
            same(whole[frame], taps)

    def test_what_is_remembered_does_not_change_under_the_next_frame(self) -> None:
        """Nor do the inputs: what turns its memory in place turns somebody else's."""
        detector, stream = self.make().train(), Stream()
        stream.show(detector, self.shown([Key(0)]))
        kept = {name: own.clone() for name, own in stream.state_dict()["memory"].items()}
        batch = stream.recall(self.shown([Key(1, after=0)]))
        assert batch.memory is not None
        output = detector(batch)
        sum(own.float().square().sum() for own in output.taps.values()).backward()
        with torch.no_grad():
            for own in detector.parameters():
                own.add_(1.0)
        for name, value in kept.items():
            assert torch.equal(stream.state_dict()["memory"][name], value), name
            assert torch.equal(batch.memory[name], value), name

    def test_nothing_is_hidden_in_the_module(self) -> None:
        detector, stream = self.make().eval(), Stream()
        with torch.inference_mode():
            stream.show(detector, self.shown([Key(0)]))
            batch = stream.recall(self.shown([Key(1, after=0)]))
            first = detector(batch).taps
            detector(self.shown([Key(5)]))
            second = detector(batch).taps
        for name, values in first.items():
            assert torch.equal(values, second[name]), name

    def test_a_window_is_a_stream_that_begins_with_it(self) -> None:
        keys = [[Key(0)], [Key(1, after=0)], [Key(2, after=1)]]
        streamed = self.walk(Stream(), iter(keys))[2]
        *history, frame = map(self.shown, keys)
        with torch.inference_mode():
            window = unroll(self.make().eval(), replace(frame, history=tuple(history))).taps
        same({name: own[0] for name, own in window.items()}, streamed)

"""What every teacher promises.

A plug-in's test inherits `TeacherContract`, sets `section`, and fills `batch`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from bevcask.config import TeacherConfig, validate
from bevcask.detectors.base import Batch
from bevcask.errors import ConfigError, TargetMismatchError
from bevcask.fingerprint import canonical
from bevcask.targets.kinds import kind_of
from bevcask.teachers import build_teacher, find_teacher
from bevcask.teachers.base import Teacher


class TeacherContract(ABC):
    """Inherit and name the class `TestX`."""

    section: Mapping[str, Any]

    @abstractmethod
    def batch(self, num_samples: int) -> Batch:
        """Return a batch; sample i depends on i alone."""

    def make(self, seed: int = 3) -> Teacher:
        teacher = build_teacher(TeacherConfig.model_validate(dict(self.section)), seed)
        teacher.load("cpu")
        return teacher

    def test_it_says_exactly_what_its_taps_describe(self) -> None:
        teacher, batch = self.make(), self.batch(2)
        taps = teacher.taps()
        said = teacher(batch, list(taps))
        counted = {f"{name}.count" for name, tap in taps.items() if kind_of(tap).padded}
        assert set(taps) <= set(said) <= set(taps) | counted
        for name, tap in taps.items():
            assert name == tap.name
            assert tuple(said[name].shape) == (2, *tap.shape), name
            expected = torch.int64 if tap.kind == "track_ids" else torch.float32
            assert said[name].dtype == expected, name
            assert bool(torch.isfinite(said[name]).all()), name
            assert not (tap.nonnegative and bool((said[name] < 0).any())), name
            assert kind_of(tap) is not None

    def test_it_says_no_more_than_it_is_asked(self) -> None:
        teacher = self.make()
        name = next(iter(teacher.taps()))
        said = teacher(self.batch(1), [name])
        assert set(said) - {f"{name}.count"} == {name}

    def test_an_unknown_tap_is_refused_with_the_known_ones(self) -> None:
        teacher = self.make()
        with pytest.raises(TargetMismatchError) as caught:
            teacher(self.batch(1), ["bev.nowhere"])
        assert next(iter(teacher.taps())) in str(caught.value)

    def test_it_says_the_same_twice_and_keeps_no_gradient(self) -> None:
        teacher, batch = self.make(), self.batch(2)
        first, second = (teacher(batch, list(teacher.taps())) for _ in range(2))
        for name, values in first.items():
            assert torch.equal(values, second[name]), name
            assert not values.requires_grad

    def test_its_identity_is_plain_and_its_own(self) -> None:
        identity = self.make().fingerprint()
        assert {"type", "weights"} <= set(identity)
        assert json.loads(json.dumps(canonical(identity))) == canonical(identity)
        assert self.make().fingerprint() == identity

    def test_what_it_claims_unloaded_is_part_of_what_it_is(self) -> None:
        plugin, own = find_teacher(TeacherConfig.model_validate(dict(self.section)))
        identity = canonical(self.make().fingerprint())
        for key, value in canonical(plugin.claims(own)).items():
            assert identity[key] == value, key

    def test_a_key_it_does_not_have_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="no_such_key"):
            find_teacher(validate(TeacherConfig, {**self.section, "no_such_key": 1}, "teacher"))

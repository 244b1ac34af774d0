"""What every kind of target promises.

A kind's test inherits `KindContract`, sets `tap`, and gives good and broken values.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import replace

import numpy as np
import pytest
import torch

from bevcask.cache.layout import arrays_of, is_set
from bevcask.config import AugmentConfig, StoreConfig
from bevcask.errors import TargetMismatchError
from bevcask.targets.kinds import Kind, kind_of
from bevcask.targets.plan import plan
from bevcask.targets.spec import Need, TapInfo, TargetSpec

NOTHING = AugmentConfig()
PIXELS = AugmentConfig(image_flip=True)
FLIPS = AugmentConfig(bev_flip_x=True, bev_flip_y=True)
TURNS = AugmentConfig(bev_rotation=0.3925, bev_scale=(0.95, 1.05), bev_flip_x=True)


class KindContract(ABC):
    """Inherit, name the class `Test...`."""

    tap: TapInfo

    @abstractmethod
    def good(self) -> torch.Tensor:
        """Return values (2, *tap.shape) that are fine."""

    @abstractmethod
    def broken(self) -> dict[str, torch.Tensor]:
        """Return values that must be refused, by a word of the message."""

    @property
    def kind(self) -> Kind:
        return kind_of(self.tap)

    def test_description_is_fine(self) -> None:
        assert self.kind.describe_problems(self.tap) == []

    def test_good_values_pass(self) -> None:
        self.kind.check(self.tap, self.good())
        self.kind.check(self.tap, self.good()[:1])
        self.kind.check(self.tap, self.good()[:0])
        self.kind.check(self.tap, torch.zeros_like(self.good()))

    def test_broken_values_are_refused(self) -> None:
        assert self.broken()
        for word, values in self.broken().items():
            with pytest.raises(TargetMismatchError, match=word):
                self.kind.check(self.tap, values)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_not_finite_is_refused(self, bad: float) -> None:
        values = self.good()
        values.view(-1)[3] = bad
        with pytest.raises(TargetMismatchError, match="not finite"):
            self.kind.check(self.tap, values)

    def test_wrong_shape_and_dtype_are_refused(self) -> None:
        values = self.good()
        for wrong in (values[0], values[..., :-1], values[:, None]):
            with pytest.raises(TargetMismatchError, match="expected shape"):
                self.kind.check(self.tap, wrong)
        with pytest.raises(TargetMismatchError, match="floating point"):
            self.kind.check(self.tap, values.to(torch.int64))

    def test_wrong_description_is_refused(self) -> None:
        flat = replace(self.tap, shape=self.tap.shape[:-1])
        empty = replace(self.tap, shape=(0, *self.tap.shape[1:]))
        for wrong in (flat, empty):
            assert self.kind.describe_problems(wrong)

    def test_default_codec_is_one_it_knows(self) -> None:
        need = Need("role", self.tap.name, self.tap.kind)
        [spec, *_] = plan([need], {self.tap.name: self.tap}, 1, StoreConfig(), None).specs
        assert spec.codec in self.kind.codecs
        assert spec.codec == self.kind.codec(self.tap, spec.region)

    def test_bytes_are_those_of_the_stored_arrays(self) -> None:
        for codec in self.kind.codecs:
            spec = TargetSpec(replace(self.tap, nonnegative=True), codec)
            arrays = arrays_of(spec, num_rows=1)
            size = sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in arrays)
            assert self.kind.bytes_per_frame(spec) == size

    def test_padded_sets_have_a_count(self) -> None:
        assert self.kind.padded == is_set(TargetSpec(self.tap, self.kind.codecs[0]))

    def test_without_augmentation_it_is_exact(self) -> None:
        for augment in (None, NOTHING):
            assert self.kind.alignment(self.tap, augment) == "exact"

    def test_changed_pixels_are_never_exact(self) -> None:
        seen = replace(self.tap, depends_on_images=True)
        assert self.kind.alignment(seen, PIXELS) == "approximate"

    def test_spec_survives_json(self) -> None:
        spec = TargetSpec(self.tap, self.kind.codecs[0], alignment="aligned")
        assert TargetSpec.from_dict(spec.to_dict()) == spec

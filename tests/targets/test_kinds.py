"""All kinds keep the contract."""

import json
from dataclasses import replace

import pytest
import torch

from bevcask.errors import UnknownNameError
from bevcask.registry import KINDS
from bevcask.targets.kinds import kind_of
from bevcask.targets.spec import TapInfo, TargetSpec
from contracts.kind import FLIPS, PIXELS, TURNS, KindContract
from targets import test_map_kinds, test_moments, test_set_kinds


class TestPointSet(KindContract):
    tap = TapInfo("lidar.pixels", "point_set", (40, 5))

    def good(self) -> torch.Tensor:
        values = torch.rand(2, 40, 5) * torch.tensor([6.0, 1600.0, 900.0, 60.0, 80.0]) - 0.4
        values[..., [0, 4]] = values[..., [0, 4]].clamp(min=0).floor()
        values[..., 3] = values[..., 3].clamp(min=0)
        values[:, 30:] = 0
        return values

    def broken(self) -> dict[str, torch.Tensor]:
        camera, depth, box = self.good(), self.good(), self.good()
        camera[0, 0, 0], depth[0, 1, 3], box[1, 2, 4] = 6, -1, 0.5
        return {
            "cameras must be whole numbers below 6": camera,
            "depths must not be negative": depth,
            "boxes must be whole numbers": box,
        }

    def test_nothing_moves_it(self) -> None:
        for augment in (PIXELS, FLIPS, TURNS):
            assert self.kind.alignment(self.tap, augment) == "exact"

    def test_a_point_has_five_fields(self) -> None:
        wide = replace(self.tap, shape=(40, 6))
        assert "a point has 5 columns" in self.kind.describe_problems(wide)[0]


def test_every_kind_has_a_contract_test() -> None:
    modules = (globals(), vars(test_map_kinds), vars(test_set_kinds), vars(test_moments))
    tested = {
        value.tap.kind
        for module in modules
        for value in module.values()
        if isinstance(value, type) and issubclass(value, KindContract) and value is not KindContract
    }
    assert tested == set(KINDS)


def test_unknown_kind_is_named() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'heatmap'"):
        kind_of(TapInfo("x", "heatmaps", (1,)))


def test_bins_survive_json_and_leave_other_taps_as_they_were() -> None:
    tap = TapInfo("image.depth", "image_feature", (6, 2, 3, 5), bins=(1.5, 2.5))
    spec = TargetSpec(tap, "float16")
    assert spec.to_dict()["tap"]["bins"] == (1.5, 2.5)
    assert TargetSpec.from_dict(spec.to_dict()) == spec
    assert "bins" not in TargetSpec(test_map_kinds.TestImageFeature.tap, "float16").to_dict()["tap"]


def test_what_a_teacher_was_given_is_part_of_a_spec_and_of_no_other() -> None:
    tap = replace(test_map_kinds.TestDenseBEV.tap, given=("labels",), context="window of 2")
    spec = TargetSpec(tap, "uint8")
    assert spec.to_dict()["tap"]["given"] == ("labels",)
    assert TargetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert tap.reads == "window of 2, labels"
    plain = TargetSpec(test_map_kinds.TestDenseBEV.tap, "uint8")
    assert "given" not in plain.to_dict()["tap"]
    assert (plain.tap.reads, replace(tap, context="none").reads) == ("none", "labels")
    [problem] = kind_of(tap).describe_problems(replace(tap, given=("luck",)))
    assert "given 'luck', expected one of labels, future" in problem

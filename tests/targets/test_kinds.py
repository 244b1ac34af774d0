"""Kinds: checks, codecs, alignment classes, bytes."""

from dataclasses import replace

import pytest
import torch

from bevcask.config import AugmentConfig, StoreConfig
from bevcask.errors import PlanError, UnknownNameError
from bevcask.geometry import CLASSES, Grid
from bevcask.registry import KINDS
from bevcask.targets.kinds import kind_of
from bevcask.targets.plan import plan
from bevcask.targets.spec import Need, Region, TapInfo, TargetSpec
from contracts.kind import FLIPS, NOTHING, PIXELS, TURNS, KindContract

GRID = Grid.square(4.0, 1.0)


class TestDenseBEV(KindContract):
    tap = TapInfo("bev.neck", "dense_bev", (5, 8, 8), GRID, nonnegative=True)

    def good(self) -> torch.Tensor:
        return torch.rand(2, 5, 8, 8) * 30

    def broken(self) -> dict[str, torch.Tensor]:
        values = self.good()
        values[1, 2, 3, 4] = -1.0
        return {"declared non-negative, lowest value is -1": values}

    def test_sign_decides_the_codec(self) -> None:
        signed = replace(self.tap, nonnegative=False)
        assert self.kind.codec(self.tap, Region()) == "uint8"
        assert self.kind.codec(signed, Region()) == "int8"
        self.kind.check(signed, self.good() - 10)

    def test_classes_of_alignment(self) -> None:
        assert self.kind.alignment(self.tap, PIXELS) == "exact"
        assert self.kind.alignment(self.tap, FLIPS) == "exact"
        assert self.kind.alignment(self.tap, TURNS) == "aligned"
        ahead = replace(self.tap, grid=Grid(0.0, -4.0, 1.0, 8, 8))  # no flip permutes its cells
        assert self.kind.alignment(ahead, FLIPS) == "aligned"
        assert self.kind.alignment(ahead, PIXELS) == "exact"
        scaled = AugmentConfig(bev_scale=(0.9, 1.1))
        assert self.kind.alignment(self.tap, scaled) == "aligned"

    def test_grid_is_needed_and_must_fit(self) -> None:
        assert "needs a grid" in self.kind.describe_problems(replace(self.tap, grid=None))[0]
        wider = replace(self.tap, shape=(5, 8, 9))
        assert "does not fit its grid" in self.kind.describe_problems(wider)[0]

    def test_region_costs_a_bit_a_cell(self) -> None:
        whole = TargetSpec(self.tap, "float16")
        part = TargetSpec(self.tap, "float16", Region("confident", 0.1))
        assert self.kind.bytes_per_frame(part) - self.kind.bytes_per_frame(whole) == 64 // 8
        odd = replace(self.tap, shape=(5, 3, 3), grid=Grid.square(1.5, 1.0))
        assert (
            self.kind.bytes_per_frame(TargetSpec(odd, "float16", Region("confident", 0.1)))
            - self.kind.bytes_per_frame(TargetSpec(odd, "float16"))
            == 2
        )  # 9 bits


class TestHeatmap(KindContract):
    tap = TapInfo("head.heatmap", "heatmap", (10, 8, 8), GRID, True, CLASSES)

    def good(self) -> torch.Tensor:
        return torch.rand(2, 10, 8, 8)

    def broken(self) -> dict[str, torch.Tensor]:
        return {
            "non-negative": self.good() - 0.5,
            "must not exceed 1": self.good() + 0.5,
        }

    def test_classes_name_the_channels(self) -> None:
        assert "class name a channel" in " ".join(
            self.kind.describe_problems(replace(self.tap, classes=CLASSES[:3]))
        )
        assert "probabilities" in " ".join(
            self.kind.describe_problems(replace(self.tap, nonnegative=False))
        )

    def test_codec_by_region(self) -> None:
        assert self.kind.codec(self.tap, Region("confident", 0.1)) == "uint8"
        assert self.kind.codec(self.tap, Region()) == "float16"

    def test_a_byte_flips_thresholds_and_a_bit_does_not(self) -> None:
        """Why the region is stored as bits: a threshold on restored bytes disagrees."""
        generator = torch.Generator().manual_seed(0)
        values = torch.rand((1, 10, 256, 256), generator=generator) ** 8 * 0.83
        decided = values.amax(1) > 0.1
        scale = values.amax((2, 3), keepdim=True) / 255
        byte = (values / scale).round() * scale
        assert ((byte.amax(1) > 0.1) != decided).sum() > 10
        stored = torch.where(decided[:, None], byte, 0.0)
        assert (stored - values * decided[:, None]).abs().max() <= 0.5 / 255 + 1e-6


class TestBoxCode(KindContract):
    tap = TapInfo("head.codes", "box_code", (60, 8, 8), GRID)

    def good(self) -> torch.Tensor:
        return torch.randn(2, 60, 8, 8)

    def broken(self) -> dict[str, torch.Tensor]:
        return {"expected shape": torch.randn(2, 10, 8, 8)}

    def test_codes_move_in_closed_form(self) -> None:
        ahead = replace(self.tap, grid=Grid(0.0, -4.0, 1.0, 8, 8))  # no flip permutes its cells
        for tap in (self.tap, ahead):
            assert self.kind.alignment(tap, FLIPS) == "exact"
            assert self.kind.alignment(tap, TURNS) == "exact"

    def test_one_code_a_task_group(self) -> None:
        short = replace(self.tap, shape=(10, 8, 8))
        assert "take 60 channels, got 10" in self.kind.describe_problems(short)[0]

    def test_float32_whatever_the_store_says(self) -> None:
        need = Need("codes", "head.codes", "box_code", Region("centres"))
        taps = {"head.codes": self.tap}
        for codec in ("auto", "uint8", "int4", "float16"):
            [spec] = plan([need], taps, 1, StoreConfig(codec=codec), None).specs
            assert spec.codec == "float32"

    def test_stored_on_centres_or_everywhere(self) -> None:
        assert self.kind.regions(self.tap) == ("all", "centres")
        need = Need("codes", "head.codes", "box_code", Region("foreground"))
        with pytest.raises(PlanError, match="box_code cannot be stored on region 'foreground'"):
            plan([need], {"head.codes": self.tap}, 1, StoreConfig(), None)


class TestBoxSet(KindContract):
    tap = TapInfo("head.boxes", "box_set", (500, 11), classes=CLASSES)

    def good(self) -> torch.Tensor:
        boxes = torch.zeros(2, 500, 11)
        boxes[:, :7, :9] = torch.randn(2, 7, 9)
        boxes[:, :7, 3:6] = boxes[:, :7, 3:6].abs()
        boxes[:, :7, 9] = torch.linspace(0.9, 0.1, 7)
        boxes[:, :7, 10] = torch.arange(3, 10)
        return boxes

    def broken(self) -> dict[str, torch.Tensor]:
        cases = {
            "sizes must not be negative": (4, -1.0),
            r"scores must lie in \[0, 1\]": (9, 1.5),
            "whole numbers": (10, 2.5),
            "class 10 of a detector with 10": (10, 10.0),
        }
        broken = {}
        for word, (column, value) in cases.items():
            broken[word] = self.good()
            broken[word][1, 3, column] = value
        return broken

    def test_boxes_move_in_closed_form(self) -> None:
        assert self.kind.alignment(self.tap, TURNS) == "exact"

    def test_columns(self) -> None:
        assert "11 columns" in self.kind.describe_problems(replace(self.tap, shape=(500, 9)))[0]

    def test_always_float32(self) -> None:
        assert self.kind.codecs == ("float32",)


class TestQuerySet(KindContract):
    tap = TapInfo("query.last", "query_set", (90, 16))

    def good(self) -> torch.Tensor:
        return torch.randn(2, 90, 16)

    def broken(self) -> dict[str, torch.Tensor]:
        return {"expected shape": torch.randn(2, 90, 17)}

    def test_features_do_not_turn(self) -> None:
        assert self.kind.alignment(self.tap, FLIPS) == "approximate"
        assert self.kind.alignment(self.tap, TURNS) == "approximate"
        assert self.kind.alignment(self.tap, PIXELS) == "exact"


class TestQueryPlaces(KindContract):
    tap = TapInfo("query.places", "query_places", (10, 24))

    def good(self) -> torch.Tensor:
        return torch.rand(2, 10, 24)

    def broken(self) -> dict[str, torch.Tensor]:
        negative = self.good()
        negative[1, 3, 5] = -0.1
        return {"expected shape": torch.rand(2, 10, 23), "weights of places": negative}

    def test_places_beyond_the_border_are_lawful(self) -> None:
        outside = self.good()
        outside[0, 0, :2] = torch.tensor([-0.4, 1.7])
        self.kind.check(self.tap, outside)

    def test_columns_are_triples(self) -> None:
        [problem] = self.kind.describe_problems(replace(self.tap, shape=(10, 25)))
        assert "3 columns (x, y, weight), got 25" in problem

    def test_always_float32_and_followed_by_the_map(self) -> None:
        assert self.kind.codecs == ("float32",)
        assert self.kind.alignment(self.tap, FLIPS) == "aligned"
        assert self.kind.alignment(self.tap, PIXELS) == "exact"


class TestQueryPoints(KindContract):
    tap = TapInfo("query.offsets", "query_points", (10, 39))

    def good(self) -> torch.Tensor:
        return torch.randn(2, 10, 39)

    def broken(self) -> dict[str, torch.Tensor]:
        return {"expected shape": torch.rand(2, 10, 38)}

    def test_columns_are_triples(self) -> None:
        [problem] = self.kind.describe_problems(replace(self.tap, shape=(10, 40)))
        assert "3 columns (x, y, z), got 40" in problem

    def test_always_float32_and_moved_in_closed_form(self) -> None:
        assert self.kind.codecs == ("float32",)
        assert self.kind.alignment(self.tap, FLIPS) == "exact"
        assert self.kind.alignment(self.tap, TURNS) == "exact"
        seen = replace(self.tap, depends_on_images=True)
        assert self.kind.alignment(seen, PIXELS) == "approximate"


class TestImageFeature(KindContract):
    tap = TapInfo("image.fpn0", "image_feature", (6, 4, 3, 5), depends_on_images=True)

    def good(self) -> torch.Tensor:
        return torch.randn(2, 6, 4, 3, 5)

    def broken(self) -> dict[str, torch.Tensor]:
        return {"expected shape": torch.randn(2, 5, 4, 3, 5)}

    def test_only_pixels_matter(self) -> None:
        assert self.kind.alignment(self.tap, TURNS) == "exact"
        for augment in (
            AugmentConfig(resize=(-0.06, 0.11)),
            AugmentConfig(crop=True),
            AugmentConfig(image_flip=True),
            AugmentConfig(image_rotation=5.4),
        ):
            assert self.kind.alignment(self.tap, augment) == "approximate"
        assert self.kind.alignment(self.tap, NOTHING) == "exact"

    def test_it_must_admit_to_images(self) -> None:
        blind = replace(self.tap, depends_on_images=False)
        assert "depends_on_images" in self.kind.describe_problems(blind)[0]


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


class TestImageTransform(KindContract):
    tap = TapInfo("image_transform", "image_transform", (6, 3, 3))

    def good(self) -> torch.Tensor:
        return torch.eye(3).repeat(2, 6, 1, 1)

    def broken(self) -> dict[str, torch.Tensor]:
        return {"expected shape": torch.randn(2, 6, 3, 2)}

    def test_it_is_kept_to_the_bit(self) -> None:
        assert self.kind.codecs == ("float32",)
        assert self.kind.alignment(self.tap, TURNS) == "exact"


def test_every_kind_has_a_contract_test() -> None:
    tested = {
        value.tap.kind
        for value in globals().values()
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
    assert "bins" not in TargetSpec(TestImageFeature.tap, "float16").to_dict()["tap"]

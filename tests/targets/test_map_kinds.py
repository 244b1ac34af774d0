"""Kinds of maps: checks, codecs, alignment classes, bytes."""

from dataclasses import replace

import pytest
import torch

from bevcask.cache.quantize import dequantize, encode
from bevcask.config import AugmentConfig, StoreConfig
from bevcask.errors import PlanError, TargetMismatchError
from bevcask.geometry import CLASSES, Grid
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


class TestOccupancy(KindContract):
    tap = TapInfo(
        "occ.classes",
        "occupancy",
        (3, 2, 8, 8),
        GRID,
        True,
        ("road", "car", "free"),
        bins=(-1.0, 0.5),
    )

    def good(self) -> torch.Tensor:
        return torch.rand(2, 3, 2, 8, 8)

    def broken(self) -> dict[str, torch.Tensor]:
        return {"non-negative": self.good() - 0.5, "must not exceed 1": self.good() + 0.5}

    def test_classes_of_alignment(self) -> None:
        assert self.kind.alignment(self.tap, PIXELS) == "exact"
        assert self.kind.alignment(self.tap, FLIPS) == "exact"
        assert self.kind.alignment(self.tap, TURNS) == "aligned"

    def test_every_layer_has_its_height(self) -> None:
        for bins in ((), (0.5,), (0.5, -1.0)):
            [problem] = self.kind.describe_problems(replace(self.tap, bins=bins))
            assert "rising height of each of 2 layers" in problem

    def test_one_channel_needs_no_name(self) -> None:
        mask = replace(self.tap, shape=(1, 2, 8, 8), classes=())
        assert self.kind.describe_problems(mask) == []
        unnamed = self.kind.describe_problems(replace(self.tap, classes=()))
        assert "one class name a channel (3), got 0" in unnamed[0]

    def test_a_byte_keeps_a_mask_as_it_is(self) -> None:
        mask = replace(self.tap, shape=(1, 2, 8, 8), classes=())
        seen = (torch.rand(2, 1, 2, 8, 8) > 0.5).float()
        stored = encode(seen, TargetSpec(mask, self.kind.codec(mask, Region())))
        assert torch.equal(dequantize(stored.values, stored.scale), seen)

    def test_a_region_keeps_whole_columns(self) -> None:
        spec = TargetSpec(self.tap, "float32", Region("foreground"))
        box = torch.tensor([[0.5, 0.5, 0, 0.5, 0.5, 1, 0, 0, 0]])
        values = self.good()
        stored = encode(values, spec, boxes=[box, box[:0]])
        kept = torch.zeros(8, 8, dtype=torch.bool)
        kept[4, 4] = True
        assert stored.region is not None
        assert torch.equal(stored.region, torch.stack([kept, torch.zeros_like(kept)]))
        assert torch.equal(stored.values[0], values[0] * kept)
        assert not stored.values[1].any()


class TestVoxelLabels(KindContract):
    tap = TapInfo(
        "occ.labels",
        "voxel_labels",
        (1, 2, 8, 8),
        GRID,
        True,
        ("road", "car", "free"),
        bins=(-1.0, 0.5),
    )

    def good(self) -> torch.Tensor:
        return torch.randint(0, 3, (2, 1, 2, 8, 8)).float()

    def broken(self) -> dict[str, torch.Tensor]:
        return {
            "whole numbers": self.good() * 0.3 + 0.1,
            "label 3 of 3 classes": self.good().fill_(3),
        }

    def test_labels_are_judged_one_by_one_and_kept(self) -> None:
        spec = TargetSpec(self.tap, self.kind.codec(self.tap, Region()))
        values = self.good()
        stored = encode(values, spec)
        assert torch.equal(dequantize(stored.values, stored.scale), values)
        values[1, 0, 1, 3, 4] = 0.5
        with pytest.raises(TargetMismatchError, match=r"sample number 1 .* whole numbers"):
            encode(values, spec)

    def test_whatever_the_store_says(self) -> None:
        need = Need("labels", "occ.labels", "voxel_labels")
        for codec in ("auto", "uint4", "int8"):
            [spec] = plan([need], {"occ.labels": self.tap}, 1, StoreConfig(codec=codec), None).specs
            assert spec.codec == "float16"

    def test_description(self) -> None:
        two = replace(self.tap, shape=(2, 2, 8, 8))
        assert "labels have one channel, got 2" in self.kind.describe_problems(two)[0]
        for classes in ((), ("x",) * 2049):
            found = self.kind.describe_problems(replace(self.tap, classes=classes))
            assert "1 to 2048 classes" in found[0]

    def test_classes_of_alignment(self) -> None:
        assert self.kind.alignment(self.tap, FLIPS) == "exact"
        assert self.kind.alignment(self.tap, TURNS) == "aligned"


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


class TestImageTransform(KindContract):
    tap = TapInfo("image_transform", "image_transform", (6, 3, 3))

    def good(self) -> torch.Tensor:
        return torch.eye(3).repeat(2, 6, 1, 1)

    def broken(self) -> dict[str, torch.Tensor]:
        return {"expected shape": torch.randn(2, 6, 3, 2)}

    def test_it_is_kept_to_the_bit(self) -> None:
        assert self.kind.codecs == ("float32",)
        assert self.kind.alignment(self.tap, TURNS) == "exact"

"""Kinds of padded sets: checks, codecs, alignment classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bevcask.cache.quantize import dequantize, encode
from bevcask.config import StoreConfig
from bevcask.errors import TargetMismatchError
from bevcask.geometry import CLASSES
from bevcask.targets.plan import plan
from bevcask.targets.spec import Need, TapInfo, TargetSpec
from contracts.kind import FLIPS, PIXELS, TURNS, KindContract


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


class TestPolylines(KindContract):
    tap = TapInfo("map.lines", "polylines", (9, 8), classes=("divider", "crossing"))

    def good(self) -> torch.Tensor:
        lines = torch.zeros(2, 9, 8)
        lines[:, :4, :6] = 20 * torch.randn(2, 4, 6)
        lines[:, :4, 6] = torch.linspace(0.9, 0.1, 4)
        lines[:, :2, 7] = 1
        return lines

    def broken(self) -> dict[str, torch.Tensor]:
        cases = {
            r"scores must lie in \[0, 1\]": (6, 1.5),
            "whole numbers": (7, -1.0),
            "class 2 of a detector with 2": (7, 2.0),
        }
        broken = {word: self.good() for word in cases}
        for word, (column, value) in cases.items():
            broken[word][1, 3, column] = value
        return broken

    def test_points_move_in_closed_form(self) -> None:
        assert self.kind.codecs == ("float32",)
        for augment in (FLIPS, TURNS, PIXELS):
            assert self.kind.alignment(self.tap, augment) == "exact"

    def test_columns_are_pairs_and_two(self) -> None:
        for columns in (7, 4):
            found = self.kind.describe_problems(replace(self.tap, shape=(9, columns)))
            assert f"got {columns} columns" in found[0]


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


class TestQueryLayers(KindContract):
    tap = TapInfo("query.layers", "query_layers", (3, 9, 4))

    def good(self) -> torch.Tensor:
        return torch.randn(2, 3, 9, 4)

    def broken(self) -> dict[str, torch.Tensor]:
        return {"expected shape": torch.randn(2, 9, 3, 4)}

    def test_features_do_not_turn(self) -> None:
        assert self.kind.alignment(self.tap, FLIPS) == "approximate"
        assert self.kind.alignment(self.tap, PIXELS) == "exact"

    def test_each_layer_has_its_own_scale(self) -> None:
        values = self.good() * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
        stored = encode(values, TargetSpec(self.tap, "int8"))
        assert stored.scale is not None
        assert stored.scale.shape == (2, 3, 4)
        step = values.abs().amax(2, keepdim=True) / 127
        restored = dequantize(stored.values, stored.scale)
        assert ((restored - values).abs() <= 0.501 * step).all()
        assert np.array_equal(stored.numpy().floats(), restored.numpy())

    def test_the_count_is_of_queries(self) -> None:
        spec = TargetSpec(self.tap, "float16")
        assert encode(self.good(), spec).count.tolist() == [9, 9]  # type: ignore[union-attr]
        with pytest.raises(TargetMismatchError, match="counts 10 entries, it has 0 to 9"):
            encode(self.good(), spec, count=torch.tensor([9, 10]))


class TestTrackIds(KindContract):
    tap = TapInfo("query.tracks", "track_ids", (9,))

    def good(self) -> torch.Tensor:
        return torch.arange(18).reshape(2, 9) + 2**53

    def broken(self) -> dict[str, torch.Tensor]:
        return {"int64, got torch.float32": torch.zeros(2, 9)}

    def test_not_finite_is_refused(self) -> None:  # type: ignore[override]
        """No whole number is infinite."""

    def test_wrong_shape_and_dtype_are_refused(self) -> None:
        values = self.good()
        for wrong in (values[0], values[:, :-1], values[:, None]):
            with pytest.raises(TargetMismatchError, match="expected shape"):
                self.kind.check(self.tap, wrong)
        with pytest.raises(TargetMismatchError, match="int64"):
            self.kind.check(self.tap, values.int())

    def test_names_are_never_rounded(self) -> None:
        values = self.good()
        values[0, 0] = -1
        stored = encode(values, TargetSpec(self.tap, "int64"))
        assert dequantize(stored.values, stored.scale).dtype == torch.int64
        assert torch.equal(dequantize(stored.values, stored.scale), values)
        assert np.array_equal(stored.numpy().floats(), values.numpy())
        with pytest.raises(TargetMismatchError, match="int64"):
            encode(values.double(), TargetSpec(self.tap, "int64"))

    def test_whatever_the_store_says(self) -> None:
        need = Need("tracks", "query.tracks", "track_ids")
        for codec in ("auto", "int8", "float16"):
            [spec] = plan(
                [need], {"query.tracks": self.tap}, 1, StoreConfig(codec=codec), None
            ).specs
            assert spec.codec == "int64"
        for augment in (FLIPS, TURNS):
            assert self.kind.alignment(self.tap, augment) == "exact"


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

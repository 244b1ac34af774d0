"""Kinds of padded sets: checks, codecs, alignment classes."""

from dataclasses import replace

import torch

from bevcask.geometry import CLASSES
from bevcask.targets.spec import TapInfo
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

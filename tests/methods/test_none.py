"""The method that adds nothing."""

from collections.abc import Mapping
from typing import Any

from bevcask.geometry import Grid
from bevcask.methods import build_method
from bevcask.targets.spec import TapInfo
from contracts.method import MethodContract

GRID = Grid.square(4.0, 1.0)


class TestNone(MethodContract):
    section: Mapping[str, Any] = {"type": "none"}
    student: Mapping[str, TapInfo] = {"bev.neck": TapInfo("bev.neck", "dense_bev", (3, 8, 8), GRID)}
    teacher: Mapping[str, TapInfo] = {"bev.neck": TapInfo("bev.neck", "dense_bev", (3, 8, 8), GRID)}

    def test_it_costs_nothing(self) -> None:
        method = build_method(self.section)
        assert method.needs() == []
        assert list(method.parameters()) == []
        assert self.step().run(self.build()) == {}

"""What is advised where a cache lacks what a method reads."""

import shlex
from types import SimpleNamespace
from typing import Any

import pytest

from bevcask.compose import compose
from bevcask.geometry import Grid
from bevcask.methods import build_method
from bevcask.targets.spec import Need, TapInfo, TargetSpec
from bevcask.training import teaching
from bevcask.verbs import DistillConfig, ExtractConfig

MADE = "bevcask teacher-extract c.zarr teacher=raydn_tiny store.views=0 augment.crop=true part=1/2"


class OneCache(list[Any]):
    """A cache of clean frames that holds one tap, as `Caches` shows it."""

    def __init__(self, tap: TapInfo) -> None:
        self.specs = {tap.name: TargetSpec(tap, "int8")}
        super().__init__([SimpleNamespace(specs=self.specs, plan={}, provenance={"command": MADE})])


def advice(tap: TapInfo, *words: str) -> list[str]:
    config = compose(DistillConfig, ["cache=c.zarr", "method=harmodistill", *words])
    method = SimpleNamespace(needs=lambda: [Need("own", tap.name, tap.kind)])
    return teaching._how_to_add(OneCache(tap), method, config)


def test_views_are_added_by_the_command_of_the_cache_with_the_students_ranges() -> None:
    tap = TapInfo("image.level0", "image_feature", (6, 4, 8, 8), depends_on_images=True)
    said = advice(
        tap, "augment.grid_mask=0.7", "augment.resize=[-0.1,0.2]", "augment.bev_scale=[1,2]"
    )
    assert said[0].startswith("This adds four views of each frame")
    verb = shlex.split(said[1])[1:]
    assert verb[:3] == ["teacher-extract", "c.zarr", "teacher=raydn_tiny"]
    assert verb[3:] == ["store.views=4", "augment.resize=[-0.1,0.2]", "augment.grid_mask=0.7"]
    assert compose(ExtractConfig, verb[2:]).augment.resize == (-0.1, 0.2)


@pytest.mark.parametrize(
    "tap",
    [
        TapInfo("bev.neck", "dense_bev", (4, 8, 8), None),
        TapInfo(
            "image.level0", "image_feature", (6, 4, 8, 8), depends_on_images=True, context="scene"
        ),
    ],
)
def test_nothing_is_advised_where_views_change_nothing(tap: TapInfo) -> None:
    assert advice(tap, "augment.image_flip=true") == []


def test_no_views_are_advised_to_a_student_that_sees_frames_as_they_are() -> None:
    tap = TapInfo("image.level0", "image_feature", (6, 4, 8, 8), depends_on_images=True)
    assert advice(tap, "augment.bev_flip_x=true") == []


@pytest.mark.parametrize(("cell", "said"), [(0.8, False), (0.4, True)])
def test_maps_that_are_read_at_other_cells_are_named_once(
    cell: float, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    method = build_method({"type": "tigdistill"})
    (pair,) = [own for own in method.pairs() if own.student and own.kind == "dense_bev"]
    maps = [
        TapInfo(str(name), "dense_bev", (4, 8, 8), Grid.square(51.2, own), nonnegative=True)
        for name, own in ((pair.student, cell), (pair.teacher, 0.8))
    ]
    caplog.set_level("INFO")
    teaching.mention_cells(
        method, {maps[0].name: maps[0]}, {maps[1].name: TargetSpec(maps[1], "uint8")}
    )
    fine, coarse = "256 x 256 cells of 0.4 m", "128 x 128 cells of 0.8 m"
    told = f"{pair.student} ({fine}) for {pair.teacher} ({coarse})"
    assert caplog.text.count(told) == said
    assert len(caplog.messages) == said

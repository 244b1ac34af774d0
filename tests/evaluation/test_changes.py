"""The lines that are named make of a wrong manifest the right one."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from bevcask.evaluation.box_readings import judge_boxes
from bevcask.evaluation.changes import changes, changes_of
from bevcask.evaluation.map_readings import Truth, judge_maps
from bevcask.evaluation.readings import SYMMETRIES, Finding, matrices, undecided
from bevcask.geometry import BOX_FIELDS, CLASSES
from bevcask.spool.manifest import Manifest
from bevcask.spool.reading import canonical

RANDOM = np.random.default_rng(0)
MAP, BOXES = "bev.neck", "head.boxes"
COLUMNS = [*BOX_FIELDS, "score", "label"]
YAWS = list(itertools.product(("x", "y", "-x", "-y"), ("counterclockwise", "clockwise")))
ORDERS = [
    axes
    for x, y in itertools.product(("X", "-X"), ("Y", "-Y"))
    for axes in (["C", y, x], [x, y, "C"])
]


def truth() -> list[Truth]:
    frames = []
    for _ in range(4):
        boxes_N9 = RANDOM.uniform(-40, 40, (30, 9))
        boxes_N9[:, 2] = 0
        boxes_N9[:, 3:6] = RANDOM.uniform([4, 2, 1], [6, 3, 1.5], (30, 3))
        boxes_N9[:, 6] = RANDOM.uniform(-3, 3, 30)
        boxes_N9[:, 7:9] = RANDOM.uniform(-9, 9, (30, 2))
        frames.append(Truth(boxes_N9, np.arange(30) % 10))
    return frames


FRAMES = truth()


def manifest(**said: Any) -> Manifest:
    taps = {
        MAP: {
            "kind": "dense_bev",
            "shape": [64, 64, 1] if said.get("axes", "C")[-1] == "C" else [1, 64, 64],
            "axes": said.pop("axes", ["C", "Y", "X"]),
            "grid": said.pop("grid", {"x_min": -51.2, "y_min": -51.2, "cell": 1.6}),
        },
        BOXES: {"kind": "box_set", "shape": [500, 11]},
    }
    classes = said.pop("classes", CLASSES)
    return Manifest.model_validate({"taps": taps, "boxes": said, "classes": classes})


def energy(said: Manifest) -> list[Any]:
    """Return maps that are loud at objects, as a teacher would write them that says this."""
    tap, found = said.tap(MAP), []
    assert tap.grid is not None
    letters = [axis[-1] for axis in said.taps[MAP].axes]
    for own in FRAMES:
        map_YX = RANDOM.random((64, 64)) * 0.2
        column, row = tap.grid.to_cells(own.boxes_N9[:, :2]).astype(int).T
        map_YX[row, column] += 3.0
        map_CYX = torch.from_numpy(gaussian_filter(map_YX, 1.5))[None]
        value = map_CYX.permute(["CYX".index(axis) for axis in letters])
        against = [place for place, axis in enumerate(said.taps[MAP].axes) if axis[0] == "-"]
        found.append({MAP: value.flip(against)})
    return found


def judged_map(recorded: list[Any], said: Manifest) -> list[Finding]:
    tap = said.tap(MAP)
    assert tap.grid is not None
    maps = [canonical(own, said, [MAP])[MAP][0].numpy() for own in recorded]
    return judge_maps(MAP, maps, tap.grid, FRAMES)


@pytest.mark.parametrize("axes", ORDERS, ids="".join)
def test_axes_in_every_order(axes: list[str]) -> None:
    right = manifest(axes=axes)
    wrong = manifest(axes=["X", "-Y", "C"] if axes[-1] == "C" else ["C", "X", "-Y"])
    lines, _ = changes(wrong, judged_map(energy(right), wrong))
    assert lines.get(f"taps.{MAP}.axes", list(wrong.taps[MAP].axes)) == axes
    assert len(lines) <= 1


def test_axes_grid_and_shift_at_once() -> None:
    grid = {"x_min": -52.8, "y_min": -51.2, "cell": 1.6}
    recorded = energy(manifest(axes=["C", "Y", "-X"], grid=grid))
    said = manifest(axes=["C", "X", "Y"], grid={"x_min": -64, "y_min": -64, "cell": 2})
    lines, _ = changes(said, judged_map(recorded, said))
    assert lines.pop(f"taps.{MAP}.axes") == ["C", "Y", "-X"]
    assert {key.rpartition(".")[2]: value for key, value in lines.items()} == grid


def mended(right: Manifest, wrong: Manifest) -> tuple[dict[str, Any], list[str]]:
    """Return what is named where boxes were written as one says and read as the other does."""
    zero, turns = right.boxes.yaw_zero, right.boxes.yaw_turns
    rows = []
    for own in FRAMES:
        x, y, z, length, width, height, yaw, vx, vy = own.boxes_N9.T
        yaw = yaw - math.radians({"x": 0, "y": 90, "-x": 180, "-y": 270}[zero])
        yaw = -yaw if turns == "clockwise" else yaw
        z = z - height / 2 if right.boxes.z == "bottom" else z
        label = np.array([right.classes.index(CLASSES[k]) for k in own.classes_N])
        said = [x, y, z, length, width, height, yaw, vx, vy, np.ones(30), label]
        columns = dict(zip(COLUMNS, said, strict=True))
        rows.append(torch.from_numpy(np.stack([columns[own] for own in right.boxes.columns], 1)))
    read = [canonical({BOXES: own}, wrong, [BOXES])[BOXES].double().numpy() for own in rows]
    return changes(wrong, judge_boxes(BOXES, read, FRAMES)[0])


@pytest.mark.parametrize(("zero", "turns"), YAWS)
def test_yaws_of_every_convention(zero: str, turns: str) -> None:
    right = manifest(yaw_zero=zero, yaw_turns=turns)
    wrong = manifest(yaw_zero="-y", yaw_turns="clockwise")
    lines, remarks = mended(right, wrong)
    expected = {"boxes.yaw_zero": zero, "boxes.yaw_turns": turns}
    said = {"boxes.yaw_zero": "-y", "boxes.yaw_turns": "clockwise"}
    assert said | lines == expected
    assert not remarks


def test_boxes_of_which_nothing_is_as_declared() -> None:
    columns = ["y", "x", "z", "w", "h", "l", "yaw", "vy", "vx", "score", "label"]
    classes = [*CLASSES[4:], *CLASSES[:4]]
    right = manifest(columns=columns, z="bottom", classes=classes)
    lines, remarks = mended(right, manifest(yaw_zero="y", classes=[*CLASSES[3:], *CLASSES[:3]]))
    assert lines.pop("classes") == classes
    assert lines == {"boxes.columns": columns, "boxes.z": "bottom", "boxes.yaw_zero": "x"}
    assert not remarks


def finding(target: str, what: str, meant: Any, **said: Any) -> Finding:
    verdict = "ok" if meant is None else "wrong"
    own = {"best": ("this",), "declared_score": 1.0, "best_score": 0.0, "boxes": 20} | said
    return Finding(target, what, verdict, **own, meant=meant)


@pytest.mark.parametrize("other", [None, [2, 0, 1]])
def test_one_line_for_targets_that_disagree_is_left(other: Any) -> None:
    said = manifest()
    found = [finding(BOXES, "size", [1, 0, 2]), finding("other.boxes", "size", other)]
    lines, remarks = changes(said, found)
    assert not lines
    assert "written by the same line" in remarks[0]
    assert changes(said, [found[0], finding("other.boxes", "size", [1, 0, 2])])[0]
    assert changes(said, [found[0], undecided("other.boxes", "size", "square")])[0]


def test_boxes_that_all_head_backwards_agree() -> None:
    found = [
        own
        for target in (BOXES, "other.boxes")
        for own in (finding(target, "heading", (1, 180)), finding(target, "yaw", None))
    ]
    assert changes(manifest(), found) == ({"boxes.yaw_zero": "-x"}, [])


def test_what_did_not_come_from_a_spool_has_no_manifest() -> None:
    teacher, found = {"type": "centerpoint"}, finding(BOXES, "size", [1, 0, 2])
    assert changes_of(teacher, [finding(BOXES, "size", None)]) == ({}, [])
    lines, (remark,) = changes_of(teacher, [found])
    assert not lines
    assert remark.startswith("no manifest to change: the teacher is centerpoint, no spool")


@pytest.mark.parametrize("what", ["place", "velocity"])
def test_no_line_mirrors_boxes(what: str) -> None:
    for name in SYMMETRIES.keys() - {"as declared", "x and y swapped"}:
        lines, remarks = changes(manifest(), [finding(BOXES, what, matrices()[name])])
        assert not lines
        assert "no line of the manifest turns or mirrors" in remarks[0]


def test_a_height_that_no_line_says() -> None:
    lines, (remark,) = changes(manifest(z="bottom"), [finding(BOXES, "z", 0.5)])
    assert not lines
    assert "boxes.z is bottom already" in remark
    found = [finding(BOXES, "size", [2, 1, 0]), finding(BOXES, "z", -0.5)]
    lines, (remark,) = changes(manifest(z="bottom"), found)
    assert lines.keys() == {"boxes.columns"}
    assert "look again" in remark


def test_readings_that_fit_alike_are_said() -> None:
    found = finding(BOXES, "yaw", (1, -90), note="or that and 180 degrees")
    lines, (remark,) = changes(manifest(yaw_zero="y"), [found])
    assert lines == {"boxes.yaw_zero": "x"}
    assert remark == f"{BOXES}, yaw: that and 180 degrees cannot be told from what is named."

"""A reading is right, wrong or undecided: the rules, on numbers made up for them."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bevcask.evaluation.box_readings import judge_boxes
from bevcask.evaluation.map_readings import Truth, judge_maps
from bevcask.evaluation.readings import DECLARED, class_order, decide
from bevcask.geometry import CLASSES, Grid

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.random(100)


@pytest.mark.parametrize(
    ("declared", "other", "believable", "verdict"),
    [
        (NOISE, NOISE + 1, 2.0, "ok"),
        (NOISE + 1, NOISE, 2.0, "wrong"),
        (NOISE, NOISE, 2.0, "undecided"),  # the same
        (NOISE, RANDOM.random(100), 2.0, "undecided"),  # the same but for chance
        (NOISE + 1, NOISE * 0.98 + 1 - 0.001, 2.0, "undecided"),  # surely better, by little
        (NOISE + 2, NOISE + 1, 1.0, "undecided"),  # better, and not good
        (NOISE + 1, NOISE + 2, 1.0, "undecided"),
        (NOISE[:9], NOISE[:9] + 1, 2.0, "undecided"),  # too few
    ],
)
def test_verdicts(declared: np.ndarray, other: np.ndarray, believable: float, verdict: str) -> None:
    found = decide("t", "what", {DECLARED: declared, "other": other}, believable)
    assert found.verdict == verdict
    assert bool(found.note) == (verdict == "undecided")


def test_readings_that_are_alike_are_both_named() -> None:
    errors = {DECLARED: NOISE + 1, "one": NOISE, "other": NOISE}
    found = decide("t", "what", errors)
    assert (found.verdict, set(found.best)) == ("undecided", {"one", "other"})
    assert found.suspicious
    found = decide("t", "what", errors, graded=True)
    assert (found.verdict, set(found.best)) == ("wrong", {"one", "other"})


@pytest.mark.parametrize(
    ("what", "best", "believable", "words"),
    [
        ("axes", 0.0, -0.3, "energy in true boxes is 0.00 deviations above the rest, 0.30 would"),
        ("place", 3.5, 3.2, "the nearest box is 3.50 m from a true one, 3.20 m would do"),
        ("size", 0.8, 0.5, "sizes overlap with the true ones by 20%, 50% would do"),
        ("yaw", 0.8, 0.6, "boxes are turned by 46 degrees, 34 would do"),
    ],
)
def test_what_does_not_fit_says_by_how_much(
    what: str, best: float, believable: float, words: str
) -> None:
    found = decide("t", what, {DECLARED: np.full(10, best)}, believable)
    assert found.verdict == "undecided"
    assert words in found.note
    assert "check the teacher's weights" in found.note


def test_two_classes_that_are_exchanged_are_named() -> None:
    classes_N = np.repeat(np.arange(10), 30)
    labels_N = classes_N.copy()
    labels_N[classes_N == 1], labels_N[classes_N == 3] = 3, 1
    found, order = class_order("t", np.eye(10)[labels_N], classes_N)
    assert found.verdict == "wrong"
    assert found.best == ("classes exchanged: truck is bus, bus is truck",)
    assert [CLASSES[k] for k in order[[1, 3]]] == ["bus", "truck"]


def truth() -> list[Truth]:
    place = RANDOM.uniform(-40, 40, (8, 30, 2))
    sizes = [4.0, 4.0, 1.5]
    frames = []
    for xy in place:
        boxes = np.zeros((30, 9))
        boxes[:, :2], boxes[:, 3:6] = xy, sizes
        boxes[:, 6] = RANDOM.uniform(-3, 3, 30)
        frames.append(Truth(boxes, np.zeros(30, np.int64)))
    return frames


def test_boxes_and_maps_of_a_teacher_that_knows_nothing_are_undecided() -> None:
    frames = truth()
    rows = [
        np.concatenate([RANDOM.uniform(-40, 40, (90, 2)), np.ones((90, 7)), np.zeros((90, 2))], 1)
        for _ in frames
    ]
    found, _ = judge_boxes("t", rows, frames)
    assert [own.verdict for own in found] == ["undecided"]
    energy = [RANDOM.random((64, 64)) for _ in frames]
    found = judge_maps("t", energy, Grid.square(51.2, 1.6), frames)
    assert [own.verdict for own in found] == ["undecided"]


def test_square_boxes_have_no_length() -> None:
    frames = truth()
    rows = [
        np.concatenate([own.boxes_N9, np.ones((30, 1)), own.classes_N[:, None]], 1)
        for own in frames
    ]
    found, best = judge_boxes("t", rows, frames)
    verdicts = {own.what: own for own in found}
    assert verdicts["size"].verdict == "undecided"
    assert verdicts["size"].best == (DECLARED, "l and w exchanged")
    assert verdicts["yaw"].verdict == "ok"
    assert best.size == (0, 1, 2)


def test_what_is_found_takes_back_what_was_done_to_boxes() -> None:
    """A frame turned by 90 degrees, mmdet3d's yaw below 1.0, l and w, bottoms, labels, units."""
    frames, rows = [], []
    for xy in RANDOM.uniform(-40, 40, (8, 30, 2)):
        x, y = xy.T
        length, width, height = 4 + RANDOM.random(30), 2 + RANDOM.random(30), np.full(30, 1.5)
        yaw, (vx, vy) = RANDOM.uniform(-3, 3, 30), RANDOM.uniform(-9, 9, (2, 30))
        z, score = np.zeros(30), np.ones(30)
        classes = np.arange(30) % 10
        true = [x, y, z, length, width, height, yaw, vx, vy]
        frames.append(Truth(np.stack(true, 1), classes))
        said = [
            -y, x, z - height / 2, width, length, height, -yaw - np.pi / 2,
            -vy / 0.5, vx / 0.5, score, (classes + 4) % 10,
        ]  # fmt: skip
        rows.append(np.stack(said, 1))
    found, best = judge_boxes("t", rows, frames, [0.5])
    wrong = {own.what: own.best for own in found if own.verdict == "wrong"}
    assert wrong == {
        "place": ("turned by 90 degrees",),
        "classes": ("class order rotated by 4",),
        "size": ("l and w exchanged",),
        "z": ("z of the bottom, taken for the centre",),
        "yaw": ("sign flipped and turned by -90 degrees",),
        "velocity": ("turned by 90 degrees",),
        "speed": ("grid cells of 0.5 m a second",),
    }
    for own, true in zip(rows, frames, strict=True):
        meant = best.apply(own)
        turns = (meant[:, 6] - true.boxes_N9[:, 6]) / (2 * np.pi)
        np.testing.assert_allclose(turns, turns.round(), atol=1e-9)
        meant[:, 6] = true.boxes_N9[:, 6]
        np.testing.assert_allclose(meant[:, :9], true.boxes_N9, atol=1e-9)
        assert (meant[:, 10] == true.classes_N).all()


@pytest.mark.parametrize(
    ("cells", "name"),
    [
        ((2, 0), "the grid lies 2 cells to -x"),
        ((0, -1), "the grid lies a cell to +y"),
        ((-1, -1), "the grid lies a cell to +x and +y"),
    ],
)
def test_a_shift_is_followed_beyond_half_a_cell(cells: tuple[int, int], name: str) -> None:
    grid, frames, energy = Grid.square(51.2, 1.6), truth(), []
    for own in frames:
        map_YX = RANDOM.random((64, 64)) * 0.2
        column, row = grid.to_cells(own.boxes_N9[:, :2]).astype(int).T
        map_YX[row, column] += 3.0
        smooth = gaussian_filter(map_YX, 1.5)
        energy.append(np.roll(smooth, cells[::-1], axis=(0, 1)))
    wrong = {
        own.what: own for own in judge_maps("t", energy, grid, frames) if own.verdict == "wrong"
    }
    assert wrong["shift"].best == (name,)

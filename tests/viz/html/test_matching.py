"""What is missed and what is none: within a class, best first, two metres."""

import numpy as np

from bevcask.viz.html.matching import match


def boxes(*places: tuple[float, float]) -> np.ndarray:
    rows = np.zeros((len(places), 9))
    rows[:, :2] = np.reshape(places, (-1, 2))
    return rows


def said(*rows: tuple[float, float, float, int]) -> np.ndarray:
    table = np.zeros((len(rows), 11))
    table[:, [0, 1, 9, 10]] = rows
    return table


def test_by_class_distance_and_score() -> None:
    truth, classes = boxes((0, 0), (10, 0), (20, 0)), np.array([0, 0, 1])
    found, alarms = match(
        truth, classes, np.ones(3, bool),
        said((1.9, 0, 0.9, 0), (0.1, 0, 0.8, 0), (10, 2.1, 0.7, 0), (20, 0, 0.6, 0)),
    )  # fmt: skip
    assert found.tolist() == [True, False, False]
    assert alarms.tolist() == [False, True, True, True]  # the second comes too late


def test_what_nothing_saw_is_neither_missed_nor_an_alarm() -> None:
    found, alarms = match(
        boxes((0, 0), (9, 9)), np.zeros(2, int), np.zeros(2, bool), said((0, 0, 1, 0))
    )
    assert found.all()
    assert not alarms.any()
    found, alarms = match(boxes(), np.zeros(0, int), np.zeros(0, bool), said((0, 0, 1, 0)))
    assert alarms.tolist() == [True]

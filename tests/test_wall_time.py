"""Who was waited for, in seconds, shares and words."""

import time

import pytest

from bevcask.wall_time import Watch, in_words, wall_time


@pytest.mark.parametrize(
    ("seconds", "advice"),
    [
        ({"device": 58.0, "loader": 2.0}, "a larger loader.batch_size"),
        ({"device": 45.0, "loader": 15.0}, "more loader.num_workers"),
        ({"device": 40.0, "loader": 5.0, "writer": 15.0}, "more store.threads"),
    ],
)
def test_the_longest_wait_is_what_would_help(seconds: dict[str, float], advice: str) -> None:
    told = wall_time(60.0, seconds)
    assert told["advice"].startswith(advice)
    assert sum(told["shares"].values()) == pytest.approx(1)
    assert in_words(told).startswith(f"of 60 s: device {seconds['device'] / 0.6:.0f} %")


def test_short_runs_say_nothing() -> None:
    told = wall_time(2.0, {"device": 1.0, "loader": 1.0})
    assert told["advice"] == "too short to say what would help"
    assert in_words(told).endswith("loader 50 %. Too short to say what would help.")
    assert wall_time(0.0, {"device": 0.0})["shares"] == {"device": 0.0}


def test_a_watch_counts_what_it_waits_for() -> None:
    def slow() -> object:
        for number in range(3):
            time.sleep(0.02)
            yield number

    watch = Watch()
    assert list(watch.watched(slow(), "loader")) == [0, 1, 2]
    with watch.waiting("writer"):
        time.sleep(0.02)
    told = watch.told()
    assert told["seconds"] * told["shares"]["loader"] >= 0.06
    assert told["seconds"] * told["shares"]["writer"] >= 0.02
    assert sum(told["shares"].values()) == pytest.approx(1)

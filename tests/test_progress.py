"""A log file gets lines, few and whole; a terminal gets a bar."""

import pytest

from bevcask import progress
from bevcask.progress import progress_bar


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.seconds = 50.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(progress, "monotonic", fake)
    return fake


def test_a_log_file_gets_an_early_line_and_one_a_minute_with_rate_and_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("train", 1000, done=100) as bar:
        for _ in range(19):
            clock.seconds += 10
            bar.advance(5, "loss 0.123")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "train 105 of 1000, 0:00:10, 0.50/s, 0:29:50 left, loss 0.123",
        "train 135 of 1000, 0:01:10, 0.50/s, 0:28:50 left, loss 0.123",
        "train 165 of 1000, 0:02:10, 0.50/s, 0:27:50 left, loss 0.123",
        "train 195 of 1000, 0:03:10, 0.50/s, 0:26:50 left, loss 0.123",
        "train 195 of 1000, 0:03:10, 0.50/s, 0:26:50 left, loss 0.123",
    ]


def test_what_ends_early_leaves_one_line_that_is_true_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("verify", 0, unit="bytes") as bar:
        clock.seconds += 2
        bar.move_to(3_000_000, 12_000_000)
        bar.move_to(12_000_000, 12_000_000)
        bar.advance(0, "all of it")
    assert capsys.readouterr().err == "verify 12.0 MB of 12.0 MB, 0:00:02, 6.0 MB/s, all of it\n"


def test_what_is_over_in_a_moment_leaves_none_where_that_is_asked(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("statistics", 4, silent_for=2) as bar:
        bar.advance(4)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar("train", 2) as bar:
        bar.advance(2, "[red]loss[/]")
    told = capsys.readouterr().err
    assert "\x1b[" in told
    assert "2/2" in told
    assert "[red]loss[/]" in told

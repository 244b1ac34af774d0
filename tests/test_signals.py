"""Who asks a process to end, and what it exits with."""

import os
import signal

import pytest

from bevcask.errors import Stopped
from bevcask.signals import ASKED, Stop, ending, exit_code


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]
)
def test_a_scheduler_is_told_to_try_again(number: signal.Signals, code: int) -> None:
    assert exit_code(number) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_block_is_left_at_once(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in ASKED]
    with pytest.raises(Stopped, match=f"{number.name}: stopped; the same command"), ending():
        os.kill(os.getpid(), number)
    assert [signal.getsignal(each) for each in ASKED] == before


@pytest.mark.parametrize("number", ASKED)
def test_who_saves_first_is_only_told(number: signal.Signals) -> None:
    stop = Stop()
    before = [signal.getsignal(each) for each in ASKED]
    with stop.listening():
        os.kill(os.getpid(), number)
        assert stop.asked == number
        assert [signal.getsignal(each) for each in ASKED] == [signal.SIG_DFL] * 3
        with pytest.raises(Stopped, match="interrupted; saved"):
            stop.check("saved")
    assert [signal.getsignal(each) for each in ASKED] == before


def test_a_process_that_has_done_its_work_is_left_alone() -> None:
    before = [signal.getsignal(each) for each in ASKED]
    try:
        with ending(last=True):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) == before[0]
    finally:
        for each, handler in zip(ASKED, before, strict=True):
            signal.signal(each, handler)

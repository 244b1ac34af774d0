"""Signals that ask a process to end: it saves or drops what is at hand, and its exit code says so.

Ctrl-C is a person's: 130. SIGTERM and SIGUSR1 are a scheduler's, before it takes the machine away:
75, `EX_TEMPFAIL` of sysexits.h, the same command is to be tried again.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bevcask.errors import Stopped

TRY_AGAIN = 75
GOES_ON = "the same command goes on from what is saved."
AGAIN = "to do it, give the same command again."
ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1)
_STDERR = 2


def exit_code(number: int) -> int:
    """Return what a process exits with that was asked to end by a signal."""
    return 128 + number if number == signal.SIGINT else TRY_AGAIN


@contextmanager
def ending(last: bool = False, then: str = GOES_ON) -> Iterator[None]:
    """Leave the block at once where a scheduler asks for it, as Ctrl-C does.

    What is half written stays uncommitted, and the next run removes it.

    Args:
        last: behind the block the process has nothing left to do, and is not to be ended by signal.
        then: what the same command does, for people.

    Raises:
        Stopped: a signal came.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        for each in ASKED:
            signal.signal(each, signal.SIG_DFL)
        name = signal.Signals(number).name
        raise Stopped(number, f"{name}: stopped; {then}")

    with _handled((signal.SIGINT,) if last else ASKED):
        if _can_listen():
            for number in _SCHEDULERS:
                signal.signal(number, leave)
        try:
            yield
        finally:
            if last and _can_listen():
                for number in _SCHEDULERS:
                    signal.signal(number, signal.SIG_IGN)


class Stop:
    """Notes that this process was asked to end, for those who save a step first.

    A second signal ends the process at once, as if nobody listened.

    Attributes:
        asked: by which signal; None while nobody has.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals while the block runs; what handled them before does so afterwards."""
        with _handled(ASKED):
            self.listen()
            yield

    def listen(self) -> None:
        """Take the signals (again), unless one has come; only the main thread can."""
        if self.asked is None and _can_listen():
            for number in ASKED:
                signal.signal(number, self._note)

    def check(self, saved: str) -> None:
        """End the run if that was asked for.

        Args:
            saved: what the same command goes on from, for people.

        Raises:
            Stopped: it was.
        """
        if self.asked is not None:
            raise Stopped(self.asked, f"interrupted; {saved}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number)
        for each in ASKED:
            signal.signal(each, signal.SIG_DFL)
        # Not through a logger: the signal may have come while one was writing.
        os.write(
            _STDERR,
            f"\n{self.asked.name}: stopping at the end of this step, and saving. Once more stops "
            "at once, without.\n".encode(),
        )


@contextmanager
def _handled(numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Let signals be handled afterwards by whoever handled them before the block."""
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if _can_listen():
            for number, handler in before.items():
                signal.signal(number, handler)


def _can_listen() -> bool:
    return threading.current_thread() is threading.main_thread()

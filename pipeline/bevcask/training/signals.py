"""Ctrl-C and SIGTERM: said at once, acted on at the end of the step at hand."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bevcask.errors import Stopped

_LISTENED = (signal.SIGINT, signal.SIGTERM)
_STDERR = 2


class Stop:
    """Notes that this process was asked to end.

    A second signal ends the process at once, as if nobody listened.

    Attributes:
        asked: by which signal; None while nobody has.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals while the block runs; what handled them before does so afterwards."""
        before = {number: signal.getsignal(number) for number in _LISTENED}
        self.listen()
        try:
            yield
        finally:
            if _can_listen():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals (again), unless one has come; only the main thread can."""
        if self.asked is None and _can_listen():
            for number in _LISTENED:
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
        for each in _LISTENED:
            signal.signal(each, signal.SIG_DFL)
        # Not through a logger: the signal may have come while one was writing.
        os.write(
            _STDERR,
            f"\n{self.asked.name}: stopping at the end of this step, and saving. Once more stops "
            "at once, without.\n".encode(),
        )


def _can_listen() -> bool:
    return threading.current_thread() is threading.main_thread()

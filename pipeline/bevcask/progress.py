"""Progress of every stage, on stderr: a bar on a terminal, a line a minute in a log file.

The first line comes early, so that a log tells at once whether all is well.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from typing import Literal

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

_SECONDS_TO_FIRST_LINE = 5.0
_SECONDS_BETWEEN_LINES = 60.0
Unit = Literal["steps", "bytes"]


class Ticker:
    """How far one piece of work is.

    Args:
        total: number of steps.
        done: steps already done by an earlier run.
        show: called after every change.

    Attributes:
        note: what else is known, e.g. `3.1 GB`.
    """

    def __init__(self, total: int, done: int, show: Callable[["Ticker"], None]) -> None:
        self.total = total
        self.done = done
        self.note = ""
        self._show = show

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count steps; `note` (e.g. `3.1 GB`) is shown behind them."""
        self.done += steps
        self.note = self.note if note is None else note
        self._show(self)

    def move_to(self, done: int, total: int) -> None:
        """Set the count to `done` of `total` steps."""
        self.done, self.total = done, total
        self._show(self)


@contextmanager
def progress_bar(
    title: str, total: int, done: int = 0, unit: Unit = "steps", silent_for: float = 0.0
) -> Iterator[Ticker]:
    """Show progress on stderr while the block runs.

    Args:
        title: what is being done, e.g. `extract`.
        total: number of steps.
        done: steps already done by an earlier run.
        unit: of a step; bytes are shown as MB or GB and MB/s.
        silent_for: seconds; work that ends within them leaves no trace.
    """
    console = Console(stderr=True)
    if console.is_terminal or console.is_jupyter:
        with _bar(console, title, total, done, unit, silent_for > 0) as ticker:
            yield ticker
        return
    lines = _Lines(title, done, unit, silent_for)
    ticker = Ticker(total, done, lines.now_and_then)
    try:
        yield ticker
    finally:
        lines.last(ticker)


@contextmanager
def no_bar(title: str, total: int) -> Iterator[Ticker]:
    """Show nothing: somebody else does."""
    yield Ticker(total, 0, lambda ticker: None)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


@contextmanager
def _bar(
    console: Console, title: str, total: int, done: int, unit: Unit, transient: bool
) -> Iterator[Ticker]:
    counts: tuple[ProgressColumn, ProgressColumn] = (
        (DownloadColumn(), TransferSpeedColumn())
        if unit == "bytes"
        else (MofNCompleteColumn(), _Rate())
    )
    with Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        *counts,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=transient,
    ) as progress:
        task = progress.add_task(title, total=total, completed=done, note="")

        def show(ticker: Ticker) -> None:
            progress.update(task, completed=ticker.done, total=ticker.total, note=ticker.note)

        yield Ticker(total, done, show)


class _Lines:
    """Writes lines: an early one, one a minute while there is progress, and one at the end."""

    def __init__(self, title: str, done: int, unit: Unit, silent_for: float) -> None:
        self._title = title
        self._from = done
        self._unit = unit
        self._silent_for = silent_for
        self._began = monotonic()
        self._next = self._began + max(_SECONDS_TO_FIRST_LINE, silent_for)

    def now_and_then(self, ticker: Ticker) -> None:
        if monotonic() >= self._next and ticker.done < ticker.total:
            self._say(ticker)

    def last(self, ticker: Ticker) -> None:
        if monotonic() - self._began >= self._silent_for:
            self._say(ticker)

    def _say(self, ticker: Ticker) -> None:
        now = monotonic()
        self._next = now + _SECONDS_BETWEEN_LINES
        seconds = now - self._began
        rate = (ticker.done - self._from) / seconds if seconds > 0 else 0.0
        left = max(0, ticker.total - ticker.done)
        parts = [f"{self._count(ticker.done)} of {self._count(ticker.total)}", _time(seconds)]
        if rate > 0:
            parts.append(f"{decimal(int(rate))}/s" if self._unit == "bytes" else f"{rate:.2f}/s")
            if left:
                parts.append(f"{_time(left / rate)} left")
        if ticker.note:
            parts.append(ticker.note)
        sys.stderr.write(f"{self._title} {', '.join(parts)}\n")
        sys.stderr.flush()

    def _count(self, number: int) -> str:
        return decimal(number) if self._unit == "bytes" else str(number)


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))

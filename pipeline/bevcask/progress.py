"""One progress bar for every stage: on stderr, with rate and remaining time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

_NON_TERMINAL_REFRESH = 0.2


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


class Ticker:
    """Handle of one running bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Move the bar; `note` (e.g. `3.1 GB`) is shown behind it."""
        self._progress.advance(self._task, steps)
        if note is not None:
            self._progress.update(self._task, note=note)

    def move_to(self, done: int, total: int) -> None:
        """Set the bar to `done` of `total` steps."""
        self._progress.update(self._task, completed=done, total=total)


@contextmanager
def progress_bar(
    title: str, total: int, done: int = 0, unit: Literal["steps", "bytes"] = "steps"
) -> Iterator[Ticker]:
    """Show a bar on stderr while the block runs.

    Args:
        title: what is being done, e.g. `extract`.
        total: number of steps.
        done: steps already done by an earlier run.
        unit: of a step; bytes are shown as MB or GB and MB/s.
    """
    console = Console(stderr=True)
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
        TextColumn("{task.fields[note]}"),
        console=console,
        refresh_per_second=10 if console.is_terminal else _NON_TERMINAL_REFRESH,
    ) as progress:
        yield Ticker(progress, progress.add_task(title, total=total, completed=done, note=""))

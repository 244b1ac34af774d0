"""report: trainings beside each other, as tables and as one HTML page."""

from typing import Any

from rich.console import Group
from rich.table import Table

from bevcask.errors import ConfigError
from bevcask.outputs import output_file
from bevcask.verbs import ReportConfig
from bevcask.viz.runs import compare

_SHOWN = 20


def run(config: ReportConfig) -> dict[str, Any]:
    """Compare `config.run`, folders of student-distill that have ended or are under way.

    Returns:
        `viz.runs.compare`, and `html`, the page where one was asked for.

    Raises:
        ConfigError: no run, or a folder that is none.
    """
    if not config.run:
        raise ConfigError("report needs runs: bevcask report run=A run=B html=FILE.html.")
    page = None if config.html is None else output_file("html", config.html, ".html")
    compared = compare(config.run)
    if page is not None:
        from bevcask.viz.html.comparison import write_comparison

        write_comparison(compared, page)
    return compared | {"html": None if page is None else str(page)}


def render(result: dict[str, Any]) -> Group:
    """Show scores and what differs; curves are on the page."""
    table = Table(title="runs, best validation by NDS", title_justify="left")
    table.add_column("run", overflow="fold")
    for column in ("step", "best at", "mAP", "NDS", "s a step", "peak GB"):
        table.add_column(column, justify="right")
    for run in result["runs"]:
        scores, own = run["scores"], run["result"]
        table.add_row(
            run["name"] + ("" if run["ended"] else " (not ended)"),
            str(run["step"]),
            "" if run["best_step"] is None else str(run["best_step"]),
            _number(scores.get("mAP"), 4),
            _number(scores.get("NDS"), 4),
            _number(own.get("seconds_per_step"), 3),
            _number(own.get("peak_memory_gb"), 2),
        )
    differing = Table(title="what differs in their configuration", title_justify="left")
    for column in ("key", *(run["name"] for run in result["runs"])):
        differing.add_column(column, overflow="fold")
    for row in result["differences"][:_SHOWN]:
        differing.add_row(row["key"], *map(str, row["values"]))
    more = len(result["differences"]) - _SHOWN
    return Group(
        table,
        *([differing] if result["differences"] else ["their configurations are alike"]),
        *([f"and {more} more keys (--json lists all)"] if more > 0 else []),
        *([f"page: {result['html']}"] if result["html"] else []),
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"

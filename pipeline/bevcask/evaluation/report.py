"""Scores for people: one line of means, one row a class."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table

from bevcask.results import show

_MEANS = ("mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
_COLUMNS = ("AP", "ATE", "ASE", "AOE", "AVE", "AAE")


def score_report(result: Mapping[str, Any]) -> Group:
    """Return tables of a result of `Evaluation.score`; other entries follow.

    Args:
        result: scores and whatever a stage added to them; scores may be absent.
    """
    parts: list[Table] = []
    if "mAP" in result:
        parts += [_means(result), _classes(result["per_class"])]
    shown = (*_MEANS, "per_class")
    return Group(*parts, show({key: value for key, value in result.items() if key not in shown}))


def _means(result: Mapping[str, Any]) -> Table:
    table = Table()
    for name in _MEANS:
        table.add_column(name, justify="right")
    table.add_row(*(f"{result[name]:.4f}" for name in _MEANS))
    return table


def _classes(per_class: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table()
    table.add_column("class")
    for name in (*_COLUMNS, "boxes"):
        table.add_column(name, justify="right")
    for label, row in per_class.items():
        numbers = ("-" if row[name] is None else f"{row[name]:.3f}" for name in _COLUMNS)
        table.add_row(label, *numbers, str(row["boxes"]))
    return table

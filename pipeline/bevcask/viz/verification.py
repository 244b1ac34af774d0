"""What `verify` found, as tables."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

_SHOWN = 40
_WHERE = ("shard", "target", "token", "key", "what")


def render(result: dict[str, Any]) -> Group:
    """Show what was checked and a table for each depth."""
    parts: list[Any] = [
        Text.assemble(
            (_verdict(result), "bold"),
            f"  {result['cache']}: {result['files']:,} files, {result['bytes'] / 1e9:.3f} GB, "
            f"{len(result['problems'])} problems, {len(result['suspicions'])} suspicions",
        )
    ]
    if "not_compared" in result:
        parts.append(f"not compared: {result['not_compared']}")
    parts += result.get("notes", [])
    if "unfinished" in result:
        parts.append(f"no deeper: {result['unfinished']}")
    for name in ("problems", "suspicions"):
        if result[name]:
            rows = [[found[key] for key in _WHERE] for found in result[name]]
            parts.append(_table(name, _WHERE, rows))
    for name in ("statistics", "resample"):
        if found := result.get(name):
            columns = list(next(iter(found.values())))
            rows = [[target, *(entry[key] for key in columns)] for target, entry in found.items()]
            parts.append(_table(name, ["target", *columns], rows))
    if meaning := result.get("meaning"):
        parts += _meaning(meaning)
    if gaps := result.get("equivariance"):
        rows = [
            [augmentation, target, *gap.values()]
            for augmentation, by_target in gaps.items()
            for target, gap in by_target.items()
        ]
        title = "aligned target against the augmented teacher (a study, not a check)"
        columns = ["augmentation", "target", "relative L2", "on objects", "cosine"]
        parts.append(_table(title, columns, rows))
    if windows := result.get("windows"):
        rows = [[target, *gap.values()] for target, gap in windows.items()]
        title = "windows against the memory of whole scenes (a study, not a check)"
        columns = ["target", "frames", "relative L2", "cosine", "L2 where the scene had just begun"]
        parts.append(_table(title, columns, rows))
    if any(problem["shard"] is not None for problem in result["problems"]):
        parts.append(
            f"To list what extraction mends: bevcask verify {result['cache']} repair=FILE.jsonl"
        )
    return Group(*parts)


def _meaning(found: dict[str, Any]) -> list[Any]:
    """Show which reading of each target fits ground truth."""
    columns = [
        "target",
        "what",
        "verdict",
        "fits best",
        "error as declared",
        "best",
        "boxes",
        "note",
    ]
    rows = [
        [
            own["target"],
            own["what"],
            own["verdict"],
            _readings(own["best"]),
            own["declared_score"],
            own["best_score"],
            own["boxes"],
            own["note"],
        ]
        for own in found["findings"]
    ]
    left = sum(own["verdict"] == "undecided" for own in found["findings"])
    title = f"against ground truth, {found['frames']} frames: {left} of {len(rows)} undecided"
    parts: list[Any] = [_table(title, columns, rows)]
    if official := found["official"]:
        rows = [
            [target, reading, *scores.values()]
            for target, readings in official.items()
            for reading, scores in readings.items()
        ]
        names = list(next(iter(next(iter(official.values())).values())))
        parts.append(_table("official scores", ["target", "read", *names], rows))
    for name, given in found["given"].items():
        parts.append(
            f"{name}: its teacher was shown {' and '.join(given)}; that it fits is no score"
        )
    if change := found["change"]:
        title = "change in manifest.json of the spool, then extract again"
        said = [[line, json.dumps(value)] for line, value in change.items()]
        parts.append(_table(title, ["line", "what it must say"], said))
    parts += found["remarks"]
    if why := found["not_judged"]:
        by_reason = {own: [name for name in why if why[name] == own] for own in why.values()}
        named = [f"{', '.join(names)} ({own})" for own, names in by_reason.items()]
        parts.append(f"not judged by ground truth: {'; '.join(named)}")
    return parts


def _readings(names: Sequence[str]) -> str:
    more = f", or one of {len(names) - 2} more" if len(names) > 2 else ""
    return " or ".join(names[:2]) + more


def _verdict(result: dict[str, Any]) -> str:
    if result["ok"] and "not_compared" in result:
        return "sound, its meaning NOT COMPARED"
    if result["ok"]:
        found = result.get("meaning", {}).get("findings", [])
        unknown = found and all(own["verdict"] == "undecided" for own in found)
        return "sound, its meaning UNDECIDED" if unknown else "ok"
    if all(problem["key"].startswith("meaning/") for problem in result["problems"]):
        return "MISREAD"
    unfinished = all("not sealed" in problem["what"] for problem in result["problems"])
    return "UNFINISHED" if unfinished else "DAMAGED"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    more = len(rows) - _SHOWN
    caption = f"and {more} more: see --json" if more > 0 else None
    table = Table(title=title, caption=caption)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows[:_SHOWN]:
        table.add_row(*map(_words, row))
    return table


def _words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value[:8])) + (", ..." if len(value) > 8 else "") or "-"
    return "-" if value is None else str(value)

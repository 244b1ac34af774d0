"""verify: is every stored byte still the byte that was committed?"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from bevcask.cache.verifier import Problem, verify
from bevcask.catalog import resolve
from bevcask.config import RunConfig
from bevcask.errors import ConfigError
from bevcask.progress import progress_bar

_SHOWN = 40


def run(config: RunConfig) -> dict[str, Any]:
    """Re-hash every file of a cache.

    Returns:
        `ok`, files and bytes checked, and `problems`: `key`, `what`, `shard`, `target`, `token` of
        each damaged, missing or foreign thing. Written to `repair` too, where that is asked for.

    Raises:
        ConfigError: no cache URL.
        CacheIncompleteError: there is no cache at the URL.
    """
    if config.cache is None:
        raise ConfigError("verify needs a cache URL: bevcask verify URL.")
    url = resolve("cache", config.cache)
    with progress_bar("verify", 0, unit="bytes") as bar:
        report = verify(url, progress=bar.move_to)
    result = {
        "cache": url,
        "ok": report.ok,
        "files": report.num_files,
        "bytes": report.num_bytes,
        "problems": [asdict(problem) for problem in report.problems],
    }
    if config.repair is not None:
        result["repair"] = write_repair_list(report.problems, report.targets, Path(config.repair))
    return result


def write_repair_list(
    problems: Sequence[Problem], targets: Sequence[str], path: Path
) -> dict[str, Any]:
    """Write what another extraction can mend: a JSON object a line (shard, target, token, problem).

    A problem of a whole shard gives a line a target.

    Returns:
        The file, its lines, and how many problems lie outside every shard (metadata, foreign
        files): no teacher can mend those.
    """
    within = [problem for problem in problems if problem.shard is not None]
    lines = [
        {
            "shard": problem.shard,
            "target": target,
            "token": problem.token,
            "problem": f"{problem.key}: {problem.what}",
        }
        for problem in within
        for target in ([problem.target] if problem.target else targets)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return {
        "file": str(path),
        "lines": len(lines),
        "beyond_repair": len(problems) - len(within),
    }


def render(result: dict[str, Any]) -> Group:
    """Show what was checked and a table of what is wrong."""
    head = (
        f"[bold]{'ok' if result['ok'] else 'DAMAGED'}[/]  {result['cache']}: "
        f"{result['files']:,} files, {result['bytes'] / 1e9:.3f} GB, "
        f"{len(result['problems'])} problems"
    )
    if not result["problems"]:
        return Group(head)
    table = Table()
    for column in ("shard", "target", "token", "where", "problem"):
        table.add_column(column, overflow="fold")
    for problem in result["problems"][:_SHOWN]:
        words = (problem[key] for key in ("shard", "target", "token", "key", "what"))
        table.add_row(*("-" if word is None else str(word) for word in words))
    more = len(result["problems"]) - _SHOWN
    return Group(head, table, *([f"and {more} more: see --json"] if more > 0 else []))

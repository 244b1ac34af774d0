"""Trainings beside each other: what differs in their configuration, their curves and scores."""

import csv
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from bevcask.errors import ConfigError
from bevcask.fingerprint import differences
from bevcask.notebook import html_table

_POINTS = 400  # of a curve: as many as a page shows apart
_PREFIX = "train/"
_NEEDED = "config.json"
Curve = list[tuple[int, float]]


class Comparison(dict[str, Any]):
    """What `compare` returns: plain JSON data that a notebook shows as tables."""

    def _repr_html_(self) -> str:
        scores = html_table(
            "runs, best validation by NDS",
            ("run", "step", "best at", "mAP", "NDS", "s a step", "peak GB"),
            [
                (
                    run["name"] + ("" if run["ended"] else " (not ended)"),
                    run["step"],
                    *(_blank(value) for value in (
                        run["best_step"], run["scores"].get("mAP"), run["scores"].get("NDS"),
                        run["result"].get("seconds_per_step"), run["result"].get("peak_memory_gb"),
                    )),
                )
                for run in self["runs"]
            ],
        )  # fmt: skip
        differing = html_table(
            "what differs in their configuration",
            ("key", *(run["name"] for run in self["runs"])),
            [(row["key"], *map(str, row["values"])) for row in self["differences"]],
        )
        return scores + differing if self["differences"] else scores


def _blank(value: object) -> object:
    return "" if value is None else value


def compare(folders: Sequence[str]) -> Comparison:
    """Read what `student-distill` left in run folders, ended or not.

    Returns:
        `runs`: for each `name`, `folder`, `ended`, `step`, `result` (metrics.json, if it ended),
        `scores` (of its best validation), `best_step`, `validations` (of each its step, mAP and
        NDS) and `curves` (term to (step, value)); `differences`: configuration keys that differ,
        with the value of each run.

    Raises:
        ConfigError: a folder is no run, is given twice, or holds damaged files.
    """
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(f"run={', '.join(folders)}: expected different run folders.")
    runs = [_read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    configs = [run.pop("config") for run in runs]
    return Comparison(runs=runs, differences=_differing(configs))


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of some paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(own[-length:]) for own in parts]
        if len(set(ends)) == len(ends):
            return ends
    return [str(path) for path in paths]


def _read_run(path: Path, name: str) -> dict[str, Any]:
    if not (path / _NEEDED).is_file():
        raise ConfigError(
            f"run={path}: no {_NEEDED} there, so it is no run of student-distill. Give the folder "
            "that was its run=DIR."
        )
    ended = path / "metrics.json"
    result = _json(ended) if ended.is_file() else {}
    scored = {
        int(found.parent.name.removeprefix("step_")): _json(found)
        for found in sorted(path.glob("validation/step_*/metrics.json"))
    }
    best = max(scored, key=lambda step: scored[step]["NDS"], default=None)
    curves = _curves(path)
    last = max((curve[-1][0] for curve in curves.values()), default=0)
    return {
        "name": name,
        "folder": str(path),
        "ended": bool(result),
        "step": result.get("step", last),
        "result": {key: value for key, value in result.items() if key != "per_class"},
        "best_step": best,
        "scores": scored[best] if best is not None else {},
        "validations": [
            {"step": step, "mAP": one["mAP"], "NDS": one["NDS"]} for step, one in scored.items()
        ],
        "curves": {term: _thinned(curve) for term, curve in curves.items()},
        "config": _json(path / _NEEDED),
    }


def _curves(path: Path) -> dict[str, Curve]:
    """Return what was logged of every step; where a step was made again, the later sitting says."""
    values: dict[str, dict[int, float]] = {}
    sittings = sorted(
        path.glob("logs/csv/sitting_*/metrics.csv"),
        key=lambda found: int(found.parent.name.removeprefix("sitting_")),
    )
    for sitting in sittings:
        with sitting.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]
        first = min((int(row["step"]) for row in rows), default=0)
        values = {
            term: {step: value for step, value in own.items() if step < first}
            for term, own in values.items()
        }
        for row in rows:
            for term, value in row.items():
                if term and term.startswith(_PREFIX) and value:
                    values.setdefault(term.removeprefix(_PREFIX), {})[int(row["step"])] = float(
                        value
                    )
    return {term: sorted(own.items()) for term, own in sorted(values.items()) if own}


def _thinned(curve: Curve) -> Curve:
    """Return the means of equal pieces, where a curve has more points than are shown."""
    if len(curve) <= _POINTS:
        return curve
    bounds = [index * len(curve) // _POINTS for index in range(_POINTS + 1)]
    pieces = [curve[a:b] for a, b in pairwise(bounds)]
    return [(own[-1][0], sum(value for _, value in own) / len(own)) for own in pieces]


def _differing(configs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the keys that not all configurations agree on, with the value of each."""
    keys = {key for other in configs[1:] for key, _, _ in differences(configs[0], other)}
    return [
        {"key": key, "values": [_at(config, key) for config in configs]} for key in sorted(keys)
    ]


def _at(tree: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        if isinstance(tree, dict) and key in tree:
            tree = tree[key]
        elif isinstance(tree, list) and key.isdigit() and int(key) < len(tree):
            tree = tree[int(key)]
        else:
            return None
    return tree


def _json(path: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}). Is this a whole run?") from None
    return tree

"""Trainings beside each other as one HTML file that opens from disk."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from bevcask.paths import write_whole
from bevcask.viz.html.collect import line


def write_comparison(compared: Mapping[str, Any], path: Path) -> int:
    """Write the file, in one step; return its bytes.

    Args:
        compared: what `viz.runs.compare` found.
        path: the file.
    """
    folder = files("bevcask.viz.html") / "page"
    page = (folder / "comparison.html").read_text("utf-8")
    parts = {
        "styles": (folder / "report.css").read_text("utf-8"),
        "data": line(compared).decode(),
        "scripts": (folder / "comparison.js").read_text("utf-8"),
    }
    for name, text in parts.items():
        page = page.replace("{{" + name + "}}", text, 1)
    data = page.encode()
    write_whole(path, data)
    return len(data)

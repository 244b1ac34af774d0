"""The file itself: a template, styles and scripts in line, a script element of JSON a frame."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

from bevcask.data.index.frames import Frames
from bevcask.paths import partial_name
from bevcask.progress import progress_bar
from bevcask.viz.html.collect import line
from bevcask.viz.html.frames import cameras

SCRIPTS = ("model.js", "overview.js", "student.js", "bev.js", "cameras.js", "browser.js")
_WIDTHS = (800, 400, 256)  # pixels of a camera image: the first at which all frames fit is taken
_TRIED = 3


def add_cameras(
    frames: Frames | None, rows: Sequence[Mapping[str, Any]], out: Path, budget: int
) -> list[int]:
    """Write camera images of as many frames as fit, a line each.

    Half of them are those with most misses and false alarms, half are evenly spaced.

    Returns:
        The numbers of these frames, in order of the lines.
    """
    able = [n for n, row in enumerate(rows) if frames is not None and row["token"] in frames]
    if frames is None or not able:
        out.write_bytes(b"")
        return []
    for width in _WIDTHS:
        tried = [line(cameras(frames, rows[n]["token"], width)) for n in able[:_TRIED]]
        fit = int(max(0, budget) / max(1, *map(len, tried)))
        if fit >= len(able):
            break
    chosen = choose(rows, able, fit)
    written, kept = 0, []
    with out.open("wb") as file, progress_bar("images", len(chosen), silent_for=2.0) as bar:
        for number in chosen:
            data = line(cameras(frames, rows[number]["token"], width))
            if written + len(data) > budget:
                break
            written += file.write(data)
            kept.append(number)
            bar.advance()
    return kept


def choose(rows: Sequence[Mapping[str, Any]], able: Sequence[int], fit: int) -> list[int]:
    """Return so many numbers of rows: half of most misses and false alarms, half evenly spaced."""
    if fit >= len(able):
        return list(able)

    def off(number: int) -> int:
        return -int(rows[number].get("misses", 0) + rows[number].get("alarms", 0))

    chosen = set(sorted(able, key=off)[: fit // 2])
    others = [number for number in able if number not in chosen]
    wanted = fit - len(chosen)
    chosen |= {others[place * len(others) // wanted] for place in range(wanted)}
    return sorted(chosen)


@dataclass(frozen=True)
class Page:
    """What is written.

    Attributes:
        data: plain JSON data of the whole page.
        frames: file with a line of JSON a frame.
        images: file with a line of JSON for each of `data["cameras"]`.
        students: file with a line of JSON for each of `data["shown_student"]`.
    """

    data: Mapping[str, Any]
    frames: Path
    images: Path
    students: Path

    def write(self, path: Path) -> None:
        """Write the file; `path` is replaced in one step."""
        folder = files("bevcask.viz.html") / "page"
        template = (folder / "report.html").read_text("utf-8")
        scripts = "\n".join((folder / name).read_text("utf-8") for name in SCRIPTS)
        head, rest = template.split("{{styles}}")
        middle, rest = rest.split("{{data}}")
        before, tail = rest.split("{{scripts}}")
        partial = partial_name(path)
        try:
            with partial.open("wb") as file:
                file.write(head.encode())
                file.write((folder / "report.css").read_bytes())
                file.write(middle.encode())
                _script(file, "data", line(self.data))
                self._lines(file, "frame", range(len(self.data["frames"])), self.frames)
                self._lines(file, "images", self.data["cameras"], self.images)
                self._lines(file, "student", self.data["shown_student"], self.students)
                file.write(before.encode() + scripts.encode() + tail.encode())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _lines(self, file: BinaryIO, name: str, numbers: Sequence[int], lines: Path) -> None:
        with lines.open("rb") as source:
            for number, data in zip(numbers, source, strict=True):
                _script(file, f"{name}-{number}", data)


def _script(file: BinaryIO, name: str, data: bytes) -> None:
    file.write(f'<script type="application/json" id={json.dumps(name)}>'.encode())
    file.write(data.strip() + b"</script>\n")

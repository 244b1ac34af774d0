"""Make the page: choose frames, look for what is wrong, collect, write."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bevcask.cache import Cache, open_cache
from bevcask.cache.verify_bytes import verify
from bevcask.data.index.frames import Frames
from bevcask.errors import BevcaskError
from bevcask.evaluation.agreement import spread_tokens
from bevcask.evaluation.detect import cached_boxes
from bevcask.evaluation.meaning import meaning, random_weights
from bevcask.evaluation.nuscenes import Evaluation
from bevcask.evaluation.readings import Finding
from bevcask.geometry import CLASSES
from bevcask.progress import progress_bar
from bevcask.targets.plan import BOXES
from bevcask.viz.html import notices
from bevcask.viz.html.calibration import judge_cameras
from bevcask.viz.html.collect import Collected, choose_content, collect, spread
from bevcask.viz.html.frames import MIN_SCORE, POINT_STEP, Content
from bevcask.viz.html.matching import DISTANCE
from bevcask.viz.html.pages import Page, add_cameras, choose
from bevcask.viz.html.student import FRAMES, Beside, Student, show
from bevcask.viz.report import describe

_log = logging.getLogger(__name__)
_JUDGED = 32  # frames that are compared with ground truth
_SCORED = 250  # frames that the official metrics are of; `evaluate` scores all
_LOOKED_AT = 40  # frames whose images are compared with LiDAR
_SHARE = 0.9  # of the budget, for frames without cameras
SCRIPTS = 120_000  # bytes of everything that is no frame, about


@dataclass(frozen=True)
class Asked:
    """What a page is to hold.

    Attributes:
        url: of the cache.
        frames: every frame of its dataset; None: it is not there.
        lacks: why something is left out, a sentence each.
        limit: frames at most.
        budget: bytes of the file at most.
        student: to be shown beside the teacher.
    """

    url: str
    frames: Frames | None
    lacks: Sequence[str]
    limit: int
    budget: int
    student: Student | None = None


@dataclass(frozen=True)
class Looked:
    """What looking for faults gave: notices, and what ground truth says of each target."""

    notices: list[notices.Notice]
    findings: list[Finding]
    scores: dict[str, Any] | None


def write_report(asked: Asked, path: Path) -> dict[str, Any]:
    """Write the page.

    Returns:
        `html` (where), `html_bytes`, `html_frames`, `warnings`: what the page says first.
    """
    cache = open_cache(asked.url, allow_unsealed=True)
    committed = [t for shard in sorted(cache.committed) for t in cache.layout.tokens_of(shard)]
    tokens = spread(committed, asked.limit)
    looked = _look(cache, asked, tokens)
    with TemporaryDirectory(dir=path.parent) as folder:
        lines = Path(folder) / "frames"
        budget = int(_SHARE * (asked.budget - SCRIPTS))
        content = choose_content(cache, asked.frames, tokens, budget)
        with progress_bar("report", len(tokens)) as bar:
            found = collect(cache, asked.frames, tokens, content, lines, bar)
        students = Path(folder) / "students"
        beside = _beside(asked, cache, found, students)
        left = asked.budget - SCRIPTS - found.bytes - students.stat().st_size
        with_cameras = add_cameras(asked.frames, found.rows, Path(folder) / "cameras", left)
        values = notices.of_extremes(found.extremes)
        if random_weights(cache) is None:
            values += notices.of_changes(found.changes)
        said = notices.in_order([*looked.notices, *values])
        data = _data(cache, asked, found, looked) | {"warnings": said, "cameras": with_cameras}
        data |= {
            "shown_student": beside.numbers if beside else [],
            "student_tiles": beside.tiles if beside else [],
            "student": beside.about if beside else None,
        }
        Page(data, lines, Path(folder) / "cameras", students).write(path)
    return {
        "html": str(path),
        "html_bytes": path.stat().st_size,
        "html_frames": len(tokens),
        "warnings": said,
    }


def _beside(asked: Asked, cache: Cache, found: Collected, out: Path) -> Beside | None:
    """Show a student some of the frames; its gap joins their rows."""
    if asked.student is None:
        out.write_bytes(b"")
        return None
    rows, frames = found.rows, asked.student.frames
    able = [n for n, row in enumerate(rows) if row["token"] in frames and "damaged" not in row]
    beside = show(asked.student, cache, found.content, rows, out, choose(rows, able, FRAMES))
    for number, gap in (beside.gaps if beside else {}).items():
        rows[number]["gap"] = round(gap, 4)
    return beside


def _look(cache: Cache, asked: Asked, tokens: Sequence[str]) -> Looked:
    """Look for everything that can be wrong with bytes, values, meaning, calibration, weights."""
    with progress_bar("digests", 0, unit="bytes", silent_for=2.0) as bar:
        damage = verify(asked.url, progress=bar.move_to).problems
    said = notices.of_state(cache) + notices.of_teacher(cache)
    said += notices.of_bytes(damage, cache) + notices.of_weights(cache)
    frames, findings, scores = asked.frames, list[Finding](), None
    if frames is None or not tokens:
        return Looked(said, findings, scores)
    said += notices.of_dataset(cache, frames)
    there = [token for token in tokens if token in frames]
    chosen = spread(there, _LOOKED_AT)
    with progress_bar("cameras", len(chosen), silent_for=2.0) as bar:
        said += notices.of_cameras(judge_cameras(frames, chosen, bar))
    if frames.has_labels and not damage and there:
        looked_at = [t for t in spread_tokens(cache, _JUDGED, 0) if t in frames]
        with progress_bar("meaning", len(looked_at) * len(cache.specs), silent_for=2.0) as bar:
            findings = meaning(cache, frames, looked_at, bar).findings
        said += notices.of_meaning(findings)
        scores = _scores(cache, frames, spread(there, _SCORED))
    return Looked(said, findings, scores)


def _scores(cache: Cache, frames: Frames, tokens: Sequence[str]) -> dict[str, Any] | None:
    """Return the official scores of cached boxes; None where there is nothing to score."""
    if BOXES not in cache.specs:
        return None
    try:
        evaluation = Evaluation(frames.keep(tokens), len(cache.frames))
        with TemporaryDirectory() as folder:
            return evaluation.score(cached_boxes(cache, tokens), Path(folder))
    except BevcaskError as error:
        _log.warning("no official scores: %s", error)
        return None


def _drawn(content: Content, frames: Frames | None) -> list[str]:
    """Return what is drawn beside rasters."""
    kinds = {spec.tap.kind for spec in content.specs.values()}
    drawn = ["points"] if frames is not None else []
    drawn += ["queries"] if kinds & {"query_points", "query_places"} else []
    drawn += ["truth"] if frames is not None and frames.has_labels else []
    return drawn + (["teacher"] if "box_set" in kinds else [])


def _data(cache: Cache, asked: Asked, found: Collected, looked: Looked) -> dict[str, Any]:
    """Return everything the page says that is not of one frame."""
    content, table = found.content, cache.frames
    scene_of = dict(zip(table.tokens, table.scenes, strict=True))
    basis = content.rasters.basis
    return {
        "about": describe(cache),
        "classes": list(CLASSES),
        "frames": [row | {"scene": str(scene_of[row["token"]])} for row in found.rows],
        "tiles": [tile.to_dict() for tile in content.rasters.tiles],
        "colours_of": basis.target if basis else None,
        "scores": looked.scores,
        "findings": [
            {
                "target": own.target, "what": own.what, "verdict": own.verdict,
                "best": " or ".join(own.best[:2]), "boxes": own.boxes, "note": own.note,
            }
            for own in looked.findings
        ],
        "lacks": list(asked.lacks),
        "drawn": _drawn(content, asked.frames),
        "min_score": MIN_SCORE,
        "distance": DISTANCE,
        "point_step": POINT_STEP,
        "points": content.points,
    }  # fmt: skip

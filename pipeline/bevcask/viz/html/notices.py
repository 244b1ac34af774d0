"""What is wrong with a cache, most important first: what, where, and what to do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from bevcask.cache import Cache
from bevcask.cache.verify_bytes import Problem
from bevcask.data.index.frames import Frames
from bevcask.errors import DataError
from bevcask.evaluation.meaning import random_weights
from bevcask.evaluation.readings import Finding
from bevcask.fingerprint import differences, file_digest

Severity = Literal["error", "warning", "note"]
_ORDER: tuple[Severity, ...] = ("error", "warning", "note")
_STILL = 1e-3  # relative change from frame to frame, of a map that does not change
_PAIRS = 3
_SHOWN = 5
_NO_LOUDER = {"axes": -0.1, "place": 3.2}
"""Scores that no reading beats where a teacher knows nothing of a scene: energy in boxes, standard
deviations beyond the mean (less is more); metres to the nearest box."""
_READ_WRONG = {
    "axes": "its cells fit ground truth if they are read otherwise",
    "grid": "its cells fit ground truth on another grid",
    "shift": "its cells fit ground truth on a shifted grid",
    "place": "its boxes fit ground truth if x and y are read otherwise",
    "classes": "its classes fit ground truth in another order",
}


@dataclass(frozen=True)
class Notice:
    """One thing a user should know.

    Attributes:
        severity: `error`: a student must not learn from this; `warning`: look at it; `note`.
        kind: a word for programs.
        what: is the matter.
        where: target, camera, frames.
        todo: what to do about it.
    """

    severity: Severity
    kind: str
    what: str
    where: str
    todo: str

    def to_dict(self) -> dict[str, str]:
        """Return plain JSON data."""
        return asdict(self)


def in_order(notices: Sequence[Notice]) -> list[dict[str, str]]:
    """Return notices as plain JSON data, the worst first."""
    ranked = sorted(notices, key=lambda own: _ORDER.index(own.severity))
    return [own.to_dict() for own in ranked]


def of_bytes(problems: Sequence[Problem], cache: Cache) -> list[Notice]:
    """Name what differs from what was committed, one warning a target and shard."""
    found = {}
    for problem in problems:
        if problem.what.startswith("not sealed"):
            continue  # see `of_state`
        frames = [] if problem.shard is None else list(cache.layout.tokens_of(problem.shard))
        told = problem.token or _listed(frames)
        where = f"{problem.target or problem.key}, frames {told}" if frames else problem.key
        found[problem.shard, problem.target, problem.token] = Notice(
            "error", "damaged", f"stored bytes are damaged: {problem.what}", where,
            f"bevcask verify {cache.url} repair=mend.jsonl, then teacher-extract with "
            "repair=mend.jsonl",
        )  # fmt: skip
    return list(found.values())


def of_extremes(extremes: Mapping[str, Any]) -> list[Notice]:
    """Name channels that are not finite somewhere, and those with one value everywhere.

    Args:
        extremes: target -> smallest and largest value of each channel, (2, C).
    """
    found = []
    for name, both_2C in extremes.items():
        broken_C = ~np.isfinite(both_2C).all(0)
        if broken_C.any():
            found.append(
                Notice(
                    "error", "values", "values are not finite",
                    f"{name}, channels {_numbers(broken_C)}",
                    "do not train on it: bevcask verify check=meaning names the frames; look at "
                    "what the teacher says of them, then extract again",
                )
            )  # fmt: skip
        dead_C = both_2C[0] == both_2C[1]
        if dead_C.any():
            found.append(
                Notice(
                    "warning", "dead channels",
                    f"{dead_C.sum()} channels have one value in all frames",
                    f"{name}, channels {_numbers(dead_C)}",
                    "look at the weights: layers that were not loaded, or a ReLU that never fires; "
                    "a student learns nothing from these channels",
                )
            )  # fmt: skip
    return found


def _numbers(chosen_C: Any) -> str:
    return _listed([str(own) for own in np.flatnonzero(chosen_C)])


def of_changes(changes: Mapping[str, Sequence[float]]) -> list[Notice]:
    """Name maps that stay the same from frame to frame; `changes` are relative, of neighbours."""
    return [
        Notice(
            "error", "constant map",
            f"the map does not change from frame to frame: {len(own)} pairs of frames are equal",
            name,
            "the teacher does not see the frames it is shown, or one frame was stored for all: "
            "check its inputs, then extract again",
        )
        for name, own in changes.items()
        if len(own) >= _PAIRS and max(own) < _STILL
    ]  # fmt: skip


def of_meaning(findings: Sequence[Finding]) -> list[Notice]:
    """Name what ground truth contradicts, and maps and boxes it says nothing of."""
    found = []
    for own in findings:
        if own.verdict == "wrong":
            found.append(
                Notice(
                    "error", own.what,
                    f"{_READ_WRONG.get(own.what, f'{own.what} fits ground truth otherwise')}: "
                    f"{' or '.join(own.best)}",
                    f"{own.target}, {own.boxes} true boxes",
                    "correct what the teacher (or its spool's manifest) declares, then extract "
                    "again; bevcask verify check=meaning says more",
                )
            )  # fmt: skip
        elif own.suspicious:
            found.append(
                Notice(
                    "warning", own.what,
                    f"{own.what} as declared fits ground truth worse than {' or '.join(own.best)}, "
                    "which fit alike",
                    f"{own.target}, {own.boxes} true boxes",
                    "look at the other targets of this teacher, and at more frames: bevcask verify "
                    "check=meaning",
                )
            )  # fmt: skip
        elif own.best_score is not None and own.best_score > _NO_LOUDER.get(own.what, math.inf):
            found.append(
                Notice(
                    "warning", "energy outside boxes", f"not where objects are: {own.note}",
                    f"{own.target}, {own.boxes} true boxes",
                    "check its weights and the data it is shown: a teacher that knows these scenes "
                    "is loudest at objects",
                )
            )  # fmt: skip
    return found


def of_cameras(findings: Sequence[Finding]) -> list[Notice]:
    """Name cameras whose images fit LiDAR only after a turn."""
    return [
        Notice(
            "error", "calibration",
            f"its images fit LiDAR if the camera is {own.best[0]} sideways",
            f"{own.target}, {own.boxes} frames",
            "restore calibrated_sensor.json of the dataset; a camera teacher that saw these "
            "matrices is to be asked again",
        )
        for own in findings
        if own.verdict == "wrong"
    ]  # fmt: skip


def of_dataset(cache: Cache, frames: Frames) -> list[Notice]:
    """Name sensors whose calibration is another in the dataset than it was at extraction."""
    stored = cache.fingerprint.get("dataset", {}).get("calibration", {})
    tokens = [token for token in cache.frames.tokens if token in frames]
    gone = len(cache.frames) - len(tokens)
    if gone:
        return [
            Notice(
                "error", "dataset", f"{gone} cached frames are not in the dataset",
                str(frames.root),
                "point dataset.root and dataset.version at the dataset it was extracted from",
            )
        ]  # fmt: skip
    if frames.index.precision != cache.provenance.get("pose_precision", "float64"):
        return []  # one of them is rounded, so digests say nothing
    now = frames.in_order(tokens).identity(sensors=tuple(stored), annotations=False)["calibration"]
    return [
        Notice(
            "error", "calibration", "is another in the dataset now than at extraction",
            f"{sensor}, {len(tokens)} frames",
            "restore calibrated_sensor.json, or extract again: targets and frames do not belong "
            "together",
        )
        for sensor, _, _ in differences(stored, now)
    ]  # fmt: skip


def of_weights(cache: Cache) -> list[Notice]:
    """Say so where the file the teacher's weights came from is another now, or gone."""
    recorded = cache.provenance.get("checkpoint")
    if not recorded:
        return []
    name = str(recorded["file"])
    try:
        now = file_digest(name)
    except DataError:
        return [
            Notice(
                "note", "weights gone", "the file of the teacher's weights is not there any more",
                name, "nothing, if you know what they were: the cache keeps their digest",
            )
        ]  # fmt: skip
    if now == recorded["sha256"]:
        return []
    return [
        Notice(
            "error", "stale weights",
            "the file of the teacher's weights has changed since the cache was made: it holds what "
            "older weights said",
            f"{name}, {now[:12]} now, {recorded['sha256'][:12]} then",
            "extract again with the weights that are meant, to another URL",
        )
    ]  # fmt: skip


def of_teacher(cache: Cache) -> list[Notice]:
    """Say so where the teacher was never trained."""
    drawn = random_weights(cache)
    if drawn is None:
        return []
    return [
        Notice(
            "warning", "random weights",
            f"the teacher's weights are {drawn}, so what it says is not judged", cache.url,
            "nothing, if you are trying things out; else extract with teacher.checkpoint=FILE to "
            "another URL",
        )
    ]  # fmt: skip


def of_state(cache: Cache) -> list[Notice]:
    """Say so where not every frame is there."""
    if cache.sealed:
        return []
    done = sum(committed for committed, _ in cache.coverage.values())
    return [
        Notice(
            "warning", "not sealed", f"{done} of {len(cache.frames)} frames are cached", cache.url,
            "run the teacher-extract command that began it again; it goes on",
        )
    ]  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

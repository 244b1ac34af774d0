"""Are the numbers in a cache what its teacher's conventions say? Ground truth tells.

Every target is read in all the ways that somebody could have meant it; the declared one must fit
best. What ground truth cannot tell is undecided, never fine.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bevcask.cache.reader import Cache
from bevcask.data.index.frames import Frames
from bevcask.detectors.base import Detections
from bevcask.evaluation.box_readings import BoxReading, judge_boxes
from bevcask.evaluation.changes import changes_of
from bevcask.evaluation.map_readings import Truth, dense_energy, judge_maps
from bevcask.evaluation.nuscenes import Evaluation
from bevcask.evaluation.readings import DECLARED, Finding, Floats, undecided
from bevcask.progress import Ticker
from bevcask.targets.spec import TargetSpec

MEANING = "meaning/"  # of a problem's key, before what was found wrong
_JUDGED = ("dense_bev", "heatmap", "box_set")
_IN_IMAGES = "in images, and boxes are looked for on the ground alone"
_QUERIES = "no label says which object a query is of"
_VOXELS = "boxes label neither ground nor free space"
_NO_TRUTH = {
    "image_feature": _IN_IMAGES,
    "image_transform": _IN_IMAGES,
    "query_set": _QUERIES,
    "query_layers": _QUERIES,
    "query_places": _QUERIES,
    "query_points": _QUERIES,
    "track_ids": _QUERIES,
    "occupancy": _VOXELS,
    "voxel_labels": _VOXELS,
    "polylines": "boxes label objects, not the road",
    "box_code": "bevcask's own code of a head, no convention of a teacher",
    "channel_moments": "of a whole map, without places",
    "point_set": "measured, said by no teacher",
}
_SCORES = ("mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE")
_SCORE_OF = {"place": "mAP", "classes": "mAP"}
_WORSE = 0.02  # of a score that a reading must not lose if it is to be believed


@dataclass(frozen=True)
class Meaning:
    """What was found.

    Attributes:
        findings: of each target.
        official: target -> reading (`as declared`, `best`) -> scores of the devkit, of boxes.
        not_judged: target that ground truth says nothing of -> why.
        given: judged target -> what its teacher was shown that no detector in a car has.
        change: line of the spool's manifest -> what it must say, for the best readings to be the
            declared ones.
        remarks: on what fits otherwise and no line says, and where there is no manifest.
    """

    findings: list[Finding]
    official: dict[str, dict[str, dict[str, float]]]
    not_judged: dict[str, str]
    given: dict[str, list[str]]
    change: dict[str, Any]
    remarks: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)


def meaning(cache: Cache, frames: Frames, tokens: Sequence[str], bar: Ticker) -> Meaning:
    """Read every clean target in all the ways it could have been meant.

    What a teacher of random weights says has no meaning: all of it is undecided, no row is read.

    Args:
        cache: whose rows are read.
        frames: with ground truth; hold the tokens.
        tokens: frames to look at, committed.
        bar: moved by one a target and frame.
    """
    if (drawn := random_weights(cache)) is not None:
        return _not_looked_at(cache, f"the teacher's weights are {drawn}: nothing is judged")
    tokens = [token for token in tokens if frames.seen(token).any()]
    truth = [_truth(frames, token) for token in tokens]
    findings: list[Finding] = []
    official: dict[str, dict[str, dict[str, float]]] = {}
    for name, spec in _judged(cache).items():
        rows = [_values(cache, name, token, bar) for token in tokens]
        if spec.tap.kind == "box_set":
            cells = [own.tap.grid.cell for own in cache.specs.values() if own.tap.grid]
            found, best = judge_boxes(name, rows, truth, cells)
            official[name] = _official(frames, dict(zip(tokens, rows, strict=True)), found, best)
            found = [_last_word(own, official[name]) for own in found]
        else:
            found = _judge_map(spec, rows, truth)
        findings += found
    left, given = _left(cache), _given(cache)
    official = {name: own for name, own in official.items() if own}
    change, remarks = changes_of(cache.fingerprint["teacher"], findings)
    return Meaning(findings, official, left, given, change, remarks)


def random_weights(cache: Cache) -> str | None:
    """Return how the weights of a cache's teacher were drawn; None where they came from a file."""
    checkpoint = str(cache.fingerprint["teacher"].get("checkpoint", ""))
    return checkpoint if checkpoint.startswith("random") else None


def _not_looked_at(cache: Cache, why: str) -> Meaning:
    findings = [
        undecided(name, "place" if spec.tap.kind == "box_set" else "axes", why)
        for name, spec in _judged(cache).items()
    ]
    return Meaning(findings, {}, _left(cache), _given(cache), {}, [])


def _left(cache: Cache) -> dict[str, str]:
    judged = _judged(cache)
    return {name: _why_not(own) for name, own in cache.specs.items() if name not in judged}


def _given(cache: Cache) -> dict[str, list[str]]:
    return {name: list(own.tap.given) for name, own in _judged(cache).items() if own.tap.given}


def _why_not(spec: TargetSpec) -> str:
    if spec.view:
        return "views, of which the clean targets are judged"
    return _NO_TRUTH.get(spec.tap.kind, f"no rule for kind {spec.tap.kind}")


def _judged(cache: Cache) -> dict[str, TargetSpec]:
    return {
        name: spec
        for name, spec in cache.specs.items()
        if spec.tap.kind in _JUDGED and not spec.view
    }


def _truth(frames: Frames, token: str) -> Truth:
    """Return the boxes that some sensor saw."""
    boxes_N9, classes_N, _ = frames.labels(token)
    seen_N = frames.seen(token)
    return Truth(boxes_N9[seen_N].astype(np.float64), classes_N[seen_N])


def _values(cache: Cache, name: str, token: str, bar: Ticker) -> Any:
    """Return what is judged of a row: boxes (N, 11), a heatmap, the energy of a dense map."""
    stored, kind = cache.read(token, [name])[name], cache.specs[name].tap.kind
    bar.advance()
    values = stored.floats()
    if kind == "box_set":
        assert stored.count is not None
        return values[: int(stored.count)].astype(np.float64)
    return values if kind == "heatmap" else dense_energy(values)


def _judge_map(spec: TargetSpec, rows: Sequence[Any], truth: Sequence[Truth]) -> list[Finding]:
    assert spec.tap.grid is not None
    if spec.region.reads_boxes:
        note = f"only cells near true boxes are stored (region {spec.region})"
        return [undecided(spec.key, "axes", note)]
    if spec.tap.kind != "heatmap":
        return judge_maps(spec.key, rows, spec.tap.grid, truth)
    energy = [own.max(0).astype(np.float64) for own in rows]
    return judge_maps(spec.key, energy, spec.tap.grid, truth, rows)


def _official(
    frames: Frames, rows: Mapping[str, Floats], found: Sequence[Finding], best: BoxReading
) -> dict[str, dict[str, float]]:
    """Return the devkit's scores of boxes as declared, and as they fit best if that is otherwise.

    Nothing where they were not judged, or where there is nothing to score against.
    """
    if len(found) == 1 or frames.index.infos is not None or not frames.index.counted:
        return {}
    evaluation = Evaluation(frames)
    readings = {DECLARED: BoxReading()}
    if any(own.verdict == "wrong" for own in found):
        readings["best"] = best
    scores = {}
    for name, reading in readings.items():
        boxes = {token: _detections(reading.apply(own)) for token, own in rows.items()}
        with tempfile.TemporaryDirectory() as folder:
            result = evaluation.score(boxes, Path(folder))
        scores[name] = {key: float(result[key]) for key in _SCORES}
    return scores


def _detections(rows_N11: Floats) -> Detections:
    rows = torch.from_numpy(rows_N11)
    return Detections(rows[:, :9].float(), rows[:, 9].float(), rows[:, 10].long())


def _last_word(finding: Finding, official: Mapping[str, Mapping[str, float]]) -> Finding:
    """Take back that another place or class order fits where the official mAP falls by it."""
    score = _SCORE_OF.get(finding.what)
    if finding.verdict != "wrong" or score is None or "best" not in official:
        return finding
    before, after = official[DECLARED][score], official["best"][score]
    if after >= before - _WORSE:
        return finding
    note = f"the official {score} falls from {before:.3f} to {after:.3f} by it"
    return replace(finding, verdict="undecided", note=note, meant=None)

"""Does a cache still say what its dataset and its teacher say? Each disagreement is named."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevcask.cache.encoded import valid_entries
from bevcask.cache.layout import entry_axis, group_of, is_scaled, scale_axes
from bevcask.cache.quantize import as_stored
from bevcask.cache.reader import Cache
from bevcask.cache.verify_bytes import Problem
from bevcask.data.augment import stream
from bevcask.data.index.arrays import pose_tolerance
from bevcask.data.index.frames import Frames
from bevcask.data.loader import ViewSource
from bevcask.detectors.base import Batch
from bevcask.errors import CacheCorruptError
from bevcask.evaluation.verdict import Gap, Verdict, judge, judge_boxes, norm_share, worse
from bevcask.progress import Ticker
from bevcask.targets.region import region_mask
from bevcask.targets.spec import TargetSpec
from bevcask.teachers.base import Teacher

ARITHMETIC = 2.0**-14
"""Of a channel's peak: what another batch size or convolution algorithm may change. An eighth of
half a step of uint8; all that a float32 target is allowed."""
_TIME = 1e-6  # seconds
_FLIPPED = 1e-3  # of the stored cells: thresholds that arithmetic may decide otherwise
_FLIPPED_ELSEWHERE = 0.05  # where arithmetic was another
_BEYOND = 1e6  # errors are cut here, so that they stay numbers
_YAW, _CLASS = 6, 10  # columns of a box set


def frame_problems(cache: Cache, frames: Frames) -> list[Problem]:
    """Compare the frames a cache lists with the dataset.

    Args:
        cache: an open cache.
        frames: every frame of the dataset.

    Returns:
        A problem for each token the dataset does not have, each other time, each other pose.
    """
    table, problems = cache.frames, []
    position = {token: number for number, token in enumerate(frames.tokens)}
    times, poses = frames.timestamps, frames.lidar_to_global
    allowed = pose_tolerance(frames.index.precision, cache.provenance.get("pose_precision"))
    for number, token in enumerate(table.tokens):
        shard = cache.layout.row_of[token] // cache.layout.shard_rows
        if token not in position:
            what = "the dataset has no such sample"
            problems.append(Problem("frames/sample_token", what, shard, None, token))
            continue
        there = position[token]
        late = float(abs(table.timestamps[number] - times[there]))
        if not late <= _TIME:
            what = f"{late:.6f} s off the dataset's"
            problems.append(Problem("frames/timestamp", what, shard, None, token))
        off = float(np.abs(table.lidar_to_global[number] - poses[there]).max())
        if not off <= allowed:
            what = f"up to {off:.3g} off the dataset's"
            problems.append(Problem("frames/lidar_to_global", what, shard, None, token))
    return problems


def spread_tokens(cache: Cache, number: int, seed: int, first: Collection[str] = ()) -> list[str]:
    """Return frames to look at: those named first, then random ones of as many shards as possible.

    Args:
        cache: where they must be committed.
        number: how many; fewer come back where the cache has fewer.
        seed: of the choice.
        first: tokens that are suspected of something.
    """
    chosen = list(dict.fromkeys(first))[:number]
    random = stream(seed, "resample")
    shards = random.permutation(sorted(cache.committed)).tolist()
    left = {
        shard: random.permutation(list(cache.layout.frames_of(shard))).tolist() for shard in shards
    }
    while len(chosen) < number and any(left.values()):
        for shard in shards:
            if left[shard] and len(chosen) < number:
                token = cache.frames.tokens[left[shard].pop()]
                if token not in chosen:
                    chosen.append(token)
    return chosen


@dataclass
class Agreement:
    """How well a target agrees with its teacher.

    Attributes:
        frames: compared.
        error: largest error, in units of what codec and arithmetic may change (`error_bound`).
        absolute: the same error, in units of the target.
        token: where it is.
        cells_differ: largest share of stored cells that only one side stores.
        noise: largest gap between two answers of the teacher here, in the same units.
        verdict: the worst of any frame (`evaluation.verdict`).
    """

    frames: int = 0
    error: float = 0.0
    absolute: float = 0.0
    token: str | None = None
    cells_differ: float = 0.0
    noise: float = 0.0
    verdict: Verdict = "agrees"


def resample(
    cache: Cache, teacher: Teacher, source: ViewSource, tokens: Sequence[str],
    device: torch.device, bar: Ticker,
) -> tuple[dict[str, dict[str, Any]], list[Problem]]:  # fmt: skip
    """Ask the teacher again about some frames and compare with what is stored.

    Targets that depend on the memory of whole scenes are left out: they are of no frame alone.

    Args:
        cache: an open cache.
        teacher: the one that made it, loaded on `device`.
        source: gives frames as the teacher saw them, clean and in every view.
        tokens: which frames.
        device: where the teacher runs.
        bar: moved by one a frame.

    The teacher is asked twice about the first frame of each view: what differs then is its own
    noise.

    Returns:
        Target name -> `Agreement` as plain data; and a problem for each frame and target that is
        damaged, or another's.
    """
    found: dict[str, Agreement] = defaultdict(Agreement)
    problems: list[Problem] = []
    specs = [spec for spec in cache.specs.values() if not spec.tap.in_order]

    def ask(batch: Batch, own: Sequence[TargetSpec]) -> dict[str, Tensor]:
        said = teacher.targets(batch.to(device), [spec.name for spec in own])
        return {name: values.cpu() for name, values in said.items()}

    specs.sort(key=lambda spec: spec.tap.kind == "box_set")  # judged by the maps before them
    for token in tokens:
        maps: Verdict = "agrees"
        for view in sorted({spec.view for spec in specs}, reverse=True):
            own = [spec for spec in specs if spec.view == view]
            batch = source.collate([source.read(token, view)])
            said = ask(batch, own)
            again = ask(batch, own) if token == tokens[0] else None
            for spec in own:
                try:
                    verdict, problem = _compare(
                        cache, spec, token, batch, said, again, found[spec.key], maps
                    )
                except CacheCorruptError as error:
                    verdict, problem = "damage", str(error)
                if verdict != "damage":
                    maps = worse(maps, verdict)
                else:
                    shard = cache.layout.row_of[token] // cache.layout.shard_rows
                    key = f"{group_of(spec)}/values"
                    problems.append(Problem(key, problem, shard, spec.key, token))
        bar.advance()
    return {name: asdict(agreement) for name, agreement in found.items()}, problems


def joined(
    parts: Sequence[tuple[Mapping[str, Mapping[str, Any]], Sequence[Problem]]],
) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """Return what `resample` found of some frames and of others, as of all of them."""
    whole: dict[str, Agreement] = defaultdict(Agreement)
    for found, _ in parts:
        for name, own in found.items():
            other, all_ = Agreement(**own), whole[name]
            all_.frames += other.frames
            all_.cells_differ = max(all_.cells_differ, other.cells_differ)
            all_.noise = max(all_.noise, other.noise)
            all_.verdict = worse(all_.verdict, other.verdict)
            if all_.token is None or other.error > all_.error:
                all_.error, all_.absolute, all_.token = other.error, other.absolute, other.token
    problems = [problem for _, own in parts for problem in own]
    return {name: asdict(agreement) for name, agreement in whole.items()}, problems


def _compare(
    cache: Cache,
    spec: TargetSpec,
    token: str,
    batch: Batch,
    said: Mapping[str, Tensor],
    again: Mapping[str, Tensor] | None,
    agreement: Agreement,
    maps: Verdict,
) -> tuple[Verdict, str]:
    """Compare one target of one frame; return the verdict, and what is wrong."""
    stored = cache.read(token, [spec.key])[spec.key]
    scale = None if stored.scale is None else torch.from_numpy(stored.scale)
    values = torch.from_numpy(stored.floats())
    exact = as_stored(said[spec.name], spec).float()
    boxes = None if batch.labels is None else batch.labels.canonical_boxes
    mask = region_mask(spec.region, exact, spec.tap.grid, boxes)
    exact, differ = exact[0], 0.0
    if mask is not None and stored.region is not None:
        kept = torch.from_numpy(stored.region)
        differ = float((mask[0] != kept).sum() / max(1, int(kept.sum())))
        values, exact = values * (mask[0] & kept), exact * (mask[0] & kept)
    bound = error_bound(exact, scale, spec)
    if again is not None:
        other = as_stored(again[spec.name], spec).float()[0]
        whole = as_stored(said[spec.name], spec).float()[0]
        agreement.noise = max(agreement.noise, _gap(other, whole, bound, spec)[0].largest)
    if stored.count is not None:
        axis = entry_axis(spec.tap)
        values = valid_entries(values, stored.count, axis)
        exact = valid_entries(exact, said[f"{spec.name}.count"][0], axis)
    gap, absolute = _gap(values, exact, bound, spec)
    if spec.tap.kind == "box_set":
        verdict = judge_boxes(gap, agreement.noise, maps)
    else:
        verdict = judge(gap, agreement.noise)
    if differ > (_FLIPPED if verdict == "agrees" else _FLIPPED_ELSEWHERE):
        verdict = "damage"
    agreement.frames += 1
    agreement.cells_differ = max(agreement.cells_differ, differ)
    agreement.verdict = worse(agreement.verdict, verdict)
    if agreement.token is None or gap.largest > agreement.error:
        agreement.error, agreement.absolute, agreement.token = gap.largest, absolute, token
    if gap.largest > 1:
        times = f"off by {gap.largest:.3g} times what {spec.codec} may change"
        return verdict, f"the teacher says otherwise: {times}"
    return verdict, f"the teacher stores other cells: {differ:.2%} of those stored differ"


def error_bound(exact: Tensor, scale: Tensor | None, spec: TargetSpec) -> Tensor:
    """Return how far a stored value may be from what the teacher says when asked again.

    What the codec may change (`cache.quantize`) and what arithmetic may: `ARITHMETIC` of the
    channel's peak.

    Args:
        exact: (*tap.shape) float32, zero outside the region.
        scale: float32, one a [camera,] channel; None for float codecs.
        spec: how the target is stored.

    Returns:
        float32, broadcasts with `exact`.
    """
    kept = scale_axes(spec) or (exact.ndim - 1,)
    reduced = tuple(axis for axis in range(exact.ndim) if axis not in kept)
    peak = exact.abs().amax(dim=reduced, keepdim=True)
    arithmetic = ARITHMETIC * peak + 2.0**-100
    if is_scaled(spec):
        assert scale is not None
        return scale.reshape(peak.shape) / 2 + arithmetic
    if spec.codec == "float16":
        return (exact.abs() * 2.0**-11).clamp(min=2.0**-25) + arithmetic
    return arithmetic


def _gap(values: Tensor, exact: Tensor, bound: Tensor, spec: TargetSpec) -> tuple[Gap, float]:
    """Return how far two answers are apart, and their largest gap as it is."""
    if spec.tap.kind == "box_set":
        return _furthest_boxes(values, exact, bound[0])
    if values.shape != exact.shape:
        return Gap(torch.full((1,), _BEYOND), _BEYOND), _BEYOND
    if not exact.numel():
        return Gap(exact, 0.0), 0.0
    off = torch.nan_to_num((values - exact).abs(), nan=_BEYOND)
    units = torch.nan_to_num(
        off / bound[: len(off)] if bound.shape[0] > 1 else off / bound, nan=_BEYOND
    ).clamp(max=_BEYOND)
    largest = float(off.flatten()[int(units.argmax())])
    said = units[(exact != 0) | (values != 0)]
    return Gap(said if len(said) else units, norm_share(off, exact)), largest


def _furthest_boxes(values: Tensor, exact: Tensor, bound: Tensor) -> tuple[Gap, float]:
    """Return how far each box of either side is from its nearest on the other.

    Order is no matter: equal scores may be sorted either way.
    """
    if not len(values) or not len(exact):
        same = len(values) == len(exact)
        return (
            (Gap(torch.zeros(1), 0.0), 0.0)
            if same
            else (
                Gap(torch.full((1,), _BEYOND), _BEYOND),
                _BEYOND,
            )
        )
    off = (values[:, None] - exact[None]).abs()
    off[..., _YAW] = torch.minimum(off[..., _YAW], 2 * math.pi - off[..., _YAW]).abs()
    units, column = torch.nan_to_num(off / bound, nan=_BEYOND).clamp(max=_BEYOND).max(dim=-1)
    nearest = torch.cat([units.min(dim=1).values, units.min(dim=0).values])
    place = int((units == nearest.max()).flatten().nonzero()[0])
    largest = float(off.flatten(0, 1)[place, int(column.flatten()[place])])
    return Gap(nearest, 0.0), largest

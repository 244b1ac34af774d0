"""Do the stored values make sense? One pass over every row, as its kind and region demand.

What breaks a promise of the format is a problem. What is only unlikely (a channel that never
changes, a shard unlike the others) is a suspicion: a teacher may really have said so.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bevcask.cache.encoded import Encoded, valid_entries
from bevcask.cache.layout import dims_of, entry_axis, group_of
from bevcask.cache.reader import Cache, open_cache
from bevcask.cache.verify_bytes import Problem
from bevcask.cluster import Workers
from bevcask.errors import CacheCorruptError
from bevcask.targets.kinds import kind_of
from bevcask.targets.spec import TargetSpec
from bevcask.worker import kept

Floats = npt.NDArray[np.float64]
_MIN_SHARDS = 8  # fewer say nothing about what is usual
_FAR = 3.5  # modified z-score, Iglewicz and Hoaglin 1993
_SHIFT = 0.5  # standard deviations of a channel; smaller shifts are no matter
_SHOWN = 5
_SCORE = {"box_set": 9, "polylines": -2}  # its column
_MOMENTS = ("weight", "sum", "squares", "min", "max")


@dataclass(frozen=True)
class Values:
    """What `check_values` found.

    Attributes:
        problems: promises of the format that are broken.
        suspicions: what is unlikely.
        statistics: target name -> `mean`, `std`, `min`, `max`, `dead` (channels with one value
            everywhere), `drift` (share of a channel's variance that lies between scenes, mean over
            channels) and `drift_channel` (the largest); no entry for targets without channels.
    """

    problems: list[Problem]
    suspicions: list[Problem]
    statistics: dict[str, dict[str, Any]]


def check_values(
    cache: Cache,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cluster: Workers | None = None,
) -> Values:
    """Decode every committed row and check it.

    Rows that cannot be decoded are left out: `verify` names them.

    Args:
        cache: an open cache.
        workers: shards in flight; None: as many as `ThreadPoolExecutor` starts for this machine.
        progress: called with (shards done, shards in all).
        cluster: decodes and checks instead of threads here.
    """
    shards = sorted(cache.committed)
    problems: list[Problem] = []
    moments: dict[str, list[Floats]] = {name: [] for name in cache.specs}
    with ThreadPoolExecutor(workers) as pool:
        if cluster is None:
            found = pool.map(lambda shard: _Shard(cache, shard).check(), shards)
        else:
            found = cluster.map(partial(_check_there, cache.url, cluster.run), shards)
        for done, (own_problems, own_moments) in enumerate(found, start=1):
            problems += own_problems
            for name, table in own_moments.items():
                moments[name].append(table)
            if progress is not None:
                progress(done, len(shards))
    suspicions: list[Problem] = []
    statistics: dict[str, dict[str, Any]] = {}
    for name, spec in cache.specs.items():
        if "channel" not in dims_of(spec) or not shards:
            continue
        table_SC5 = np.stack(moments[name])
        if not table_SC5[..., 0].any():
            continue
        scenes = [cache.frames.scenes[cache.layout.frames_of(shard)[0]] for shard in shards]
        statistics[name] = _summary(table_SC5, scenes)
        suspicions += _dead(spec, table_SC5, shards) + _outliers(spec, table_SC5, shards)
    return Values(problems, suspicions, statistics)


def _check_there(url: str, run: str, shard: int) -> tuple[list[Problem], dict[str, Floats]]:
    cache = kept(run, "values", lambda: open_cache(url, allow_unsealed=True))
    return _Shard(cache, shard).check()


class _Shard:
    """The rows of one shard."""

    def __init__(self, cache: Cache, shard: int) -> None:
        self._cache = cache
        self._shard = shard
        self._problems: list[Problem] = []

    def check(self) -> tuple[list[Problem], dict[str, Floats]]:
        """Return the problems, and the moments (C, 5) of every target's channels."""
        moments: dict[str, Floats] = {}
        tokens = self._cache.layout.tokens_of(self._shard)
        for name, spec in self._cache.specs.items():
            moments[name] = _no_moments(_num_channels(spec))
            for token in tokens:
                try:
                    stored = self._cache.read(token, [name])[name]
                except CacheCorruptError:
                    continue
                values = self._row(spec, token, stored)
                if values is not None and "channel" in dims_of(spec):
                    moments[name] = _merge(moments[name], _row_moments(spec, values))
        return self._problems, moments

    def _row(
        self, spec: TargetSpec, token: str, stored: Encoded[npt.NDArray[Any]]
    ) -> npt.NDArray[np.float32] | None:
        """Check one row; return its values without what lies behind a count, None if useless."""

        def add(what: str) -> None:
            key = f"{group_of(spec)}/values"
            self._problems.append(Problem(key, what, self._shard, spec.key, token))

        if stored.scale is not None and not (np.isfinite(stored.scale) & (stored.scale >= 0)).all():
            add("a scale is negative or not finite")
            return None
        host = stored.floats()
        for problem in kind_of(spec.tap).problems(spec.tap, torch.from_numpy(host)[None]):
            add(problem.removeprefix(f"{spec.name}: "))
        if stored.region is not None:
            outside = int(np.count_nonzero(host[..., ~stored.region]))
            if outside:
                add(f"{outside} values outside the stored region are not zero")
        if stored.count is not None:
            axis = entry_axis(spec.tap)
            count, size = int(stored.count), spec.tap.shape[axis]
            if not 0 <= count <= size:
                add(f"count: expected 0 to {size}, got {count}")
                return None
            entries = np.moveaxis(host, axis, 0)
            behind = int(np.count_nonzero(entries[count:].any(axis=tuple(range(1, host.ndim)))))
            if behind:
                add(f"{behind} entries behind the count of {count} are not zero")
            host = valid_entries(host, count, axis)
            if spec.tap.kind in _SCORE and (np.diff(host[:, _SCORE[spec.tap.kind]]) > 0).any():
                add("entries are not sorted by score, best first")
        return host if np.isfinite(host).all() else None


def _num_channels(spec: TargetSpec) -> int:
    dims = dims_of(spec)[1:]
    return spec.tap.shape[dims.index("channel")] if "channel" in dims else 0


def _no_moments(num_channels: int) -> Floats:
    table = np.zeros((num_channels, len(_MOMENTS)))
    table[:, 3], table[:, 4] = np.inf, -np.inf
    return table


def _row_moments(spec: TargetSpec, values: npt.NDArray[np.float32]) -> Floats:
    """Return (C, 5) `_MOMENTS` of a row, in float64 sums."""
    channels = np.moveaxis(values, dims_of(spec)[1:].index("channel"), 0)
    flat = channels.reshape(len(channels), -1)
    table = _no_moments(len(flat))
    if flat.shape[1]:
        table[:, 0] = flat.shape[1]
        table[:, 1] = flat.sum(axis=1, dtype=np.float64)
        table[:, 2] = np.einsum("cn,cn->c", flat, flat, dtype=np.float64)
        table[:, 3], table[:, 4] = flat.min(axis=1), flat.max(axis=1)
    return table


def _merge(one: Floats, other: Floats) -> Floats:
    return np.column_stack(
        [
            one[:, :3] + other[:, :3],
            np.minimum(one[:, 3], other[:, 3]),
            np.maximum(one[:, 4], other[:, 4]),
        ]
    )


def _mean_and_variance(table: Floats) -> tuple[Floats, Floats]:
    """Return mean and variance (..., C) of moments (..., C, 5)."""
    weight = np.maximum(table[..., 0], 1)
    mean = table[..., 1] / weight
    return mean, np.maximum(table[..., 2] / weight - mean**2, 0)


def _summary(table_SC5: Floats, scenes: list[str]) -> dict[str, Any]:
    """Return the statistics of a target over all shards."""
    whole_C5 = _reduce(table_SC5)
    mean_C, variance_C = _mean_and_variance(whole_C5)
    numbers = np.unique(scenes, return_inverse=True)[1]
    scene_TC5 = np.stack([_reduce(table_SC5[numbers == n]) for n in range(numbers.max() + 1)])
    between_C = (scene_TC5[..., 0] * (_mean_and_variance(scene_TC5)[0] - mean_C) ** 2).sum(0)
    share_C = between_C / np.maximum(whole_C5[:, 0], 1)
    drift_C = np.divide(share_C, variance_C, out=np.zeros_like(mean_C), where=variance_C > 0)
    return {
        "mean": float(mean_C.mean()),
        "std": float(np.sqrt(variance_C.mean() + mean_C.var())),
        "min": float(whole_C5[:, 3].min()),
        "max": float(whole_C5[:, 4].max()),
        "dead": np.flatnonzero(whole_C5[:, 3] == whole_C5[:, 4]).tolist(),
        "drift": float(drift_C.mean()),
        "drift_channel": int(drift_C.argmax()),
    }


def _reduce(table_SC5: Floats) -> Floats:
    """Return the moments (C, 5) of several shards together."""
    return np.column_stack(
        [table_SC5[..., :3].sum(0), table_SC5[..., 3].min(0), table_SC5[..., 4].max(0)]
    )


def _dead(spec: TargetSpec, table_SC5: Floats, shards: list[int]) -> list[Problem]:
    """Name channels that never change, and shards in which a channel of all others is silent."""
    still_SC = (table_SC5[..., 3] >= table_SC5[..., 4]) & (table_SC5[..., 0] > 0)
    key, found = f"{group_of(spec)}/values", []
    dead = np.flatnonzero(still_SC[table_SC5[..., 0].any(1)].all(0))
    if len(dead):
        found.append(
            Problem(
                key,
                f"{len(dead)} of {still_SC.shape[1]} channels have one value everywhere: "
                f"{_listed(dead)}",
                target=spec.key,
            )
        )
    if len(shards) >= _MIN_SHARDS:
        alone_SC = still_SC & (still_SC.sum(0) == 1)
        for place in np.flatnonzero(alone_SC.any(1)):
            channels = np.flatnonzero(alone_SC[place])
            what = (
                f"channels with one value here, and many in all other shards: {_listed(channels)}"
            )
            found.append(Problem(key, what, shards[place], spec.key))
    return found


def _outliers(spec: TargetSpec, table_SC5: Floats, shards: list[int]) -> list[Problem]:
    """Name shards whose channel means lie far from those of the other shards.

    The distance of a shard is the mean over channels of |mean - median of means| / std of the
    channel; far is a modified z-score above 3.5 among shards and a shift of half a std at least.
    """
    if len(shards) < _MIN_SHARDS:
        return []
    mean_SC, _ = _mean_and_variance(table_SC5)
    std_C = np.sqrt(_mean_and_variance(_reduce(table_SC5))[1])
    alive_C = std_C > 0
    if not alive_C.any():
        return []
    shift_SC = np.abs(mean_SC - np.median(mean_SC, axis=0))[:, alive_C] / std_C[alive_C]
    distance_S = shift_SC.mean(1)
    spread = float(np.median(np.abs(distance_S - np.median(distance_S))))
    score_S = 0.6745 * (distance_S - np.median(distance_S)) / max(spread, 1e-12)
    return [
        Problem(
            f"{group_of(spec)}/values",
            f"unlike the other shards: its channel means are off by {distance_S[place]:.2f} "
            f"standard deviations, half of the shards by less than {np.median(distance_S):.2f}",
            shards[place],
            spec.key,
        )
        for place in np.flatnonzero((score_S > _FAR) & (distance_S > _SHIFT))
    ]


def _listed(numbers: npt.NDArray[np.int64]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return shown + (f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else "")

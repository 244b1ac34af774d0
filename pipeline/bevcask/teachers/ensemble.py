"""A teacher made of caches: the mean of their heatmaps, the union of their boxes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor

from bevcask.cache.encoded import Encoded
from bevcask.cache.identity import check_identity
from bevcask.cache.quantize import dequantize
from bevcask.cache.reader import Cache, open_cache
from bevcask.cache.union import labels_of, split_urls
from bevcask.catalog import resolve
from bevcask.config import Config as AnyConfig
from bevcask.config import PathText
from bevcask.detectors.base import Batch, Inputs
from bevcask.detectors.blocks.nms import union_nms
from bevcask.errors import CacheIdentityError, ConfigError, TargetMismatchError
from bevcask.fingerprint import digest
from bevcask.geometry import CLASSES
from bevcask.registry import suggest
from bevcask.targets.box_code import TASK_OF_CLASS
from bevcask.targets.pixels import PIXELS
from bevcask.targets.spec import TapInfo
from bevcask.teachers.base import Teacher

_KINDS = ("heatmap", "box_set")
_SCORE, _LABEL = 9, 10


class EnsembleConfig(AnyConfig):
    """Whose caches, and how much each counts."""

    of: PathText = Field(description="sealed caches of the same frames: URL,URL,...")
    weights: tuple[float, ...] = Field(
        (), description="of each cache, in their order; none: all alike"
    )
    radius: tuple[float, float, float, float, float, float] = Field(
        (2.0, 3.46, 3.16, 1.0, 0.92, 0.42),
        description="metres within which boxes of two caches are of one object: car; truck, "
        "construction vehicle; bus, trailer; barrier; motorcycle, bicycle; pedestrian, cone",
    )  # CenterPoint's circle NMS


class EnsembleTeacher(Teacher):
    """Reads what its teachers said; it has no network and needs no sensor data.

    A heatmap is the mean of theirs by weight. Boxes are the union of theirs: scores times weight
    (the largest counts as 1), and where boxes of one class from different caches lie within the
    radius, the best alone stays. Boxes are not averaged, and those of one cache never silence each
    other: its own suppression has judged them.
    """

    Config = EnsembleConfig

    def __init__(self, config: AnyConfig, seed: int) -> None:
        super().__init__(config, seed)
        self._own = cast(EnsembleConfig, config)
        self._urls = [resolve("cache", url) for url in split_urls(self._own.of)]
        if any(labels_of(self._own.of)):
            raise ConfigError(
                f"teacher.of={self._own.of}: the caches of an ensemble have no labels. Give "
                f"teacher.of={','.join(self._urls)}."
            )
        weights = self._own.weights or (1.0,) * len(self._urls)
        if len(weights) != len(self._urls) or min(weights) <= 0:
            raise ConfigError(
                f"teacher.weights={list(weights)}: expected {len(self._urls)} numbers above 0, one "
                "for each cache of teacher.of."
            )
        self._weights = weights
        self._device: torch.device | str = "cpu"

    @classmethod
    def claims(cls, config: AnyConfig) -> dict[str, Any]:
        return cls(config, 0).fingerprint()

    @cached_property
    def _caches(self) -> tuple[Cache, ...]:
        caches = tuple(open_cache(url) for url in self._urls)
        for cache in caches:
            check_identity(cache, {"classes": list(CLASSES)})
            _require_same_frames(caches[0], cache)
        return caches

    def caches(self) -> Sequence[Cache]:
        return self._caches

    @cached_property
    def _taps(self) -> dict[str, TapInfo]:
        first, *rest = self._caches
        names = [
            name
            for name, spec in first.specs.items()
            if spec.tap.kind in _KINDS
            and not spec.view
            and all(name in cache.specs for cache in rest)
        ]
        if not names:
            held = "; ".join(f"{cache.url} {', '.join(cache.specs)}" for cache in self._caches)
            raise TargetMismatchError(
                f"teacher.of={self._own.of}: all of them hold no heatmap and no boxes. They hold: "
                f"{held}."
            )
        return {name: _joined(name, self._caches) for name in names}

    def taps(self) -> Mapping[str, TapInfo]:
        return self._taps

    def inputs(self) -> Inputs:
        return Inputs()

    def offers(self) -> Mapping[str, TapInfo]:
        return {**self.taps(), PIXELS.name: PIXELS}

    def load(self, device: torch.device | str) -> None:
        self._device = device

    def fingerprint(self) -> dict[str, Any]:
        said = {
            "of": [
                {"id": cache.id, "weight": weight}
                for cache, weight in zip(self._caches, self._weights, strict=True)
            ],
            "radius": list(self._own.radius),
        }
        return {
            "type": "ensemble",
            "config": said,
            "weights": digest(said),
            "classes": list(CLASSES),
            "checkpoint": "caches",
        }

    def __call__(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        known = self.taps()
        for name in names:
            if name not in known:
                raise TargetMismatchError(
                    f"the ensemble has no tap {name!r}.{suggest(name, known)} Known: "
                    f"{', '.join(known)}."
                )
        read = [cache.read_batch(batch.tokens, names) for cache in self._caches]
        found: dict[str, Tensor] = {}
        for name in names:
            stored = [own[name] for own in read]
            if known[name].kind == "heatmap":
                found[name] = self._mean(stored)
            else:
                found[name], found[f"{name}.count"] = self._union(stored, known[name])
        return {name: value.to(self._device) for name, value in found.items()}

    def _mean(self, stored: Sequence[Encoded[Any]]) -> Tensor:
        total = sum(
            weight * _floats(own).double()
            for weight, own in zip(self._weights, stored, strict=True)
        )
        assert isinstance(total, Tensor)
        return (total / sum(self._weights)).float()

    def _union(self, stored: Sequence[Encoded[Any]], tap: TapInfo) -> tuple[Tensor, Tensor]:
        rows_CBN11 = [_floats(own) for own in stored]
        packed_BN11 = torch.zeros((len(rows_CBN11[0]), *tap.shape))
        kept_B = torch.zeros(len(packed_BN11), dtype=torch.int64)
        for b, out_N11 in enumerate(packed_BN11):
            said = []
            for rows_BN11, own in zip(rows_CBN11, stored, strict=True):
                assert own.count is not None
                said.append(rows_BN11[b, : int(own.count[b])])
            found_N11 = union(said, self._weights, self._own.radius)[: len(out_N11)]
            out_N11[: len(found_N11)] = found_N11
            kept_B[b] = len(found_N11)
        return packed_BN11, kept_B


def union(said: Sequence[Tensor], weights: Sequence[float], radius: Sequence[float]) -> Tensor:
    """Return the boxes (N, 11) of one frame that several said, best first.

    Args:
        said: (N, 11) of each: `geometry.BOX_FIELDS`, score, class.
        weights: of each; scores times weight / the largest.
        radius: metres, of each task group (`targets.box_code.TASKS`).
    """
    rows_N11 = torch.cat(list(said))
    source_N = torch.repeat_interleave(
        torch.arange(len(said)), torch.tensor([len(own) for own in said])
    )
    share_N = torch.tensor(weights, dtype=torch.float64)[source_N] / max(weights)
    rows_N11[:, _SCORE] = (rows_N11[:, _SCORE].double() * share_N).float()
    order_N = rows_N11[:, _SCORE].argsort(descending=True, stable=True)
    rows_N11, source_N = rows_N11[order_N], source_N[order_N]
    class_N = rows_N11[:, _LABEL].long()
    radius_N = torch.tensor(radius, dtype=torch.float64)[torch.tensor(TASK_OF_CLASS)[class_N]]
    return rows_N11[union_nms(rows_N11[:, :2], radius_N, class_N, source_N)]


def _floats(own: Encoded[Any]) -> Tensor:
    scale = None if own.scale is None else torch.from_numpy(own.scale)
    return dequantize(torch.from_numpy(own.values), scale)


def _joined(name: str, caches: Sequence[Cache]) -> TapInfo:
    """Return what the caches' targets of a name are together.

    Raises:
        TargetMismatchError: they lie on other cells, or not all of them are stored.
    """
    specs = [cache.specs[name] for cache in caches]
    taps = [spec.tap for spec in specs]
    first = taps[0]
    for cache, spec in zip(caches, specs, strict=True):
        if spec.region.name != "all":
            raise TargetMismatchError(
                f"{name} of {cache.url} is stored on region '{spec.region}', and a mean needs all "
                "cells. Extract it whole: method=none method.heatmap=" + name + "."
            )
        cells, kind = (spec.tap.shape, spec.tap.grid), spec.tap.kind
        if kind != first.kind or (kind == "heatmap" and cells != (first.shape, first.grid)):
            raise TargetMismatchError(
                f"{name} of {cache.url} is a {kind} {cells[0]} on {cells[1]}, that of "
                f"{caches[0].url} a {first.kind} {first.shape} on {first.grid}. An ensemble needs "
                "the same cells: leave one of the two out of teacher.of."
            )
    contexts = [tap.context for tap in taps if tap.context != "none"]
    return replace(
        first,
        shape=max(tap.shape for tap in taps),
        depends_on_images=any(tap.depends_on_images for tap in taps),
        context=contexts[0] if contexts else "none",
    )


def _require_same_frames(one: Cache, other: Cache) -> None:
    """Refuse caches of different frames.

    Raises:
        CacheIdentityError: how many are missing where, and the first.
    """
    for here, there in ((one, other), (other, one)):
        known = there.frames.tokens
        missing = [token for token in here.frames.tokens if token not in known]
        if missing:
            raise CacheIdentityError(
                f"teacher.of: {len(missing)} of {len(here.frames.tokens)} frames of {here.url} are "
                f"not in {there.url}, first {missing[0]}. An ensemble needs caches of the same "
                "frames: extract both of one dataset.split, dataset.scenes and dataset.limit."
            )

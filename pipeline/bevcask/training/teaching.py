"""Where the targets of a run come from, opened and checked: caches, or a teacher in the loop."""

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from bevcask.cache.identity import check_identity
from bevcask.cache.reader import Cache, open_cache
from bevcask.cache.union import (
    OF_NO_TEACHER,
    Caches,
    bare,
    label_in,
    labelled,
    labels_of,
    split_urls,
)
from bevcask.catalog import resolve
from bevcask.config import AugmentConfig, ImageAugmentConfig
from bevcask.data.augment import image_ranges, images_only
from bevcask.data.index.frames import Frames
from bevcask.data.join import cached_frames
from bevcask.data.samples import Replay, SampleReader
from bevcask.data.sampling import Ints
from bevcask.errors import ConfigError, PlanError
from bevcask.geometry import Grid
from bevcask.methods.base import Method
from bevcask.targets.lattice import same_cells
from bevcask.targets.pixels import needs_pixels
from bevcask.targets.plan import is_replayed, plan
from bevcask.targets.spec import TapInfo, TargetSpec, view_key
from bevcask.training.identity import check_classes, check_dataset, check_teacher
from bevcask.training.sources import CachedTargets, OnlineTargets, SeveralSources, TargetSource
from bevcask.verbs import DistillConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Teaching:
    """Where targets come from.

    Attributes:
        frames: the frames that have targets.
        specs: what the method reads, by name.
        source: gives the targets of a batch.
        cache: URL the loader reads, several separated by commas; None without a cache.
        cache_id: identities of these caches, in the same order.
        shards: int64 (n,), the shard of the (first) cache each frame lies in; None without one.
        skipped: selected frames that have no targets (`on_missing=skip`).
        teacher: who speaks, for people.
        readers: read what each online teacher sees, by its label.
        viewed: what the method reads in the view that the student is shown, by name.
        replay: the views; None where the student's images are its own.
    """

    frames: Frames
    specs: Mapping[str, TargetSpec]
    source: TargetSource
    cache: str | None = None
    cache_id: str | None = None
    shards: Ints | None = None
    skipped: int = 0
    teacher: str | None = None
    readers: Mapping[str, SampleReader] = field(default_factory=dict)
    viewed: Sequence[str] = ()
    replay: Replay | None = None


def open_teaching(
    config: DistillConfig, method: Method, frames: Frames, device: torch.device
) -> Teaching:
    """Open the source of targets the configuration names.

    Raises:
        ConfigError: the method needs a teacher and none is named.
        CacheIdentityError: a cache is of another teacher, dataset, class order or image ranges.
        CacheIncompleteError: a cache is not sealed.
        TokenNotCachedError: frames without a row, unless `on_missing=skip`.
        PlanError: the caches, or the teacher in the loop, lack what the method reads.
    """
    needed = list(dict.fromkeys(need.tap for need in method.needs()))
    if config.targets == "online" and needed:
        return _online(config, method, frames, device)
    if config.cache is not None:
        return _cached(config, method, frames)
    if needed:
        raise ConfigError(
            f"method {config.method['type']} needs {', '.join(needed)} of a teacher: give "
            "cache=URL (made by `bevcask teacher-extract`), or targets=online with teacher=NAME."
        )
    return Teaching(frames, {}, CachedTargets())


def _cached(config: DistillConfig, method: Method, frames: Frames) -> Teaching:
    """Open the caches and check that each is of this teacher, dataset and class order."""
    assert config.cache is not None
    growing = config.on_missing == "generate"
    urls = [resolve("cache", url) for url in split_urls(config.cache)]
    opened = [open_cache(url, allow_unsealed=growing) for url in urls]
    labels = labels_of(config.cache)
    caches = Caches(opened, labels)
    teachers = []
    kept = frames
    _require_labels(config, labels)
    for label, cache in zip(labels, caches, strict=True):
        check_classes(cache)
        teachers.append(check_teacher(cache, config.teachers.get(label, config.teacher)))
        check_dataset(cache, config.dataset)
        kept = cached_frames(kept, cache, "skip" if config.on_missing == "skip" else "raise")
    taps = {spec.name: spec.tap for spec in caches.specs.values()}
    views = max((spec.view for spec in caches.specs.values()), default=0)
    store = config.store.model_copy(update={"views": views})
    try:
        what = plan(method.needs(), taps, len(frames), store, config.augment, who="the cache")
    except PlanError as error:
        advice = _how_to_add(caches, method, config)
        raise PlanError("\n".join([f"cache={config.cache}: {error}", *advice])) from None
    meets = {spec.name: spec.alignment for spec in what.specs}
    needed = {need.tap for need in method.needs()}
    viewed = sorted(name for name in needed if view_key(name, 1) in caches.specs)
    stored = {
        name: caches.spec(at)
        for name in sorted(needed)
        for at in [view_key(name, 1) if name in viewed else name]
    }
    specs = {name: replace(spec, alignment=meets[name]) for name, spec in stored.items()}
    _mention_approximate(specs)
    first = next(iter(caches)).layout
    rows = first.rows_of(kept.tokens)
    return Teaching(
        frames=kept,
        specs=specs,
        source=CachedTargets(),
        cache=caches.urls,
        cache_id=caches.ids,
        shards=rows // first.shard_rows,
        skipped=len(frames) - len(kept),
        teacher=", ".join(dict.fromkeys(teachers)),
        viewed=viewed,
        replay=_replay(config, caches, viewed) if viewed else None,
    )


def _require_labels(config: DistillConfig, labels: Sequence[str]) -> None:
    """Refuse a teacher of several that no cache is of."""
    if strange := sorted(config.teachers.keys() - set(labels)):
        raise ConfigError(
            f"teachers.{strange[0]}: no cache has this label. cache={config.cache}; label them as "
            f"the teachers are: cache={','.join(f'{label}=URL' for label in config.teachers)}."
        )


def _how_to_add(caches: Caches, method: Method, config: DistillConfig) -> list[str]:
    """Return lines: the command that adds what a method lacks, or why no command does."""
    needed = {need.tap for need in method.needs()}
    lacking = sorted(needed - caches.specs.keys())
    labels = labels_of(str(config.cache))
    if told := _whose(lacking, labels):
        return [told]
    for label, cache in zip(labels, caches, strict=True):
        own = {bare(name) for name in lacking if label_in(name) == label}
        if own and own <= set(cache.plan.get("offers", own)):
            return [
                "This adds what is missing, and changes nothing else:",
                _same_command(cache, "method", [f"method={_taught_by(label, config.method)}"]),
            ]
        shown = {
            name: cache.specs[bare(name)].tap
            for name in needed - set(lacking)
            if label_in(name) == label and bare(name) in cache.specs
        }
        words = _image_words(config.augment)
        if words and not lacking and any(is_replayed(tap, 1) for tap in shown.values()):
            return [
                "This adds four views of each frame under these augmentations, and changes nothing "
                "else:",
                _same_command(cache, "augment", ["store.views=4", *words]),
            ]
    return [_who_offers(caches, lacking)] if lacking else []


def _image_words(augment: AugmentConfig) -> list[str]:
    """Return the words that say the image part of an augmentation; none for none."""
    default = image_ranges(ImageAugmentConfig())
    return [
        f"augment.{key}={json.dumps(value, separators=(',', ':'))}"
        for key, value in image_ranges(augment).items()
        if value != default[key]
    ]


def _same_command(cache: Cache, replaced: str, words: Sequence[str]) -> str:
    """Return the command that made a cache, with other words for a section of keys."""
    dropped = {replaced, "part", "repair", "--json", *(word.partition("=")[0] for word in words)}
    said = [
        word
        for word in shlex.split(str(cache.provenance["command"]))
        if (key := word.partition("=")[0]) not in dropped and not key.startswith(f"{replaced}.")
    ]
    return shlex.join([*said, *words])


def _who_offers(caches: Caches, lacking: Sequence[str]) -> str:
    """Say that the teachers of these caches do not offer taps, and who does."""
    from bevcask.detectors.offering import teachers_offering

    teachers = ", ".join(str(cache.fingerprint["teacher"]["type"]) for cache in caches)
    able = teachers_offering([bare(name) for name in lacking])
    return (
        f"Its teacher ({teachers}) offers no {', '.join(lacking)}"
        + (f"; these do: teacher={', '.join(able)}" if able else "")
        + f": extract a cache of {'one of them' if able else 'a teacher that does'}, and name both "
        "as cache=a,b or that one alone."
    )


def _whose(lacking: Sequence[str], labels: Sequence[str]) -> str | None:
    """Say how to name the cache of each method, where names and labels do not go together."""
    asked = {label_in(name) for name in lacking}
    if asked <= set(labels) or not any([*labels, *asked]):
        return None
    known = ", ".join(label for label in labels if label)
    if not known:
        return f"No cache has a label: cache={','.join(f'{label}=URL' for label in sorted(asked))}."
    return (
        "Say which of the caches teaches each method, methods=NAME method.NAME.cache=LABEL, where "
        f"LABEL is one of {known}; or leave the labels out."
    )


def _taught_by(label: str, section: Mapping[str, Any]) -> str:
    """Return the method that reads a labelled cache."""
    members = section.get("of", {}).values()
    return str(next((m["type"] for m in members if m.get("cache", "") == label), section["type"]))


def _mention_approximate(specs: Mapping[str, TargetSpec]) -> None:
    """Name targets that the teacher would say otherwise of what the student is shown."""
    names = [name for name, spec in specs.items() if spec.alignment == "approximate"]
    if names:
        _log.warning(
            "approximate under this augmentation: %s. The teacher was shown frames without it. "
            "A cache extracted with store.views=K replays what happens to the images.",
            ", ".join(names),
        )


def mention_cells(
    method: Method, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]
) -> None:
    """Say which maps of a student are read at the cells of a target that are not their own."""
    told = []
    for pair in method.pairs():
        near, target = student.get(pair.student or ""), specs.get(pair.teacher or "")
        mine, theirs = near and near.grid, target and target.tap.grid
        if mine and theirs and not same_cells(mine, theirs):
            told.append(f"{pair.student} ({_cells(mine)}) for {pair.teacher} ({_cells(theirs)})")
    if told:
        _log.info(
            "maps of the student are read where the cells of the teacher's lie, which are others: "
            "%s.",
            "; ".join(dict.fromkeys(told)),
        )


def _cells(grid: Grid) -> str:
    return f"{grid.num_x} x {grid.num_y} cells of {grid.cell:g} m"


def _replay(config: DistillConfig, caches: Caches, viewed: Sequence[str]) -> Replay:
    """Return the views that all these targets have, for a student with their image augmentation.

    Raises:
        CacheIdentityError: the student's ranges, or those or the seed of another of these caches,
            differ; leaves below `views`.
    """
    homes = {cache.url: cache for name in viewed for cache in [caches.home(view_key(name, 1))]}
    seed = int(next(iter(homes.values())).fingerprint["views"]["seed"])
    for cache in homes.values():
        augment = image_ranges(config.augment)
        check_identity(cache, {"views": {"augment": augment, "seed": seed}})
    stored = [spec for spec in caches.specs.values() if spec.name in viewed]
    return Replay(seed, min(sum(s.name == name for s in stored) for name in viewed))


def _online(
    config: DistillConfig, method: Method, frames: Frames, device: torch.device
) -> Teaching:
    """Load a teacher, or several, into the loop."""
    from bevcask.teachers import build_teacher

    sections = config.teachers or {"": config.teacher}
    teachers = {label: build_teacher(own, config.seed) for label, own in sections.items()}
    canonical = config.online.input == "canonical"
    taps = {
        name: replace(tap, name=name)
        for label, teacher in teachers.items()
        for own, tap in teacher.offers().items()
        for name in [labelled(own, label)]
    }
    augment = config.augment if canonical else None
    what = plan(method.needs(), taps, len(frames), config.store, augment)
    needed = {need.tap for need in method.needs()}
    specs = {s.name: s for s in what.specs if s.name in needed and s.view <= 1}
    _refuse_memory(specs)
    replay = Replay(config.seed, config.store.views) if config.store.views else None
    shown = None if canonical and replay is None else config.augment
    if canonical and shown is not None:
        shown = images_only(shown)
    sources: list[TargetSource] = []
    readers, said = {}, []
    for label, teacher in teachers.items():
        own = _own_specs(specs, label, first=not sources)
        teacher.load(device)
        sources.append(OnlineTargets(teacher, own, canonical, label))
        readers[label] = SampleReader(
            frames,
            teacher.reads(),
            shown,
            config.seed,
            replay,
            pixels=needs_pixels(own.values()),
        )
        identity = teacher.fingerprint()
        said.append(f"{identity['type']}, weights {str(identity['weights'])[:12]}")
    return Teaching(
        frames=frames,
        specs=specs,
        source=SeveralSources(sources) if config.teachers else sources[0],
        teacher=f"online ({config.online.input}) {', '.join(said)}",
        readers=readers,
        replay=replay,
    )


def _refuse_memory(specs: Mapping[str, TargetSpec]) -> None:
    in_order = [name for name, spec in specs.items() if spec.tap.in_order]
    if in_order:
        raise ConfigError(
            "targets=online: this teacher remembers the frames before, and training shows them in "
            f"no order, but {', '.join(in_order)} depends on memory. Extract a cache of it and "
            "name that with cache=URL, or show it windows: teacher.memory=window."
        )


def _own_specs(specs: Mapping[str, TargetSpec], label: str, first: bool) -> dict[str, TargetSpec]:
    """Return what one of several teachers says, by its own names; the first says what is data."""
    return {
        bare(name): replace(spec, tap=replace(spec.tap, name=bare(name)))
        for name, spec in specs.items()
        if name == labelled(bare(name), label) and (first or name not in OF_NO_TEACHER)
    }

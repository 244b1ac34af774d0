"""teacher-extract: run the teacher once over a selection and fill a cache.

    frames -> teacher(taps) -> region, quantize (on device) -> writer (bounded queue) -> cache.zarr

The shard is the unit of work and of resume: a killed run loses at most the shards in flight.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Group
from torch import Tensor

from bevcask.cache.begin import begin, stored_targets
from bevcask.cache.files import Files
from bevcask.cache.identity import require_identity
from bevcask.cache.layout import Layout
from bevcask.cache.lease import RENEW_SECONDS, STALE_SECONDS
from bevcask.cache.parts import Part, cut
from bevcask.cache.reader import Cache, open_cache
from bevcask.cache.repair import Repairer, read_list
from bevcask.catalog import check_name, is_missing, register_cache, resolve
from bevcask.cluster import Workers, workers_of
from bevcask.data.can_bus import mention_can_bus
from bevcask.data.index.frames import Frames
from bevcask.data.lidar import mention_sweeps
from bevcask.data.presence import readable_frames
from bevcask.detectors.weights import weights_file
from bevcask.errors import ConfigError, PlanError
from bevcask.extraction.fill import Bar, Filled, Job, fill, write_missing
from bevcask.extraction.identity import fingerprint, frame_table, made_by
from bevcask.extraction.views import check_views
from bevcask.methods import build_method
from bevcask.outputs import cache_place
from bevcask.paths import head_of, split_url
from bevcask.progress import no_bar, progress_bar
from bevcask.provenance import command, hardware, pick_device
from bevcask.results import show
from bevcask.scheduler import share
from bevcask.stages.evaluate import expected_of_cache, require_honest, require_scores
from bevcask.targets.plan import BOXES, Plan, plan
from bevcask.teachers import build_teacher
from bevcask.teachers.base import Teacher
from bevcask.teachers.reckoning import prepare
from bevcask.training.identity import check_dataset, spoken_of
from bevcask.verbs import ExtractConfig
from bevcask.viz.planned import targets_table
from bevcask.worker import kept, one_at_a_time, own_device, require_children, unwanted

_log = logging.getLogger(__name__)
_OF_ALL = ("frames", "committed_frames", "shards_left")


def run(config: ExtractConfig) -> dict[str, Any]:
    """Fill `config.cache` with what the method needs of the teacher.

    A sealed cache that lacks some of it gets it added; `part=i/n` fills the i-th of n ranges of
    shards, and whoever finds all committed seals; without it a scheduler's variables say which
    (`scheduler.share`); `repair=FILE` writes listed shards again.

    Returns:
        cache URL, id, `sealed`; of all parts `frames`, `committed_frames`, stored and raw bytes,
        `shards_left`; `reused` shards, the head file; with `expect.map` of a sealed cache the
        official scores of its boxes, and `ok`, whether it is reached.

    Raises:
        ConfigError: no cache URL, or a wrong section.
        PlanError: the teacher does not offer what the method needs, or the boxes to be scored.
        CacheIdentityError: the URL holds a cache of another teacher, dataset or selection.
        CacheBusyError: another process fills the same shards.
        DiskFullError: the projected size does not fit.
        DataError: files of selected frames are not there, unless `on_missing=skip`.
    """
    if config.cache is None:
        raise ConfigError("teacher-extract needs a cache URL: bevcask teacher-extract URL ...")
    url = cache_place(resolve("cache", config.cache))
    if config.name is not None:
        check_name(config.name, url)
    config = _shared(config)
    part = Part() if config.part is None else Part.parse(config.part)
    config = config.model_copy(update={"cache": url})
    machine = {} if config.engine == "dask" else _machine(config)
    frames, teacher = _source(config, url)
    _check_expected(config, frames, teacher)
    if config.repair is not None:
        return _expected(config, url, _repair(config, url, frames, teacher))
    _mention(frames, teacher)
    asked = ask(config, frames, teacher)
    if config.dry_run:
        return {"cache": url, "dry_run": True, **asked.what.to_dict()}
    with workers_of(config) as workers:
        if workers is None:
            job = asked.begin(machine)
            filled = fill(job, _shards(job, part), str(part))
        else:
            job, filled = _fill_by(workers, asked, part)
    left = finish(job)
    found = report(url, teacher, len(frames), config.name) | {
        "raw_gb": asked.what.total_bytes / 1e9,
        "part": None if config.part is None else config.part,
        "shards_left": left,
        "reused": filled.reused,
        "wall_time": filled.wall_time,
    }
    return _expected(config, url, found)


def render(result: dict[str, Any]) -> Group:
    """Show what is there; of one part, which numbers are of all."""
    if "targets" in result:
        told = {key: value for key, value in result.items() if key != "targets"}
        return Group(show(told), targets_table(result))
    of_all = _OF_ALL if result.get("part") else ()
    return show({f"{key} of all parts" if key in of_all else key: result[key] for key in result})


def _check_expected(config: ExtractConfig, frames: Frames, teacher: Teacher) -> None:
    require_scores(config.expect, frames)
    if config.expect.map is not None and BOXES not in teacher.offers():
        raise PlanError(
            f"expect.map={config.expect.map:g}: this teacher offers no {BOXES} to score. It offers "
            f"{', '.join(teacher.offers())}."
        )
    if config.expect.map is not None:
        require_honest(teacher.offers(), f"expect.map={config.expect.map:g}")


def _expected(config: ExtractConfig, url: str, found: dict[str, Any]) -> dict[str, Any]:
    """Add what the boxes score, if that is asked and everything is there."""
    if config.expect.map is None or not found.get("sealed"):
        return found
    scores: dict[str, Any] = expected_of_cache(config, url)
    return found | scores


@dataclass(frozen=True)
class Asked:
    """What is asked for, and checked, before anything is written.

    Attributes:
        config: with the URL of the cache.
        frames: the selection.
        teacher: not loaded yet.
        what: what is stored of what it says.
        tree: the identity of the cache.
        old: a cache whose shards are taken over where they fit.
    """

    config: ExtractConfig
    frames: Frames
    teacher: Teacher
    what: Plan
    tree: Mapping[str, Any]
    old: Cache | None

    def begin(self, machine: Mapping[str, Any]) -> Job:
        """Begin the cache, or go on with it; `machine` is recorded."""
        config, frames, teacher = self.config, self.frames, self.teacher
        planned = self.what.to_dict() | {
            "dataset": config.dataset.model_dump(mode="json"),
            "offers": sorted(teacher.offers()),
        }
        begun = begin(
            str(config.cache),
            list(self.what.specs),
            frame_table(frames),
            shard_rows=config.store.shard_rows,
            fingerprint=self.tree,
            made={"provenance": made_by(teacher, frames, machine), "plan": planned},
        )
        whole_scenes = any(spec.tap.in_order for spec in self.what.specs)
        return Job(config, frames, teacher, begun, whole_scenes, self.old)


def begin_job(config: ExtractConfig, bar: Bar) -> Job:
    """Begin an extraction whose shards are asked for one by one, or go on with one.

    Where there is a cache, its frames are meant, and so many a shard as it has.

    Args:
        config: with the URL of the cache.
        bar: shows how far each range is.

    Raises:
        CacheIdentityError: the URL holds a cache of another teacher, dataset or selection.
    """
    url, machine = str(config.cache), _machine(config)
    frames, teacher = _source(config, url)
    if stored_targets(url):
        there = open_cache(url, allow_unsealed=True)
        frames = Frames.select(config.dataset.whole()).keep(there.frames.tokens)
        rows = {"shard_rows": there.layout.shard_rows}
        config = config.model_copy(update={"store": config.store.model_copy(update=rows)})
    return replace(ask(config, frames, teacher).begin(machine), bar=bar)


def _machine(config: ExtractConfig) -> dict[str, Any]:
    """Return what this process reckons on; what it cannot do is refused."""
    device = pick_device(config.device)
    prepare(config.teacher, device.type)
    return hardware(device)


def _source(config: ExtractConfig, url: str) -> tuple[Frames, Teacher]:
    teacher = build_teacher(config.teacher, config.seed)
    frames = Frames.select(config.dataset)
    frames = spoken_of(frames, teacher.caches(), config.dataset, config.on_missing)
    return _present_frames(config, url, frames, teacher), teacher


def ask(config: ExtractConfig, frames: Frames, teacher: Teacher) -> Asked:
    """Return what an extraction of some frames would store, checked.

    Raises:
        ConfigError: views that change nothing.
        PlanError: the teacher does not offer what the method needs.
    """
    method = build_method(config.method)
    stored = stored_targets(str(config.cache))
    what = plan(method.needs(), teacher.offers(), len(frames.tokens), config.store, None)
    what = what.with_stored(stored)
    if config.store.views:
        check_views(config, what, teacher)
    old = _open_reused(config)
    tree = fingerprint(config, teacher, frames, [*what.specs, *stored])
    return Asked(config, frames, teacher, what, tree, old)


def _shards(job: Job, part: Part) -> range:
    return part.shards(job.begun.cache.layout, job.whole_scenes)


def finish(job: Job) -> int:
    """Seal the cache if all parts of it are there; return how many shards are missing."""
    writer = job.begun.writer(range(0), "the seal")
    left = writer.unfinished()
    if not left:
        writer.seal()
    return left


def _fill_by(workers: Workers, asked: Asked, part: Part) -> tuple[Job, Filled]:
    """Let workers fill a part in portions; one that was killed leaves its portion to another."""
    [machine] = workers.map(_machine_there, [asked.config])
    job = asked.begin(machine)
    layout, config = job.begun.cache.layout, job.config
    left = job.begun.writer(_shards(job, part), str(part)).missing()
    portions = cut(left, layout, config.loader.batch_size if job.whole_scenes else None)
    work = partial(_fill_there, config, workers.run)
    reused = 0
    with progress_bar("extract shards", sum(map(len, portions))) as bar:
        for portion, filled in zip(portions, workers.map(work, portions), strict=True):
            reused += filled.reused
            bar.advance(len(portion))
    job.begun.tidy()
    return job, Filled(reused, None)


def _machine_there(config: ExtractConfig) -> dict[str, Any]:
    return _machine(_on_own_device(config))


def _fill_there(config: ExtractConfig, run: str, shards: range) -> Filled:
    """Fill a portion on a worker, which keeps its teacher for the next."""
    with one_at_a_time:
        job = kept(run, "job", lambda: _job_there(_on_own_device(config)))
        what = f"shards {shards.start} to {shards.stop - 1}"
        return fill(job, shards, what, patience=STALE_SECONDS + RENEW_SECONDS)


def _job_there(config: ExtractConfig) -> Job:
    require_children(config.loader.num_workers)
    url = str(config.cache)
    chosen = open_cache(url, allow_unsealed=True).frames.tokens
    frames = Frames.select(config.dataset).keep(chosen)
    asked = ask(config, frames, build_teacher(config.teacher, config.seed))
    return replace(asked.begin({}), bar=no_bar, unwanted=unwanted)


def _on_own_device(config: ExtractConfig) -> ExtractConfig:
    return config.model_copy(update={"device": own_device(config.device)})


def _shared(config: ExtractConfig) -> ExtractConfig:
    """Return the configuration with the part that a scheduler gives this process, if any."""
    found = None if config.part or config.repair else share(os.environ)
    if found is None:
        return config
    part = f"{found.number}/{found.count}"
    _log.info("part=%s, as %s; part=1/1 fills everything from here", part, found.said_by)
    return config.model_copy(update={"part": part})


def _present_frames(config: ExtractConfig, url: str, frames: Frames, teacher: Teacher) -> Frames:
    """Return the frames to cache: all where their files are there, or those whose are.

    Parts, repairs, reused shards and a cache that was begun need the files of what is left to write
    alone; `fill` looks for those.
    """
    partial = config.part or config.repair or config.store.reuse or not is_missing(url)
    if config.on_missing == "raise" and partial:
        return frames
    return readable_frames(frames, teacher.reads(), "dataset", config.on_missing)


def _mention(frames: Frames, teacher: Teacher) -> None:
    """Say what this teacher does not see of what is there, or misses."""
    if frames.virtual_points is not None and not teacher.inputs().virtual_points:
        _log.warning(
            "dataset.virtual_points=%s: this teacher sees real points only. A LiDAR detector with "
            "point_channels 17 (teacher=centerpoint_mvp) sees both.",
            frames.virtual_points,
        )
    mention_sweeps(frames, teacher.inputs().num_sweeps)
    if teacher.inputs().can_bus:
        mention_can_bus(frames.index, frames.rows)


def report(url: str, teacher: Teacher, num_frames: int, name: str | None = None) -> dict[str, Any]:
    """Return what a cache holds now; of a sealed one write the head file, and keep its name."""
    cache = open_cache(url, allow_unsealed=True)
    head = export_head(teacher, url) if cache.sealed else None
    if cache.sealed:
        teacher.sealed(cache.frames.tokens)
    if cache.sealed and name is not None:
        register_cache(url, cache, name)
    return {
        "cache": url,
        "id": cache.id,
        "frames": num_frames,
        "committed_frames": sum(done for done, _ in cache.coverage.values()),
        "stored_gb": sum(cache.stored_bytes(name) for name in cache.specs) / 1e9,
        "sealed": cache.sealed,
        "head": head,
    }


def _open_reused(config: ExtractConfig) -> Cache | None:
    """Return the cache `store.reuse` names, of this very dataset."""
    if config.store.reuse is None:
        return None
    old = open_cache(resolve("cache", config.store.reuse), allow_unsealed=True)
    check_dataset(old, config.dataset, exact=True)
    return old


def _repair(config: ExtractConfig, url: str, frames: Frames, teacher: Teacher) -> dict[str, Any]:
    """Write the listed targets of the listed shards again, from the same teacher and data."""
    if config.part is not None:
        raise ConfigError("repair= and part= do not go together: one process repairs.")
    if config.engine != "here":
        raise ConfigError("repair= and engine= do not go together: one process repairs.")
    assert config.repair is not None
    wanted = read_list(Path(config.repair))
    cache = Cache(url, allow_unsealed=True, lenient=True)
    specs = list(cache.specs.values())
    layout = Layout(frame_table(frames), specs, config.store.shard_rows)
    require_identity(cache, layout.identity(fingerprint(config, teacher, frames, specs)))
    if config.dry_run:
        return {"cache": url, "dry_run": True, "to_repair": len(wanted)}
    repairer = Repairer(
        cache,
        wanted,
        {"provenance": made_by(teacher, frames, _machine(config)), "repair": True},
    )
    if wanted:
        with repairer:
            write_missing(config, frames, teacher, repairer)
    return report(url, teacher, len(frames)) | {
        "repaired": len(wanted),
        "changed": repairer.changed,
    }


def export_head(teacher: Teacher, url: str) -> str | None:
    """Write the teacher's head branches beside a cache, for `student.head=`; return where."""
    tensors: dict[str, Tensor] = teacher.head()
    if not tensors:
        return None
    place = head_of(url)
    folder, name = split_url(place)
    head = weights_file(tensors, {"made_by": command()})
    if Files(folder).get(name) != head:
        Files(folder).put(name, head)
    return place

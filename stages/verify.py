"""verify: is a cache still what was committed, does it make sense, does its teacher agree?

digests of all files -> values, frames (check=meaning) -> the teacher again (resample=N)
-> the teacher, augmented (equivariance=N) -> the teacher, shown windows (windows=N)
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from bevcask.cache.identity import check_identity
from bevcask.cache.reader import Cache, open_cache
from bevcask.cache.verify_bytes import Problem, Report, verify
from bevcask.cache.verify_values import check_values
from bevcask.catalog import resolve
from bevcask.cluster import Workers, workers_of
from bevcask.config import AugmentConfig, TeacherConfig, validate
from bevcask.data.index.frames import Frames
from bevcask.data.loader import ViewSource
from bevcask.data.samples import SampleReader
from bevcask.errors import (
    BevcaskError,
    CacheCorruptError,
    CacheIdentityError,
    ConfigError,
    StoreError,
)
from bevcask.evaluation.agreement import frame_problems, joined, resample, spread_tokens
from bevcask.evaluation.equivariance import (
    AUGMENTATIONS,
    clean_maps,
    equivariance_gap,
    equivariance_sums,
)
from bevcask.evaluation.meaning import MEANING, meaning
from bevcask.evaluation.windows import remembered_targets, window_gap, window_sums
from bevcask.outputs import output_file
from bevcask.paths import write_whole
from bevcask.progress import no_bar, progress_bar
from bevcask.provenance import hardware, pick_device
from bevcask.targets.pixels import needs_pixels
from bevcask.teachers import build_teacher
from bevcask.teachers.base import Teacher
from bevcask.training.identity import check_classes, check_dataset, check_resampling
from bevcask.verbs import VerifyConfig
from bevcask.viz.verification import render
from bevcask.worker import kept, one_at_a_time, own_device

__all__ = ["open_teacher", "render", "run", "write_repair_list"]

Found = TypeVar("Found")
_LOOKED_AT = 64  # frames that are compared with ground truth
_PORTION = 8  # frames; the teacher is asked twice about the first, to know its noise


def run(config: VerifyConfig) -> dict[str, Any]:
    """Check a cache as deeply as asked.

    Returns:
        `ok` (no problems), files and bytes hashed, `problems` and `suspicions` (`key`, `what`,
        `shard`, `target`, `token`), and for what was asked: `statistics` per target, `meaning`
        (which reading of axes, grids, classes and boxes fits ground truth; `change`: what lines of
        a spool's manifest must say for it), `resample` per target, `equivariance` per augmentation
        and target, `windows` per target, `repair`, `notes` on what differs and is no damage;
        `unfinished` says what came in the way of a deeper look at a damaged cache.

    Raises:
        ConfigError: no cache URL, or no teacher where one is needed.
        CacheIncompleteError: there is no cache at the URL.
        CacheIdentityError: the teacher named is not the one that made the cache.
    """
    if config.cache is None:
        raise ConfigError("verify needs a cache URL: bevcask verify URL.")
    asked = config.resample or config.equivariance or config.windows
    if asked and not config.teacher.detector:
        raise ConfigError(
            "resample=, equivariance= and windows= run the teacher again: name it and the dataset, "
            "as for teacher-extract (teacher=NAME teacher.checkpoint=FILE dataset.root=FOLDER)."
        )
    url = resolve("cache", config.cache)
    mend = None if config.repair is None else output_file("repair", config.repair, ".jsonl")
    with workers_of(config) as workers:
        report, problems, suspicions, result = _check(config, url, workers)
    if mend is not None:
        result["repair"] = write_repair_list(problems, report.targets, mend)
    return {
        "cache": url,
        "ok": not problems,
        "files": report.num_files,
        "bytes": report.num_bytes,
        "problems": [asdict(problem) for problem in problems],
        "suspicions": [asdict(suspicion) for suspicion in suspicions],
        **result,
    }


def _check(
    config: VerifyConfig, url: str, workers: Workers | None
) -> tuple[Report, list[Problem], list[Problem], dict[str, Any]]:
    """Return what was hashed, problems, suspicions, and what deeper looks gave."""
    asked = config.resample or config.equivariance or config.windows
    with progress_bar("verify", 0, unit="bytes") as bar:
        report = verify(url, progress=bar.move_to, cluster=workers)
    problems, suspicions, result = list(report.problems), list[Problem](), dict[str, Any]()
    if config.check == "meaning" or asked:
        try:
            cache = open_cache(url, allow_unsealed=True)
        except (CacheCorruptError, CacheIdentityError, StoreError) as error:
            problems.append(
                Problem("zarr.json", f"cannot be opened, so no more was checked: {error}")
            )
        else:
            try:
                if config.check == "meaning":
                    suspicions = _meaning(config, cache, workers, problems, result)
                if asked:
                    _ask_teacher(config, cache, workers, suspicions, problems, result)
            except BevcaskError as error:
                if not problems:
                    raise
                result["unfinished"] = str(error)  # damage that was found is not forgotten
    return report, problems, suspicions, result


def _meaning(
    config: VerifyConfig,
    cache: Cache,
    workers: Workers | None,
    problems: list[Problem],
    result: dict[str, Any],
) -> list[Problem]:
    """Check values, and frames where the dataset is there; return what is only suspicious."""
    with progress_bar("values", 0) as bar:
        values = check_values(cache, progress=bar.move_to, cluster=workers)
    problems += values.problems
    result["statistics"] = values.statistics
    dataset = config.dataset.over(cache.plan.get("dataset", {}))
    try:
        frames = Frames.select(dataset.whole())
    except BevcaskError as error:
        if config.dataset.model_fields_set:
            raise
        result["not_compared"] = (
            "tokens, times, poses, calibration and ground truth; the dataset that the cache "
            f"recorded cannot be opened, dataset.root=FOLDER says where it is: {error}"
        )
        return values.suspicions
    problems += frame_problems(cache, frames)
    try:
        check_dataset(cache, dataset)
    except CacheIdentityError as error:
        problems.append(Problem("fingerprint/dataset", str(error)))
    if problems:
        return values.suspicions
    return values.suspicions + _compare_with_truth(config, cache, frames, problems, result)


def _compare_with_truth(
    config: VerifyConfig,
    cache: Cache,
    frames: Frames,
    problems: list[Problem],
    result: dict[str, Any],
) -> list[Problem]:
    """Look whether axes, grids and boxes mean what the cache declares; return suspicions."""
    if not frames.has_labels:
        result["not_compared"] = "ground truth: this version has no annotations"
        return []
    check_classes(cache)
    tokens = spread_tokens(cache, _LOOKED_AT, config.seed)
    with progress_bar("meaning", len(tokens) * len(cache.specs)) as bar:
        found = meaning(cache, frames, tokens, bar)
    result["meaning"] = found.to_dict() | {"frames": len(tokens)}
    problems += [
        Problem(
            f"{MEANING}{own.what}",
            f"{' or '.join(own.best)} fits ground truth, what is declared does not: "
            f"{own.best_score:.4g} against {own.declared_score:.4g}, {own.boxes} boxes",
            target=own.target,
        )
        for own in found.findings
        if own.verdict == "wrong"
    ]
    return [
        Problem(
            f"{MEANING}{own.what}",
            f"as declared fits ground truth worse than {' or '.join(own.best)}, which fit alike: "
            "look at the other targets, or at more frames",
            target=own.target,
        )
        for own in found.findings
        if own.suspicious
    ]


def _ask_teacher(
    config: VerifyConfig,
    cache: Cache,
    workers: Workers | None,
    suspicions: Sequence[Problem],
    problems: list[Problem],
    result: dict[str, Any],
) -> None:
    """Run the teacher again: on suspicious shards first, then on others."""
    if config.equivariance:
        clean_maps(cache)  # said before the teacher is loaded
    if config.windows:
        remembered_targets(cache)
        teacher = config.teacher.model_copy(update={"memory": "window", "parts": None})
        shown = config.model_copy(update={"teacher": teacher})
        tokens = spread_tokens(cache, config.windows, config.seed)
        looks = _Looks(shown, cache, workers, same_memory=False)
        result["windows"] = window_gap(looks.each(window_sums, "windows", tokens))
    looks = _Looks(config, cache, workers)
    if config.resample:
        first = list(_suspects(cache, suspicions))
        tokens = spread_tokens(cache, config.resample, config.seed, first)
        result["resample"], found = joined(looks.each(resample, "resample", tokens))
        problems += found
        result["notes"] = list(_notes(cache, result["resample"], _machine(config, workers)))
    if config.equivariance and problems:
        result["unfinished"] = "equivariance= is not looked into where there are problems"
    elif config.equivariance:
        tokens = spread_tokens(cache, config.equivariance, config.seed)
        gaps = looks.each(equivariance_sums, "equivariance", tokens, len(AUGMENTATIONS))
        result["equivariance"] = equivariance_gap(gaps)


class _Looks:
    """Looks at frames with the teacher of a cache, loaded once: here, or by each worker."""

    def __init__(
        self,
        config: VerifyConfig,
        cache: Cache,
        workers: Workers | None,
        same_memory: bool = True,
    ) -> None:
        self._asked = (config, cache.url, same_memory)
        self._cache, self._workers = cache, workers
        self._open = functools.cache(lambda: open_teacher(config, cache, same_memory))

    def each(
        self, look: Callable[..., Found], title: str, tokens: Sequence[str], steps: int = 1
    ) -> list[Found]:
        """Return what a look at all frames finds, or at each portion of them.

        Args:
            look: (cache, teacher, source, tokens, device, bar) -> what it finds.
            title: of the bar.
            tokens: the frames.
            steps: by which the bar moves for each.
        """
        with progress_bar(title, len(tokens) * steps) as bar:
            if self._workers is None:
                teacher, source, device = self._open()
                return [look(self._cache, teacher, source, tokens, device, bar)]
            found = []
            portions = [tokens[i : i + _PORTION] for i in range(0, len(tokens), _PORTION)]
            work = partial(_look_there, look, self._asked, self._workers.run)
            for portion, own in zip(portions, self._workers.map(work, portions), strict=True):
                found.append(own)
                bar.advance(len(portion) * steps)
            return found


def _look_there(
    look: Callable[..., Found],
    asked: tuple[VerifyConfig, str, bool],
    run: str,
    tokens: Sequence[str],
) -> Found:
    """Look at some frames on a worker, which keeps the teacher for others."""
    config, url, same_memory = asked

    def open_there() -> tuple[Cache, tuple[Teacher, ViewSource, torch.device]]:
        own = config.model_copy(update={"device": own_device(config.device)})
        cache = open_cache(url, allow_unsealed=True)
        return cache, open_teacher(own, cache, same_memory)

    with one_at_a_time, no_bar("", len(tokens)) as bar:
        cache, (teacher, source, device) = kept(run, f"teacher, {same_memory}", open_there)
        return look(cache, teacher, source, tokens, device, bar)


def _machine(config: VerifyConfig, workers: Workers | None) -> dict[str, Any]:
    """Return what the teacher was asked on."""
    if workers is None:
        return hardware(pick_device(config.device))
    return next(iter(workers.map(_machine_there, [config.device])))


def _machine_there(device: str) -> dict[str, Any]:
    return hardware(pick_device(own_device(device)))


def _notes(
    cache: Cache, compared: Mapping[str, Mapping[str, Any]], machine: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what is no damage, and what explains it."""
    made_on, here = cache.provenance.get("device"), machine["device"]
    for name, found in compared.items():
        off = f"{name}: off by up to {found['error']:.3g} times what its codec may change"
        if found["verdict"] == "noise":
            yield (
                f"{off}, and two answers here differ by {found['noise']:.3g}: the teacher's own "
                "noise, no damage. It is not deterministic here."
            )
        elif found["verdict"] == "elsewhere":
            yield (
                f"{off}, a little everywhere: arithmetic of another device, version or precision, "
                f"no damage. Made on {made_on or 'an unknown device'}, asked on {here}."
            )


def _suspects(cache: Cache, suspicions: Sequence[Problem]) -> Iterator[str]:
    """Yield the first frame of every suspicious shard."""
    for suspicion in suspicions:
        if suspicion.shard is not None:
            yield cache.frames.tokens[cache.layout.frames_of(suspicion.shard)[0]]


def open_teacher(
    config: VerifyConfig, cache: Cache, same_memory: bool = True
) -> tuple[Teacher, ViewSource, torch.device]:
    """Load the teacher that made a cache, and what reads its frames, clean and in every view.

    Raises:
        ConfigError: it looks at whole scenes, and more is asked than what does not depend on them.
        CacheIdentityError: it is another teacher, or its memory goes on otherwise.
    """
    teacher = build_teacher(_with_memory_of(cache, config.teacher), config.seed)
    check_identity(cache, {"teacher": teacher.fingerprint()})
    alone = any(not spec.tap.in_order for spec in cache.specs.values())
    if teacher.remembers and (config.equivariance or not alone):
        raise ConfigError(
            "a teacher that looks at whole scenes cannot be asked about single frames: resample= "
            "and equivariance= are of teachers without memory, or shown windows "
            "(teacher.memory=window). windows=N compares what this one said with windows."
        )
    if same_memory and teacher.memory == "window":
        check_identity(cache, {"memory": teacher.remembering()})
    frames = Frames.select(config.dataset.over(cache.plan.get("dataset", {})).whole())
    check_resampling(cache, frames.resampling)
    device = pick_device(config.device)
    teacher.load(device)
    wanted = needs_pixels(cache.specs.values())
    clean = SampleReader(frames, teacher.reads(), None, config.seed, pixels=wanted)
    shown = cache.fingerprint.get("views", {"augment": {}, "seed": config.seed})
    augment = validate(AugmentConfig, shown["augment"], "views.augment")
    views = SampleReader(frames, teacher.reads(), augment, int(shown["seed"]))
    return teacher, ViewSource(clean, views), device


def _with_memory_of(cache: Cache, teacher: TeacherConfig) -> TeacherConfig:
    """Return a detector's section with the memory of the cache, unless it says its own."""
    stored = cache.fingerprint.get("memory", {})
    if teacher.type != "native" or teacher.memory or stored.get("policy") != "window":
        return teacher
    kept = {"memory": "window", "history": stored["history"]}
    return teacher.model_copy(update=kept)


def write_repair_list(
    problems: Sequence[Problem], targets: Sequence[str], path: Path
) -> dict[str, Any]:
    """Write what another extraction can mend: a JSON object a line (shard, target, token, problem).

    A problem of a whole shard gives a line a target.

    Returns:
        The file, its lines, and how many problems lie outside every shard (metadata, foreign
        files): no teacher can mend those.
    """
    within = [problem for problem in problems if problem.shard is not None]
    lines = [
        {
            "shard": problem.shard,
            "target": target,
            "token": problem.token,
            "problem": f"{problem.key}: {problem.what}",
        }
        for problem in within
        for target in ([problem.target] if problem.target else targets)
    ]
    write_whole(path, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    return {
        "file": str(path),
        "lines": len(lines),
        "beyond_repair": len(problems) - len(within),
    }

"""verify: is a cache still what was committed, does it make sense, does its teacher agree?

digests of all files -> values, frames (check=meaning) -> the teacher again (resample=N)
-> the teacher, augmented (equivariance=N) -> the teacher, shown windows (windows=N)
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bevcask.cache.identity import check_identity
from bevcask.cache.reader import Cache, open_cache
from bevcask.cache.verify_bytes import Problem, verify
from bevcask.cache.verify_values import check_values
from bevcask.catalog import resolve
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
from bevcask.evaluation.agreement import frame_problems, resample, spread_tokens
from bevcask.evaluation.equivariance import AUGMENTATIONS, clean_maps, equivariance_gap
from bevcask.evaluation.windows import remembered_targets, window_gap
from bevcask.outputs import output_file
from bevcask.paths import write_whole
from bevcask.progress import progress_bar
from bevcask.provenance import hardware, pick_device
from bevcask.targets.pixels import needs_pixels
from bevcask.teachers import build_teacher
from bevcask.teachers.base import Teacher
from bevcask.training.identity import check_dataset, check_resampling
from bevcask.verbs import VerifyConfig

_SHOWN = 40
_WHERE = ("shard", "target", "token", "key", "what")


def run(config: VerifyConfig) -> dict[str, Any]:
    """Check a cache as deeply as asked.

    Returns:
        `ok` (no problems), files and bytes hashed, `problems` and `suspicions` (`key`, `what`,
        `shard`, `target`, `token`), and for what was asked: `statistics` per target, `resample`
        per target, `equivariance` per augmentation and target, `windows` per target, `repair`,
        `notes` on what differs and is no damage; `unfinished` says what came in the way of a deeper
        look at a damaged cache.

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
    with progress_bar("verify", 0, unit="bytes") as bar:
        report = verify(url, progress=bar.move_to)
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
                    suspicions = _meaning(config, cache, problems, result)
                if asked:
                    _ask_teacher(config, cache, suspicions, problems, result)
            except BevcaskError as error:
                if not problems:
                    raise
                result["unfinished"] = str(error)  # damage that was found is not forgotten
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


def _meaning(
    config: VerifyConfig, cache: Cache, problems: list[Problem], result: dict[str, Any]
) -> list[Problem]:
    """Check values, and frames where a dataset is named; return what is only suspicious."""
    with progress_bar("values", 0) as bar:
        values = check_values(cache, progress=bar.move_to)
    problems += values.problems
    result["statistics"] = values.statistics
    if "dataset" in config.model_fields_set:
        dataset = config.dataset.over(cache.plan.get("dataset", {}))
        problems += frame_problems(cache, Frames.select(dataset.whole()))
        try:
            check_dataset(cache, dataset)
        except CacheIdentityError as error:
            problems.append(Problem("fingerprint/dataset", str(error)))
    else:
        result["not_compared"] = "tokens, times, poses and calibration: give dataset.root=FOLDER"
    return values.suspicions


def _ask_teacher(
    config: VerifyConfig,
    cache: Cache,
    suspicions: Sequence[Problem],
    problems: list[Problem],
    result: dict[str, Any],
) -> None:
    """Run the teacher again: on suspicious shards first, then on others."""
    if config.equivariance:
        clean_maps(cache)  # said before the teacher is loaded
    if config.windows:
        result["windows"] = _show_windows(config, cache)
    if not (config.resample or config.equivariance):
        return
    teacher, source, device = open_teacher(config, cache)
    if config.resample:
        first = list(_suspects(cache, suspicions))
        tokens = spread_tokens(cache, config.resample, config.seed, first)
        with progress_bar("resample", len(tokens)) as bar:
            result["resample"], found = resample(cache, teacher, source, tokens, device, bar)
        problems += found
        result["notes"] = list(_notes(cache, result["resample"], device))
    if config.equivariance and problems:
        result["unfinished"] = "equivariance= is not looked into where there are problems"
    elif config.equivariance:
        tokens = spread_tokens(cache, config.equivariance, config.seed)
        with progress_bar("equivariance", len(tokens) * len(AUGMENTATIONS)) as bar:
            result["equivariance"] = equivariance_gap(
                cache, teacher, source.reader, tokens, device, bar
            )


def _notes(
    cache: Cache, compared: Mapping[str, Mapping[str, Any]], device: torch.device
) -> Iterator[str]:
    """Yield what is no damage, and what explains it."""
    made_on, here = cache.provenance.get("device"), hardware(device)["device"]
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


def _show_windows(config: VerifyConfig, cache: Cache) -> dict[str, Any]:
    remembered_targets(cache)  # said before the teacher is loaded
    teacher = config.teacher.model_copy(update={"memory": "window", "parts": None})
    windowed = config.model_copy(update={"teacher": teacher})
    asked, source, device = open_teacher(windowed, cache, same_memory=False)
    tokens = spread_tokens(cache, config.windows, config.seed)
    with progress_bar("windows", len(tokens)) as bar:
        return dict(window_gap(cache, asked, source.reader, tokens, device, bar))


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


def render(result: dict[str, Any]) -> Group:
    """Show what was checked and a table for each depth."""
    parts: list[Any] = [
        Text.assemble(
            (_verdict(result), "bold"),
            f"  {result['cache']}: {result['files']:,} files, {result['bytes'] / 1e9:.3f} GB, "
            f"{len(result['problems'])} problems, {len(result['suspicions'])} suspicions",
        )
    ]
    if "not_compared" in result:
        parts.append(f"not compared: {result['not_compared']}")
    parts += result.get("notes", [])
    if "unfinished" in result:
        parts.append(f"no deeper: {result['unfinished']}")
    for name in ("problems", "suspicions"):
        if result[name]:
            rows = [[found[key] for key in _WHERE] for found in result[name]]
            parts.append(_table(name, _WHERE, rows))
    for name in ("statistics", "resample"):
        if found := result.get(name):
            columns = list(next(iter(found.values())))
            rows = [[target, *(entry[key] for key in columns)] for target, entry in found.items()]
            parts.append(_table(name, ["target", *columns], rows))
    if gaps := result.get("equivariance"):
        rows = [
            [augmentation, target, *gap.values()]
            for augmentation, by_target in gaps.items()
            for target, gap in by_target.items()
        ]
        title = "aligned target against the augmented teacher (a study, not a check)"
        columns = ["augmentation", "target", "relative L2", "on objects", "cosine"]
        parts.append(_table(title, columns, rows))
    if windows := result.get("windows"):
        rows = [[target, *gap.values()] for target, gap in windows.items()]
        title = "windows against the memory of whole scenes (a study, not a check)"
        columns = ["target", "frames", "relative L2", "cosine", "L2 where the scene had just begun"]
        parts.append(_table(title, columns, rows))
    if any(problem["shard"] is not None for problem in result["problems"]):
        parts.append(
            f"To list what extraction mends: bevcask verify {result['cache']} repair=FILE.jsonl"
        )
    return Group(*parts)


def _verdict(result: dict[str, Any]) -> str:
    if result["ok"]:
        return "ok"
    unfinished = all("not sealed" in problem["what"] for problem in result["problems"])
    return "UNFINISHED" if unfinished else "DAMAGED"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    more = len(rows) - _SHOWN
    caption = f"and {more} more: see --json" if more > 0 else None
    table = Table(title=title, caption=caption)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows[:_SHOWN]:
        table.add_row(*map(_words, row))
    return table


def _words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value[:8])) + (", ..." if len(value) > 8 else "") or "-"
    return "-" if value is None else str(value)

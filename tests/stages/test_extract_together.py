"""teacher-extract in parts, in additions, from another cache, and over a damaged one."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import forked
from bevcask.cache.reader import open_cache
from bevcask.cache.verify_bytes import verify
from bevcask.commands import VERBS
from bevcask.compose import words_for
from bevcask.stages.teacher_extract import render
from cache.test_writer import different_files

Call = Callable[..., tuple[int, str, str]]
PATIENCE = 300  # seconds; a busy machine takes a minute to start a process


@pytest.fixture(scope="module")
def words(teacher_words: list[str]) -> list[str]:
    """The command that made `cached_world`, but for one frame a shard."""
    return [*teacher_words, "store.shard_rows=1", "--json"]


@pytest.fixture(scope="module")
def whole(words: list[str], call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All targets of DistillBEV, extracted by one process; read only."""
    url = tmp_path_factory.mktemp("whole") / "whole.zarr"
    extract(call, url, words)
    return url


@pytest.fixture(scope="module")
def boxes_only(words: list[str], call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's boxes alone; read only."""
    url = tmp_path_factory.mktemp("boxes") / "boxes.zarr"
    extract(call, url, [*words, "method=none"])
    return url


def extract(call: Call, url: Path, words: list[str], code: int = 0) -> dict[str, Any]:
    got, out, err = call("teacher-extract", url, *words)
    assert got == code, err
    return json.loads(out) if code == 0 else {"error": " ".join(err.split())}


def process(url: Path, words: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bevcask.cli", "teacher-extract", str(url), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment)


def committed(url: Path) -> int:
    return len([path for path in url.glob("commit/*/c.*") if path.suffix != ".partial"])


@pytest.mark.slow
def test_two_processes_at_once_make_what_one_makes(
    whole: Path, words: list[str], tmp_path: Path
) -> None:
    url = tmp_path / "two.zarr"
    both = [process(url, [*words, f"part={i}/2"]) for i in (1, 2)]
    for one in both:
        out, err = one.communicate(timeout=PATIENCE)
        assert one.returncode == 0, err.decode()
        assert json.loads(out)["part"] in ("1/2", "2/2")
    cache = open_cache(str(url))
    assert different_files(whole, url) == []
    assert {run["part"]: run["shards_written"] for run in cache.runs} == {
        "part=1/2": 3,
        "part=2/2": 3,
    }
    assert verify(str(url)).ok


def test_three_parts_in_turn(whole: Path, words: list[str], call: Call, tmp_path: Path) -> None:
    url = tmp_path / "three.zarr"
    found = [extract(call, url, [*words, f"part={i}/3"]) for i in (3, 1, 1, 2)]
    left = [(own["shards_left"], own["committed_frames"], own["frames"]) for own in found]
    assert left == [(4, 2, 6), (2, 4, 6), (2, 4, 6), (0, 6, 6)]
    assert different_files(whole, url) == []


def test_a_part_says_which_numbers_are_of_all() -> None:
    result = {"frames": 24, "committed_frames": 8, "part": "1/2", "shards_left": 2}
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render(result))
        console.print(render(result | {"part": None}))
    lines = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert lines[:2] == ["frames of all parts 24", "committed frames of all parts 8"]
    assert lines[3:5] == ["shards left of all parts 2", "frames 24"]


HOLD = """
import sys, time
from bevcask.cache.files import Files
from bevcask.cache.lease import Lease
Lease(Files(sys.argv[1]), range(6), "part=1/1").claim()
print("held", flush=True)
time.sleep(600)
"""


def test_a_double_start_is_refused_and_a_dead_one_replaced(
    whole: Path, words: list[str], call: Call, tmp_path: Path
) -> None:
    url = tmp_path / "double.zarr"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(url)], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        error = extract(call, url, [*words, "part=2/2"], code=2)["error"]
        first.kill()
    assert f"process {first.pid} on host" in error
    assert "(part=1/1)" in error
    assert len(list((url / "leases").iterdir())) == 1
    assert extract(call, url, words)["sealed"]
    assert different_files(whole, url) == []


def extracting(url: Path, words: list[str]) -> BaseProcess:
    """Begin in a process that is there at once, to be killed."""
    return forked.start(forked.command, "teacher-extract", url, *words)


def wait_for(condition: Callable[[], bool], process: BaseProcess) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.is_alive() or condition(), process.exitcode
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_parts_go_on_to_the_same_bytes(
    whole: Path, words: list[str], call: Call, tmp_path: Path
) -> None:
    url = tmp_path / "killed.zarr"
    both = [extracting(url, [*words, f"part={i}/2"]) for i in (1, 2)]
    wait_for(lambda: committed(url) > 0, both[0])
    for one in both:
        forked.kill(one)
    for i in (2, 1):
        extract(call, url, [*words, f"part={i}/2"])
    assert different_files(whole, url) == []
    assert verify(str(url)).ok


@pytest.mark.parametrize("part", ["0/2", "3/2", "x"])
def test_parts_that_are_none(part: str, words: list[str], call: Call, tmp_path: Path) -> None:
    error = extract(call, tmp_path / "x.zarr", [*words, f"part={part}"], code=2)["error"]
    assert f"part={part}: expected part=i/n" in error
    assert list(tmp_path.iterdir()) == []


def test_targets_are_added_to_a_sealed_cache(
    boxes_only: Path, whole: Path, words: list[str], call: Call, tmp_path: Path
) -> None:
    url = tmp_path / "added.zarr"
    shutil.copytree(boxes_only, url)
    assert set(open_cache(str(url)).specs) == {"head.boxes"}
    boxes = url / "boxes/head.boxes/values"
    before = {path: path.stat().st_mtime_ns for path in boxes.iterdir()}
    extract(call, url, words)
    assert before == {path: path.stat().st_mtime_ns for path in boxes.iterdir()}
    assert different_files(whole, url) == []
    assert extract(call, url, [*words, "method=none"])["id"] == open_cache(str(whole)).id


@pytest.mark.slow
def test_a_killed_addition_leaves_the_old_targets(
    boxes_only: Path, whole: Path, words: list[str], call: Call, tmp_path: Path
) -> None:
    url = tmp_path / "added.zarr"
    shutil.copytree(boxes_only, url)
    adding = extracting(url, words)
    wait_for(lambda: (url / "addition").exists() and committed(url) > 1, adding)
    forked.kill(adding)
    cache = open_cache(str(url))
    assert set(cache.specs) == {"head.boxes"}
    for token in cache.frames.tokens:
        cache.read(token)
    assert verify(str(url)).ok
    extract(call, url, words)
    assert different_files(whole, url) == []


def test_an_addition_by_another_codec_or_teacher_is_refused(
    boxes_only: Path, words: list[str], call: Call
) -> None:
    error = extract(call, boxes_only, [*words, "teacher.checkpoint=random"], code=2)["error"]
    assert "teacher.weights: expected" in error
    error = extract(call, boxes_only, [*words, "store.shard_rows=2"], code=2)["error"]
    assert "shard_rows: expected 2" in error
    assert set(open_cache(str(boxes_only)).specs) == {"head.boxes"}


def test_a_bigger_selection_starts_from_a_smaller_cache(
    whole: Path, words: list[str], call: Call, tmp_path: Path
) -> None:
    small, big = tmp_path / "small.zarr", tmp_path / "big.zarr"
    extract(call, small, [*words, "dataset.limit=4"])
    reused = extract(call, big, [*words, f"store.reuse={small}"])
    assert reused["reused"] == 4
    assert different_files(whole, big) == []
    name = "targets/bev.neck/values/c.1.0.0.0"
    assert (small / name).stat().st_ino == (big / name).stat().st_ino
    assert verify(str(big)).ok


def test_damage_is_not_taken_over(
    whole: Path, words: list[str], call: Call, tmp_path: Path
) -> None:
    old, new = tmp_path / "old.zarr", tmp_path / "new.zarr"
    shutil.copytree(whole, old)
    flip(old / "targets/bev.neck/values/c.2.0.0.0")
    assert extract(call, new, [*words, f"store.reuse={old}"])["reused"] == 5
    assert different_files(whole, new) == []


@pytest.mark.parametrize(
    ("change", "leaf"),
    [
        ("teacher.checkpoint=random", "teacher.weights"),
        ("store.shard_rows=2", "shard_rows"),
        ("store.codec=float16", "targets.bev.neck.codec"),
    ],
)
def test_shards_of_something_else_are_refused(
    whole: Path, words: list[str], call: Call, tmp_path: Path, change: str, leaf: str
) -> None:
    new = tmp_path / "new.zarr"
    error = extract(call, new, [*words, f"store.reuse={whole}", change], code=2)["error"]
    assert str(whole) in error
    assert leaf in error


def test_another_calibration_is_no_reason_to_take_over(
    whole: Path, words: list[str], own_world: Path, call: Call, tmp_path: Path
) -> None:
    table = own_world / "v1.0-synthetic/ego_pose.json"
    rows = json.loads(table.read_text())
    for row in rows:
        row["translation"][1] += 1e-6
    table.write_text(json.dumps(rows))
    new = [*words, f"dataset.root={own_world}", f"store.reuse={whole}"]
    error = extract(call, tmp_path / "new.zarr", new, code=2)["error"]
    assert "dataset.poses.LIDAR_TOP" in error


def flip(path: Path, place: int = -9) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def stamps(root: Path) -> dict[str, int]:
    found = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    return {
        key: path.stat().st_mtime_ns
        for key, path in found.items()
        if not key.startswith("provenance")
    }


def test_verify_names_what_repair_mends(
    whole: Path, words: list[str], call: Call, tmp_path: Path
) -> None:
    url, mend = tmp_path / "own.zarr", tmp_path / "mend.jsonl"
    shutil.copytree(whole, url)
    flip(url / "targets/bev.neck/values/c.1.0.0.0")
    (url / "targets/bev.neck/scale/c.4.0").unlink()
    flip(next(url.glob("commit/*/c.0.0.0")), 5)
    before = stamps(url)
    assert call("verify", url, f"repair={mend}")[0] == 1
    result = extract(call, url, [*words, f"repair={mend}"])
    assert (result["repaired"], result["changed"]) == (3, [])
    assert different_files(whole, url) == []
    assert call("verify", url, f"repair={mend}")[0] == 0
    after = stamps(url)
    touched = {key for key in after if after[key] != before.get(key)}
    assert {key.rpartition("/c.")[2].partition(".")[0] for key in touched} == {"0", "1", "4"}
    assert {key.partition("/c.")[0] for key in touched if "/c.1" in key} == {
        "targets/bev.neck/values",
        "targets/bev.neck/scale",
    }
    assert not any(key.startswith("boxes/") and "/c.0" not in key for key in touched)


def test_what_was_committed_wrongly_is_committed_again(
    whole: Path, words: list[str], call: Call, tmp_path: Path
) -> None:
    """A cache whose commit vouches for other bytes than the teacher's: sealed anew."""
    url, mend = tmp_path / "own.zarr", tmp_path / "mend.jsonl"
    extract(call, url, [*words, "teacher.checkpoint=random"])
    wrong = open_cache(str(url))
    disguise(url, open_cache(str(whole)).fingerprint)
    mend.write_text(
        "".join(
            json.dumps({"shard": s, "target": name, "token": None, "problem": "resample"}) + "\n"
            for s in range(6)
            for name in wrong.specs
        )
    )
    result = extract(call, url, [*words, f"repair={mend}"])
    assert result["changed"] == list(range(6))
    assert different_files(whole, url) == []
    assert verify(str(url)).ok


def disguise(url: Path, fingerprint: dict[str, Any]) -> None:
    """Let a sealed cache claim another fingerprint, every digest in order."""
    from bevcask.cache import metadata
    from bevcask.cache.files import Files
    from bevcask.cache.layout import commit_array
    from bevcask.cache.metadata import read_root

    cache, files = open_cache(str(url)), Files(str(url))
    new = cache.layout.id(fingerprint)
    (url / commit_array(cache.id)).rename(url / commit_array(new))
    root = read_root(files)
    root["files"] = {
        key.replace(commit_array(cache.id), commit_array(new)): digest
        for key, digest in root["files"].items()
    }
    root["files"] = dict(sorted(root["files"].items()))
    files.put("zarr.json", metadata.group_json({**root, "fingerprint": fingerprint, "id": new}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"shard": 99, "target": "bev.neck"}', "has shards 0 to 5, the list names 99"),
        ('{"shard": 1, "target": "bev.nack"}', "has no target 'bev.nack'"),
        ('{"shard": "1", "target": "bev.neck"}', "line 1: expected"),
        ("not json", "line 1: expected"),
        (None, "cannot be read"),
    ],
)
def test_lists_that_are_no_repair_lists(
    line: str | None, message: str, whole: Path, words: list[str], call: Call, tmp_path: Path
) -> None:
    mend = tmp_path / "mend.jsonl"
    if line is not None:
        mend.write_text(line + "\n")
    assert message in extract(call, whole, [*words, f"repair={mend}"], code=2)["error"]


def test_repair_by_another_teacher_is_refused(
    whole: Path, words: list[str], call: Call, tmp_path: Path
) -> None:
    mend = tmp_path / "mend.jsonl"
    mend.write_text('{"shard": 1, "target": "bev.neck", "token": null, "problem": "x"}\n')
    before = stamps(whole)
    other = [*words, "teacher.checkpoint=random", f"repair={mend}"]
    assert "teacher.weights" in extract(call, whole, other, code=2)["error"]
    both = [*words, f"repair={mend}", "part=1/2"]
    assert "do not go together" in extract(call, whole, both, code=2)["error"]
    assert stamps(whole) == before


def test_two_caches_feed_one_student(
    whole: Path, boxes_only: Path, words: list[str], call: Call, tmp_path: Path
) -> None:
    own = [word for word in words if not word.startswith(("store.", "--json"))]
    run = tmp_path / "run"
    both = f"{boxes_only},{whole}"
    student = ["student=bevdepth_tiny", "method=distillbev", f"run={run}"]
    words = [both, *own, *student, "trainer.max_steps=1", "loader.batch_size=1", "--json"]
    code, out, err = call("student-distill", *words)
    assert code == 0, err
    result = json.loads(out)
    ids = f"{open_cache(str(boxes_only)).id},{open_cache(str(whole)).id}"
    assert result["cache_id"] == ids
    code, out, err = call("export", tmp_path / "out.safetensors", f"run={run}", "--json")
    assert json.loads(out)["cache"] == ids


def test_ambiguous_and_foreign_caches_are_refused(
    whole: Path, cached_world: Path, words: list[str], call: Call, tmp_path: Path
) -> None:
    own = [word for word in words if not word.startswith(("store.", "--json"))]
    student = ["student=bevdepth_tiny", "method=distillbev", f"run={tmp_path}", "dry_run=true"]
    code, _, err = call("student-distill", f"{whole},{cached_world}", *own, *student)
    assert code == 0, err  # one teacher
    random = [word for word in own if not word.startswith("teacher.checkpoint")]
    other = tmp_path / "other.zarr"
    extract(call, other, [*random, "store.shard_rows=1", "--json"])
    unnamed = [word for word in own if not word.startswith("teacher")]
    code, _, err = call("student-distill", f"{whole},{other}", *unnamed, *student)
    assert code == 2
    assert f"is in {whole} and in {other}" in " ".join(err.split())
    code, _, err = call("student-distill", f"{whole},{other}", *own, *student)
    assert code == 2
    assert "teacher.weights" in err
    assert str(other) in " ".join(err.split())


@pytest.mark.parametrize("verb", ["plan", "teacher-extract"])
def test_a_disk_that_is_far_too_small_is_refused_at_once(
    verb: str, words: list[str], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    given = words_for(VERBS[verb].config, words)
    code, _, err = call(verb, f"cache={tmp_path / 'x.zarr'}", *given)
    assert code == 2
    assert "Even 5% of it is" in " ".join(err.split())
    assert list(tmp_path.glob("x.zarr/targets/*/values/c.*")) == []


def test_a_disk_too_small_for_the_rest_is_refused_after_a_shard(
    whole: Path, words: list[str], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "x.zarr"
    a_shard = sum(p.stat().st_size for p in whole.rglob("c.0*") if "values" in str(p))
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * a_shard))
        error = extract(call, url, [*words, "part=1/2"], code=2)["error"]
    assert "5 more frames" in error
    assert "GB short" in error
    assert committed(url) >= 1
    extract(call, url, words)
    assert different_files(whole, url) == []


def test_a_job_array_fills_one_cache(
    whole: Path, words: list[str], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks, counted from 11, in either order; nobody says part=."""
    url = tmp_path / "array.zarr"
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "11")
    parts = {}
    for task in (12, 11):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        parts[task] = extract(call, url, words)
    assert [parts[task]["part"] for task in (11, 12)] == ["1/2", "2/2"]
    assert (parts[12]["sealed"], parts[11]["sealed"]) == (False, True)
    assert not different_files(url, whole)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "99")
    assert (
        "SLURM_ARRAY_TASK_ID=99 is none of 2 tasks from 11" in extract(call, url, words, 2)["error"]
    )

"""What does a GPU do here? Ten minutes: is it exact, does it repeat itself, does it wait?

Every part is a process of its own with a time limit; what fails or runs out of time is a line, with
what it had found, and the others go on. The JSON file is written after each; parts that are not run
keep the results they have in it. Without a GPU all of it runs on the CPU, at tiny sizes.

    python benchmarks/gpu.py              # all parts
    python benchmarks/gpu.py --quick      # four minutes
    python benchmarks/gpu.py --list
    python benchmarks/gpu.py repeat reader
"""

import argparse
import csv
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, ground, make_world, write
from step_time import SIZES

from bevcask.cache import open_cache
from bevcask.compose import compose, words_for
from bevcask.config import NativeTeacherConfig, Precision, build_config
from bevcask.detectors.operations import random_frame
from bevcask.errors import ConfigError
from bevcask.groups import load_group
from bevcask.processes import cores
from bevcask.stages import student_distill, teacher_extract
from bevcask.teachers.reckoning import half_precision, prepare, reckoning
from bevcask.verbs import DistillConfig, ExtractConfig

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"
CUDA = torch.cuda.is_available()
TINY = ("centerpoint_tiny", "bevfusion_tiny")
PAPER = ("centerpoint", "bevfusion_swint")
STEPS = {  # what teaches whom, beside the benchmark's own words
    "distillbev": (),
    "tigdistill": ("method=tigdistill", "method.inner_depth=0"),
    "simdistill": ("method=simdistill", "teacher=bevfusion", "student=bevsimdet"),
}
RECKONINGS: dict[str, tuple[Precision, bool]] = {  # of a teacher: precision, deterministic
    "float32": ("float32", True),
    "float32, any order": ("float32", False),
    "tf32, any order": ("tf32", False),
    "bf16": ("bf16", True),
}
TRAINED, WARM = (80, 20) if CUDA else (6, 2)  # steps of `train`; what comes first is not counted


@dataclass(frozen=True)
class Part:
    """A process.

    Attributes:
        command: words behind the interpreter.
        limit: seconds.
        quick: belongs to `--quick`.
    """

    command: tuple[str, ...]
    limit: int
    quick: bool = True


def parts(world: str = "WORLD") -> dict[str, Part]:
    """Return what can be run, by name, in order.

    Args:
        world: synthetic one of the size that steps are timed at.
    """
    size = ("--size", "paper" if CUDA else "tiny")
    tests = tuple(map(str, gpu_tests()))
    found = {"tests": Part(("-m", "pytest", "-q", "-m", "gpu", *tests), 35)}
    for name, limit, quick in (("repeat", 50, True), ("twice", 55, False), ("reader", 35, True)):
        found[name] = Part((str(HERE / "gpu.py"), "--own", name), limit, quick)
    for name, words in STEPS.items():
        loading = [f"loader.num_workers={max(1, cores() - 4)}"] if CUDA else []
        chosen = [*map(_sized, words), *loading]
        first = name == "distillbev"
        rounds = ("--rounds", "3" if first else "1", "--world", world)
        command = (str(HERE / "step_time.py"), *size, *rounds, *chosen)
        found[f"step {name}"] = Part(command, 110 if first else 80, quick=first)
    own = (str(HERE / "gpu.py"), "--own", "train", "--world", world)
    found["train distillbev"] = Part(own, 65, quick=False)
    frames = ("--rounds", "3", "--frames", "64" if CUDA else "8")
    for teacher in PAPER if CUDA else TINY:
        method = "simdistill" if teacher.startswith("bevfusion") else "distillbev"
        words = (f"teacher={teacher}", f"method={method}")
        found[f"extract {teacher}"] = Part(
            (str(HERE / "extract.py"), *size, *frames, *words), 30, False
        )
    return found


def gpu_tests() -> list[Path]:
    """Return the files of tests that need CUDA."""
    return [path for path in sorted(TESTS.rglob("test_*.py")) if "mark.gpu" in path.read_text()]


def _sized(word: str) -> str:
    suffix = {True: "_swint", False: "_tiny"}[CUDA]
    return f"{word}{suffix}" if word.startswith(("teacher=", "student=")) else word


def run(name: str, part: Part) -> dict[str, Any]:
    """Run a part; return its result, or what came in the way and what it had found by then."""
    if name == "tests" and (why := _no_tests()):
        return {"skipped": why}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        more = () if name == "tests" else ("--out", str(out))
        start = time.perf_counter()
        code, said = _said(part, more, folder)
        result: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1)}
        if name == "tests":
            result |= {"said": said[-1], "ok": code == 0}
        elif code is None:
            result |= {"failed": f"not done after {part.limit} s"}
        elif code:
            result |= {"failed": said[-1]}
        if out.is_file():
            result["result"] = json.loads(out.read_text())
    return result


def _no_tests() -> str | None:
    if not CUDA:
        return "no CUDA device"
    if importlib.util.find_spec("pytest") is None:
        return "no pytest"
    return None if gpu_tests() else f"no tests in {TESTS.name}/"


def _said(part: Part, more: tuple[str, ...], home: str) -> tuple[int | None, list[str]]:
    """Run a part and what it starts; return its exit code, None out of time, and its lines."""
    late, lines = threading.Event(), [""]
    with subprocess.Popen(
        [sys.executable, *part.command, *more],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True, env={**os.environ, "BEVCASK_HOME": home},
    ) as process:  # fmt: skip

        def stop() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(part.limit, stop)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            lines += [line.strip()] if line.strip() else []
            if line.startswith("round "):
                print(f"    {line.strip()}", flush=True)
        code = process.wait()
        timer.cancel()
    return None if late.is_set() else code, lines


def repeat() -> Iterator[dict[str, Any]]:
    """Yield how far two forwards are apart, and one from the CPU's, of the largest value."""
    table: dict[str, Any] = {}
    device = "cuda" if CUDA else "cpu"
    prepare(NativeTeacherConfig(), device)
    for name in (*TINY, *(PAPER if CUDA else ())):
        plugin, config = build_config("detector", load_group("detector", name), "detector")
        torch.manual_seed(0)
        detector = plugin(config).eval()
        frame = random_frame(plugin.inputs(config))
        with torch.inference_mode():
            host = detector(frame).taps
        detector.to(device)
        for said, (precision, deterministic) in RECKONINGS.items():
            if precision == "tf32" and not CUDA:
                continue
            answers = []
            try:
                for _ in range(2):
                    with (
                        torch.inference_mode(),
                        reckoning(precision, deterministic, device),
                        half_precision(precision, device),
                    ):
                        answers.append(detector(frame.to(torch.device(device))).taps)
            except (ConfigError, RuntimeError) as error:  # one row, the others are still asked
                table[f"{name} {said}"] = {"failed": str(error)}
                continue
            one, two = answers
            table[f"{name} {said}"] = {
                "twice": max(_apart(one[tap], two[tap]) for tap in one),
                "cpu": max(_apart(one[tap], host[tap]) for tap in one),
            }
            yield table
        del detector


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one.float().cpu(), other.float().cpu()
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))


def twice() -> Iterator[dict[str, Any]]:
    """Yield whether two extractions give the same files."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = make_world(folder / "world", 4, 160)
        for teacher in (*TINY, *(PAPER if CUDA else ())):
            found[teacher] = {"differ": list(_differ(*_extracted(folder, world, teacher)))}
            yield found


def _extracted(folder: Path, world: Path, teacher: str) -> Iterator[Path]:
    method = "simdistill" if teacher.startswith("bevfusion") else "distillbev"
    for number in range(2):
        url = folder / f"{teacher}{number}.zarr"
        words = [f"cache={url}", f"teacher={teacher}", f"method={method}", "dataset=synthetic"]
        words += [f"dataset.root={world}", "dataset.split=all"]
        teacher_extract.run(compose(ExtractConfig, words))
        yield url


def _differ(one: Path, other: Path) -> Iterator[str]:
    for path in sorted(one.rglob("*")):
        key = path.relative_to(one)
        if path.is_dir() or key.parts[0] == "provenance":
            continue
        if path.read_bytes() != (other / key).read_bytes():
            yield str(key)


def reader() -> Iterator[dict[str, Any]]:
    """Yield how fast targets come from the cache onto the device, GB/s of what is stored."""
    device = torch.device("cuda" if CUDA else "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = make_world(folder / "world", 8, 160)
        url = next(_extracted(folder, world, PAPER[0] if CUDA else TINY[0]))
        cache, rates = open_cache(str(url)), []
        for number in range(8):
            start = time.perf_counter()
            stored = cache.read_batch(cache.frames.tokens, None)
            moved = [torch.from_numpy(own.values).to(device) for own in stored.values()]
            if CUDA:
                torch.cuda.synchronize()
            size = sum(own.numel() * own.element_size() for own in moved)
            rates += [size / (time.perf_counter() - start) / 1e9] * (number > 0)
    yield {"gb_per_second": sorted(rates)[len(rates) // 2], "rounds": len(rates)}


def world(folder: Path) -> Iterator[dict[str, Any]]:
    """Make what steps are timed on, beside parts that are not timed; yield nothing to keep."""
    size = SIZES["paper" if CUDA else "tiny"]
    make_world(folder, size.num_keyframes, size.image_width)
    yield {}


def train(world: Path) -> Iterator[dict[str, Any]]:
    """Yield what `student-distill` itself says, with the worker count that it chose."""
    told = _Told()
    logging.getLogger("bevcask").addHandler(told)
    logging.getLogger("bevcask").setLevel(logging.INFO)
    sized = [word for word in SIZES["paper" if CUDA else "tiny"].words if "num_workers" not in word]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [*sized, f"cache={folder / 'cache.zarr'}", "dataset=synthetic"]
        words += [f"dataset.root={world}", "dataset.split=all"]
        teacher_extract.run(compose(ExtractConfig, words_for(ExtractConfig, words)))
        words += [f"run={folder / 'run'}", f"trainer.max_steps={TRAINED}", "trainer.log_every=1"]
        config = compose(DistillConfig, words_for(DistillConfig, words))
        done = student_distill.run(config)
        rows = _steps(folder / "run")
    seconds, waits = (sum(own) for own in zip(*rows[WARM:], strict=True))
    yield {
        "loader": told.lines,
        "steps": len(rows) - WARM,
        "loader_share": waits / seconds,
        "samples_a_second": config.loader.batch_size * (len(rows) - WARM) / seconds,
        "seconds_per_step": done["seconds_per_step"],
        "wall_time": done["wall_time"],
        "peak_bytes": torch.cuda.max_memory_allocated() if CUDA else None,
    }


class _Told(logging.Handler):
    """Keeps what the loader says of its workers."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += [line for line in [record.getMessage()] if "num_workers" in line]


def _steps(folder: Path) -> list[tuple[float, float]]:
    """Return seconds of each step, and of waiting for the loader in it."""
    rows = []
    for path in sorted((folder / "logs" / "csv").glob("sitting_*/metrics.csv")):
        for row in csv.DictReader(path.read_text().splitlines()):
            if row["time/seconds_per_step"]:
                seconds = float(row["time/seconds_per_step"])
                rows.append((seconds, seconds * float(row["time/loader_share"])))
    return rows


def main() -> None:
    """Parse the command line, run the parts, print and write after each."""
    known = parts()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="part", help=", ".join(known))
    parser.add_argument("--quick", action="store_true", help="parts for four minutes")
    parser.add_argument("--list", action="store_true", help="parts and their limits")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--own", choices=OWN, help=argparse.SUPPRESS)
    parser.add_argument("--world", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.own:
        for found in OWN[args.own](*([args.world] if args.world else [])):
            write(found, args.out)
        return
    if unknown := set(args.names) - known.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}. Known: {', '.join(known)}")
    chosen = args.names or [n for n, part in known.items() if part.quick or not args.quick]
    if args.list:
        print("\n".join(f"{n:26}{known[n].limit:5} s" for n in chosen))
        return
    with tempfile.TemporaryDirectory() as folder:
        run_all(chosen, args.out, Path(folder))


OWN: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "repeat": repeat,
    "twice": twice,
    "reader": reader,
    "world": world,
    "train": train,
}


def run_all(chosen: list[str], out: Path, folder: Path) -> None:
    """Run parts, print a line for each and write all of them after each."""
    record = ground(torch.device("cuda" if CUDA else "cpu"), chosen, 0)
    kept = json.loads(out.read_text()) if out.is_file() else {}
    same = kept.get("hardware", {}).get("gpu") == record["hardware"]["gpu"]
    record["parts"] = kept.get("parts", {}) if same else {}
    known = parts(str(folder / "world"))
    needing = [name for name in chosen if str(folder / "world") in known[name].command]
    made = _making(folder) if needing else None
    for name in chosen:
        if made is not None and name in needing and made.wait():
            raise SystemExit("there is no world to time steps on")
        found = run(name, known[name])
        record["parts"][name] = found | {"commit": record["commit"]}
        print(f"{name:26}{json.dumps(_short(found))}", flush=True)
        write(record, out)


def _making(folder: Path) -> "subprocess.Popen[bytes]":
    """Begin with the world, beside parts that are not timed."""
    own = ["--own", "world", "--world", str(folder / "world"), "--out", str(folder / "world.json")]
    return subprocess.Popen([sys.executable, str(HERE / "gpu.py"), *own])


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """Return a result without what it stands on."""
    result = found.get("result", {})
    if "ratios" not in result:
        return found
    ratios = {row["name"]: round(row["median"], 3) for row in result["ratios"]}
    rest = {key: value for key, value in found.items() if key != "result"}
    return rest | {"ratios": ratios, "arms": result.get("arms")}


if __name__ == "__main__":
    main()

"""What does a GPU do here? Ten minutes: is it exact, does it repeat itself, does it wait?

Every part is a process of its own with a time limit; what fails or runs out of time is a line, and
the others go on. Without a GPU all of it runs on the CPU, at tiny sizes.

    python benchmarks/gpu.py              # all parts
    python benchmarks/gpu.py --quick      # four minutes
    python benchmarks/gpu.py --list
    python benchmarks/gpu.py repeat reader
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, ground, make_world

from bevcask.cache import open_cache
from bevcask.compose import compose
from bevcask.config import NativeTeacherConfig, build_config
from bevcask.detectors.operations import random_frame
from bevcask.groups import load_group
from bevcask.stages import teacher_extract
from bevcask.teachers.reckoning import half_precision, prepare, reckoning
from bevcask.verbs import ExtractConfig

HERE = Path(__file__).parent
CUDA = torch.cuda.is_available()
TINY = ("centerpoint_tiny", "bevfusion_tiny")
PAPER = ("centerpoint", "bevfusion_swint")
STEPS = {  # what teaches whom, beside the benchmark's own words
    "distillbev": (),
    "tigdistill": ("method=tigdistill", "method.inner_depth=0"),
    "simdistill": ("method=simdistill", "teacher=bevfusion", "student=bevsimdet"),
}


@dataclass(frozen=True)
class Part:
    """A process.

    Attributes:
        command: words behind the interpreter.
        limit: seconds.
        quick: belongs to `--quick`.
        answers: prints one JSON object, which is its result; else it writes one to `--out`.
    """

    command: tuple[str, ...]
    limit: int
    quick: bool = True
    answers: bool = False


def parts() -> dict[str, Part]:
    """Return what can be run, by name, in order."""
    size = ("--size", "paper" if CUDA else "tiny", "--rounds", "3")
    tests = HERE.parent / "tests"
    found = {"tests": Part(("-m", "pytest", "-q", "-m", "gpu", str(tests)), 60, answers=False)}
    for name in ("repeat", "twice", "reader"):
        found[name] = Part((str(HERE / "gpu.py"), "--own", name), 60, answers=True)
    for name, words in STEPS.items():
        chosen = [_sized(word) for word in words]
        command = (str(HERE / "step_time.py"), *size, *chosen)
        found[f"step {name}"] = Part(command, 90, quick=name == "distillbev")
    for teacher in PAPER if CUDA else TINY:
        method = "simdistill" if teacher.startswith("bevfusion") else "distillbev"
        words = (f"teacher={teacher}", f"method={method}")
        found[f"extract {teacher}"] = Part((str(HERE / "extract.py"), *size, *words), 60, False)
    return found


def _sized(word: str) -> str:
    suffix = {True: "_swint", False: "_tiny"}[CUDA]
    return f"{word}{suffix}" if word.startswith(("teacher=", "student=")) else word


def run(name: str, part: Part) -> dict[str, Any]:
    """Run a part; return its result, or what came in the way."""
    if name == "tests" and not CUDA:
        return {"skipped": "no CUDA device"}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        more = () if part.answers or name == "tests" else ("--out", str(out))
        try:
            done = subprocess.run(
                [sys.executable, *part.command, *more],
                capture_output=True, text=True, timeout=part.limit, check=False,
                env={**os.environ, "BEVCASK_HOME": folder},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"failed": f"not done after {part.limit} s"}
        result: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1)}
        said = (done.stdout + done.stderr).strip().splitlines() or [""]
        if name == "tests":
            return result | {"said": said[-1], "ok": done.returncode == 0}
        if done.returncode:
            return result | {"failed": said[-1]}
        text = out.read_text() if more else done.stdout
        return result | {"result": json.loads(text)}


def repeat() -> dict[str, Any]:
    """Return how far two forwards are apart, and one from the CPU's, of the largest value."""
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
        for precision in ("float32", "tf32", "bf16") if CUDA else ("float32", "bf16"):
            answers = []
            for _ in range(2):
                with (
                    torch.inference_mode(),
                    reckoning(precision, True, device),
                    half_precision(precision, device),
                ):
                    answers.append(detector(frame.to(torch.device(device))).taps)
            one, two = answers
            table[f"{name} {precision}"] = {
                "twice": max(_apart(one[tap], two[tap]) for tap in one),
                "cpu": max(_apart(one[tap], host[tap]) for tap in one),
            }
        del detector
    return table


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one.float().cpu(), other.float().cpu()
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))


def twice() -> dict[str, Any]:
    """Return whether two extractions give the same files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = make_world(folder / "world", 4, 160)
        return {
            teacher: {"differ": list(_differ(*_extracted(folder, world, teacher)))}
            for teacher in (*TINY, *(PAPER if CUDA else ()))
        }


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


def reader() -> dict[str, Any]:
    """Return how fast targets come from the cache onto the device, GB/s of what is stored."""
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
    return {"gb_per_second": sorted(rates)[len(rates) // 2], "rounds": len(rates)}


def main() -> None:
    """Parse the command line, run the parts, print and write after each."""
    known = parts()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="part", help=", ".join(known))
    parser.add_argument("--quick", action="store_true", help="parts for four minutes")
    parser.add_argument("--list", action="store_true", help="parts and their limits")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--own", choices=("repeat", "twice", "reader"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.own:
        print(json.dumps({"repeat": repeat, "twice": twice, "reader": reader}[args.own]()))
        return
    if unknown := set(args.names) - known.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}. Known: {', '.join(known)}")
    chosen = args.names or [n for n, part in known.items() if part.quick or not args.quick]
    if args.list:
        print("\n".join(f"{n:26}{known[n].limit:5} s" for n in chosen))
        return
    record = ground(torch.device("cuda" if CUDA else "cpu"), chosen, 0) | {"parts": {}}
    for name in chosen:
        found = record["parts"][name] = run(name, known[name])
        print(f"{name:26}{json.dumps(found)[:200]}", flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

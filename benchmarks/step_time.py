"""What does a training step cost without a teacher, with cached targets, with the teacher in it?

    python benchmarks/step_time.py [--size tiny|paper] [--rounds N] [--world FOLDER] [key=value ...]

Four arms, the same student, batches and augmentation in all of them:

    none      no distillation
    resident  targets lie in memory, as stored
    cached    targets are read from the cache
    online    the teacher runs in every step and sees what the student sees

Rounds are interleaved; every ratio is taken within a round, its median over the rounds. A step is
loading, forward, backward, clipping, optimiser. Without loader workers nothing overlaps, so every
cost is in the number; with workers, loading hides behind the device as in training. The JSON file
is written after each round.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import RESULTS, ground, interleave, make_world, now, ratio, report, write

from bevcask.cache import open_cache
from bevcask.compose import compose, words_for
from bevcask.data.index.frames import Frames
from bevcask.data.join import JoinedDataset
from bevcask.data.loader import build_loader
from bevcask.data.samples import Key, Sample, SampleReader
from bevcask.data.sampling import Epochs, StepSampler
from bevcask.detectors import find_detector
from bevcask.methods import build_method
from bevcask.provenance import pick_device
from bevcask.stages import teacher_extract
from bevcask.training.module import Distillation
from bevcask.training.teaching import open_teaching
from bevcask.verbs import DistillConfig, ExtractConfig

SEED = 0
AUGMENT = [
    "augment.resize=[-0.06,0.11]",
    "augment.crop=true",
    "augment.image_flip=true",
    "augment.image_rotation=5.4",
    "augment.bev_rotation=0.3925",
    "augment.bev_scale=[0.95,1.05]",
    "augment.bev_flip_x=true",
    "augment.bev_flip_y=true",
]  # BEVDepth's published ranges


@dataclass(frozen=True)
class Size:
    """One configuration, fixed before anything is timed.

    Attributes:
        words: the run's configuration.
        num_keyframes: frames of the synthetic scene.
        image_width: pixels of its cameras.
        steps: timed steps an arm and round.
        warm_steps: steps before them in each round, untimed, so that loader workers are under way.
    """

    words: tuple[str, ...]
    num_keyframes: int
    image_width: int
    steps: int
    warm_steps: int


SIZES = {
    "tiny": Size(
        (
            "teacher=centerpoint_tiny",
            "student=bevdepth_tiny",
            "method=distillbev",
            "loader.batch_size=2",
            "loader.num_workers=0",
            *AUGMENT,
        ),
        num_keyframes=8,
        image_width=800,
        steps=2,
        warm_steps=0,
    ),
    "paper": Size(
        (
            "teacher=centerpoint",
            "student=bevdepth_r50",
            "method=distillbev",
            "loader.batch_size=8",
            "loader.num_workers=8",
            "trainer.precision=bf16-mixed",
            "device=cuda",
            *AUGMENT,
        ),
        num_keyframes=16,
        image_width=1600,
        steps=8,
        warm_steps=2,
    ),
}


class ResidentDataset(JoinedDataset):
    """Targets of every frame lie in memory, as stored."""

    def __init__(self, cached: JoinedDataset) -> None:
        super().__init__(cached.frames, cached.student, cached.cache, cached.names)
        assert cached.cache is not None
        cache = open_cache(cached.cache)
        tokens = cached.frames.tokens
        self._place = {token: place for place, token in enumerate(tokens)}
        self._resident = cache.read_batch(tokens, self.names)

    def _read_targets(self, samples: Sequence[Sample]) -> dict[str, Any]:
        places = [self._place[sample.token] for sample in samples]
        return {name: target.sample(places) for name, target in self._resident.items()}


class Blocks:
    """The batches of the next block; the loader asks for them at every pass."""

    def __init__(self) -> None:
        self.keys: list[list[Key]] = []

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


class Arm:
    """A student in training, timed a few steps at a time."""

    def __init__(self, config: DistillConfig, frames: Frames, resident: bool = False) -> None:
        self._config = config
        self._device = pick_device(config.device)
        plugin, own = find_detector(config.student.detector, "student.detector")
        method = build_method(config.method)
        teaching = open_teaching(config, method, frames, self._device)
        torch.manual_seed(config.seed)
        detector: Any = plugin
        method.build(detector.describe_taps(own), teaching.specs)
        student = detector(own)
        self._module = Distillation(student, method, teaching.source, config.trainer, {})
        self._module.to(self._device).train()
        self._optimizer = self._module.configure_optimizers()["optimizer"]
        reader = SampleReader(frames, detector.inputs(own), config.augment, config.seed)
        dataset = JoinedDataset(
            frames, reader, teaching.cache, tuple(teaching.specs), teaching.readers
        )
        if resident:
            dataset = ResidentDataset(dataset)
        self._blocks = Blocks()
        blocks: Any = self._blocks
        self._loader = build_loader(dataset, blocks, config.loader, self._device)
        self._sampler = StepSampler(
            Epochs(np.ones(len(frames), np.int64), config.seed), config.loader.batch_size
        )
        self._step = 0
        self.waits: list[float] = []
        self.peak_bytes = 0

    def seconds_per_step(self, steps: int, warm_steps: int) -> float:
        """Train `warm_steps`, then `steps`; return the mean time of the latter."""
        numbers = range(self._step, self._step + warm_steps + steps)
        self._step = numbers.stop
        self._blocks.keys = [self._sampler.batch(number) for number in numbers]
        batches = iter(self._loader)
        for _ in range(warm_steps):
            self._train(next(batches))
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        start, waited = now(self._device), 0.0
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            self._train(batch)
        seconds = (now(self._device) - start) / steps
        self.waits.append(waited / steps)
        if self._device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device)
        assert next(batches, None) is None
        return seconds

    def _train(self, joined: Any) -> None:
        module, trainer = self._module, self._config.trainer
        batch, align = module.transfer_batch_to_device(joined, self._device, 0)
        mixed = trainer.precision == "bf16-mixed"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=mixed):
            loss = torch.stack(list(module.losses(batch, align).values())).sum()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), trainer.clip)
        self._optimizer.step()


def configure(words: list[str]) -> DistillConfig:
    """Return the configuration of a training from words that extraction shares."""
    return compose(DistillConfig, words_for(DistillConfig, words))


def build_arms(words: list[str], folder: Path) -> dict[str, Arm]:
    """Extract the cache and build the four arms on it."""
    given = [*words, f"cache={folder / 'cache.zarr'}"]
    teacher_extract.run(compose(ExtractConfig, words_for(ExtractConfig, given)))
    config = configure(given)
    frames = Frames.select(config.dataset)
    return {
        "none": Arm(configure([*_without_method(words), "method=none"]), frames),
        "resident": Arm(config, frames, resident=True),
        "cached": Arm(config, frames),
        "online": Arm(
            configure([*words, "targets=online", "online.input=augmented"]),
            frames,
        ),
    }


def _without_method(words: list[str]) -> list[str]:
    return [word for word in words if not word.startswith(("method=", "method."))]


def measure(
    size: Size,
    extra: list[str],
    rounds: int,
    folder: Path,
    world: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Time all arms; return seconds, ratios and what they stand on.

    Args:
        size: what is timed.
        extra: changes its configuration.
        rounds: of all arms.
        folder: for caches, and the world where none is given.
        world: a synthetic one of `size.num_keyframes`.
        out: written after each round.
    """
    words = [*size.words, f"seed={SEED}", *extra]
    root = world or make_world(folder / "world", size.num_keyframes, size.image_width)
    data = ["dataset=synthetic", f"dataset.root={root}", "dataset.split=all"]
    config = configure(words)
    result = ground(pick_device(config.device), words, SEED)
    workers = config.loader.num_workers
    assert workers != "auto"  # an arm is too short to measure
    arms = build_arms([*words, *data], folder)
    clocks: dict[str, Callable[[], float]] = {
        name: lambda arm=arm: arm.seconds_per_step(size.steps, size.warm_steps)  # type: ignore[misc]
        for name, arm in arms.items()
    }

    def told(seconds: dict[str, list[float]]) -> dict[str, Any]:
        found = result | {"seconds": seconds, "ratios": _ratios(seconds, workers)}
        found["arms"] = {
            name: {
                "samples_a_second": config.loader.batch_size / median(seconds[name]),
                "loader_wait_seconds": median(arm.waits[1:]),  # without the round thrown away
                "peak_bytes": arm.peak_bytes or None,
            }
            for name, arm in arms.items()
        }
        return found

    def keep(seconds: dict[str, list[float]]) -> None:
        if out is not None:
            write(told(seconds), out)

    return told(interleave(clocks, rounds, SEED, keep))


def _ratios(seconds: Mapping[str, list[float]], workers: int) -> list[dict[str, Any]]:
    hidden = "<= 1.05" if workers else None  # reading hides behind the device
    columns = [seconds[name] for name in ("none", "resident", "cached", "online")]
    table = list(zip(*columns, strict=True))
    return [
        ratio("(cached - resident) / none", [(c - r) / n for n, r, c, _ in table], "<= 0.03"),
        ratio(
            "(online - cached) / (online - none)",
            [(o - c) / (o - n) for n, _, c, o in table],
            ">= 0.9",
        ),
        ratio("cached / none", [c / n for n, _, c, _ in table], hidden),
        ratio("online / none", [o / n for n, _, _, o in table]),
    ]


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--world", type=Path, help="synthetic world (default: made and removed)")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/NAME.json)")
    parser.add_argument("words", nargs="*", metavar="key=value", help="changes the configuration")
    options = parser.parse_args()
    name = "step_time" if options.size == "tiny" else f"step_time_{options.size}"
    out = options.out or RESULTS / f"{name}.json"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BEVCASK_HOME"] = folder  # index and catalog entry of data that goes away
        result = measure(
            SIZES[options.size], options.words, options.rounds, Path(folder), options.world, out
        )
    report(name, result, out)


if __name__ == "__main__":
    main()

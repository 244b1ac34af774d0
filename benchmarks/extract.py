"""How much longer than the teacher's forward passes does extraction take?

    python benchmarks/extract.py [--size tiny|paper] [--rounds N] [key=value ...]

Two arms over the same batches, which lie in memory both times:

    forward   the teacher says every target, nothing is kept
    extract   the same, encoded, written and committed through the stage's own functions

Creating and sealing a cache cost the same for eight frames as for thirty thousand; their seconds
are reported beside the ratio, not in it.
"""

import argparse
import itertools
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import ground, interleave, make_world, now, ratio, report

from bevcask.cache import FrameTable, WriteQueue, create, open_cache
from bevcask.compose import compose
from bevcask.data.index.frames import Frames
from bevcask.data.samples import SampleReader, collate
from bevcask.detectors.base import Batch
from bevcask.extraction.shards import encoded_shards
from bevcask.extraction.steps import Step, steps_of
from bevcask.methods import build_method
from bevcask.processes import cores
from bevcask.provenance import pick_device
from bevcask.targets.pixels import needs_pixels
from bevcask.targets.plan import Plan, plan
from bevcask.teachers import build_teacher
from bevcask.verbs import ExtractConfig

SEED = 0


@dataclass(frozen=True)
class Size:
    """One configuration, fixed before anything is timed.

    Attributes:
        words: the run's configuration.
        num_keyframes: frames of the synthetic scene, all extracted once a round; several shards,
            so that writing one overlaps computing the next.
    """

    words: tuple[str, ...]
    num_keyframes: int


SIZES = {
    "tiny": Size(
        ("teacher=centerpoint_tiny", "method=distillbev", "loader.batch_size=4"), num_keyframes=32
    ),
    "paper": Size(
        (
            "teacher=centerpoint",
            "method=distillbev",
            "loader.batch_size=4",
            "store.shard_rows=4",
        ),
        num_keyframes=64,
    ),
}


class Extraction:
    """A loaded teacher and everything it will see, in memory."""

    def __init__(self, config: ExtractConfig, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._device = pick_device(config.device)
        self._frames = Frames.select(config.dataset)
        self._teacher = build_teacher(config.teacher, config.seed)
        self._teacher.load(self._device)
        needs = build_method(config.method).needs()
        self._plan: Plan = plan(
            needs, self._teacher.offers(), len(self._frames), config.store, augment=None
        )
        self._numbers = itertools.count()
        self._batches = self._load()
        self.threads = config.store.threads or max(1, cores() // 2)  # as the verb
        self.stored_bytes = 0
        self.fixed_seconds: list[float] = []

    def _load(self) -> list[tuple[Step, Batch]]:
        wanted = needs_pixels(self._plan.specs)
        inputs = self._teacher.inputs()
        reader = SampleReader(self._frames, inputs, None, SEED, pixels=wanted)
        samples = [reader.read(token) for token in self._frames.tokens]
        steps = steps_of(self._create(), self._frames, self._config.loader.batch_size)
        return [(step, collate([samples[key.frame] for key in step.keys])) for step in steps]

    def _create(self) -> Any:
        frames = self._frames
        return create(
            str(self._folder / f"{next(self._numbers)}.zarr"),
            list(self._plan.specs),
            FrameTable(frames.tokens, frames.scenes, frames.timestamps, frames.lidar_to_global),
            shard_rows=self._config.store.shard_rows,
            fingerprint={"teacher": {"weights": "none"}},
            plan={},
            provenance={},
        )

    def forward(self) -> float:
        """Return the seconds of all forward passes."""
        names = [spec.name for spec in self._plan.specs]
        start = now(self._device)
        for _, batch in self._batches:
            self._teacher.targets(batch.to(self._device), names)
        return now(self._device) - start

    def extract(self) -> float:
        """Return the seconds from the first batch to the last committed shard."""
        marks = [now(self._device)]
        writer = self._create()
        marks.append(now(self._device))
        with WriteQueue(writer, self._config.store.queue, self.threads) as queue:
            for shard, arrays in encoded_shards(
                self._teacher, self._plan.specs, self._batches, self._device
            ):
                queue.put(shard, arrays)
        marks.append(now(self._device))
        writer.seal()
        marks.append(now(self._device))
        create_seconds, seconds, seal_seconds = (b - a for a, b in itertools.pairwise(marks))
        self.fixed_seconds.append(create_seconds + seal_seconds)
        cache = open_cache(writer.cache.url)
        self.stored_bytes = sum(cache.stored_bytes(name) for name in cache.specs)
        shutil.rmtree(cache.url)
        return seconds

    @property
    def raw_bytes(self) -> int:
        return self._plan.total_bytes


def measure(size: Size, extra: list[str], rounds: int, folder: Path) -> dict[str, Any]:
    """Time both arms; return seconds, ratio and what they stand on."""
    words = [*size.words, f"seed={SEED}", *extra]
    root = make_world(folder / "world", size.num_keyframes, image_width=64)
    data = ["dataset=synthetic", f"dataset.root={root}", "dataset.split=all"]
    config = compose(ExtractConfig, [*words, *data])
    result = ground(pick_device(config.device), words, SEED)
    with torch.inference_mode():
        extraction = Extraction(config, folder)
        arms = {"forward": extraction.forward, "extract": extraction.extract}
        seconds = interleave(arms, rounds, SEED)
    pairs = list(zip(seconds["forward"], seconds["extract"], strict=True))
    return result | {
        "frames": size.num_keyframes,
        "encoded_bytes": extraction.raw_bytes,
        "stored_bytes": extraction.stored_bytes,
        "writer_threads": extraction.threads,
        "create_and_seal_seconds": median(extraction.fixed_seconds),
        "seconds": seconds,
        "ratios": [ratio("extract / forward", [e / f for f, e in pairs], "<= 1.05")],
    }


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, help="keyframes (default: the size's)")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/NAME.json)")
    parser.add_argument("words", nargs="*", metavar="key=value", help="changes the configuration")
    options = parser.parse_args()
    size = SIZES[options.size]
    if options.frames:
        size = replace(size, num_keyframes=options.frames)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BEVCASK_HOME"] = folder  # index and catalog entry of data that goes away
        result = measure(size, options.words, options.rounds, Path(folder))
    report("extract" if options.size == "tiny" else f"extract_{options.size}", result, options.out)


if __name__ == "__main__":
    main()

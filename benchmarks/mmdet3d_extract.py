"""How much longer than mmdet3d's own prediction does extraction from an mmdet3d teacher take?

    python benchmarks/mmdet3d_extract.py [--frames N] [--rounds N] [key=value ...]

Needs `make mmdet3d`. Three arms over the same frames, which lie in memory each time:

    mmdet3d   its data preprocessor and `predict`, on the points its own pipeline would give
    forward   the same through bevcask's wrapper, which reads the taps too
    extract   the same, encoded, written and committed through the stage's own functions
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from extract import SEED, Extraction
from measure import ground, interleave, make_world, now, ratio, report

from bevcask.compose import compose
from bevcask.detectors.mmdet3d.border import to_mmdet3d
from bevcask.detectors.mmdet3d.detector import Mmdet3dDetector
from bevcask.provenance import pick_device
from bevcask.verbs import ExtractConfig

WORDS = (
    "teacher=mmdet3d_centerpoint_pillar02",
    "method=distillbev",
    "loader.batch_size=1",
    "store.shard_rows=2",
)


class DirectExtraction(Extraction):
    """An extraction whose network also runs without bevcask."""

    def direct(self) -> float:
        """Return the seconds of mmdet3d's own predictions."""
        detector = self._teacher.detector
        assert isinstance(detector, Mmdet3dDetector)
        frames = [to_mmdet3d(batch.to(self._device), detector.recipe) for _, batch in self._batches]
        start = now(self._device)
        for frame in frames:
            data = detector.network.data_preprocessor(frame, False)
            detector.network.predict(data["inputs"], data["data_samples"])
        return now(self._device) - start


def measure(words: list[str], frames: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Time the arms; return seconds, ratios and what they stand on."""
    root = make_world(folder / "world", frames, image_width=64)
    data = ["dataset=synthetic", f"dataset.root={root}", "dataset.split=all"]
    config = compose(ExtractConfig, [*words, *data])
    result = ground(pick_device(config.device), words, SEED)
    with torch.inference_mode():
        extraction = DirectExtraction(config, folder)
        arms = {
            "mmdet3d": extraction.direct,
            "forward": extraction.forward,
            "extract": extraction.extract,
        }
        seconds = interleave(arms, rounds, SEED)
    rows = [
        ("extract / mmdet3d", "extract", "mmdet3d", "<= 1.05"),
        ("extract / forward", "extract", "forward", "<= 1.05"),
        ("forward / mmdet3d", "forward", "mmdet3d", None),
    ]
    return result | {
        "frames": frames,
        "stored_bytes": extraction.stored_bytes,
        "seconds": seconds,
        "ratios": [
            ratio(name, [a / b for a, b in zip(seconds[one], seconds[two], strict=True)], goal)
            for name, one, two, goal in rows
        ],
    }


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--out", type=Path, help="JSON file (default: in results/)")
    parser.add_argument("words", nargs="*", metavar="key=value", help="changes the configuration")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BEVCASK_HOME"] = folder  # index and catalog entry of data that goes away
        result = measure(
            [*WORDS, f"seed={SEED}", *options.words], options.frames, options.rounds, Path(folder)
        )
    report("mmdet3d_extract", result, options.out)


if __name__ == "__main__":
    main()

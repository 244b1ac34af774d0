"""demo: the whole job in one process on a synthetic world, from nothing to scores and pictures.

    synthesize -> teacher-extract -> evaluate the cache -> student-distill twice (none, distillbev)
    -> inspect -> metrics.json

Both students continue from the same start for the same number of steps on the same batches; only
the distillation loss differs. Run it with `make demo`.
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from bevcask.compose import compose
from bevcask.errors import BevcaskError, Stopped
from bevcask.signals import exit_code
from bevcask.stages import evaluate, inspect_cache, student_distill, synthesize, teacher_extract
from bevcask.verbs import (
    DistillConfig,
    EvaluateConfig,
    ExtractConfig,
    InspectConfig,
    SynthesizeConfig,
)

_log = logging.getLogger(__name__)
SEED = 42  # neither the teacher's nor the start's training world
SCORES = ("mAP", "NDS")
ARMS = {"none": "none", "distillbev": "distillbev_tiny"}


def run(folder: Path) -> dict[str, dict[str, float]]:
    """Run every step into `folder`; return the scores also written to `metrics.json`.

    Teacher: mAP and NDS of the cached boxes on the world's validation scenes. Students: the same
    scenes, plus the median seconds a training step.
    """
    world, cache = folder / "world", folder / "cache.zarr"
    data = ["dataset=synthetic", f"dataset.root={world}"]
    val = [f"val.root={world}", "val.version=v1.0-synthetic", "val.split=synthetic_val"]
    synthesize.run(
        SynthesizeConfig(out=str(world), seed=SEED, num_scenes=12, num_keyframes=10, val_scenes=4)
    )
    teacher_extract.run(
        compose(
            ExtractConfig,
            [
                f"cache={cache}",
                "teacher=centerpoint_tiny",
                "teacher.checkpoint=catalog:centerpoint_tiny_synthetic",
                "method=distillbev",
                "dataset.split=all",
                *data,
            ],
        )
    )
    scores = {
        "teacher": evaluate.run(
            compose(
                EvaluateConfig,
                [f"cache={cache}", f"run={folder}/teacher", "dataset.split=synthetic_val", *data],
            )
        )
    }
    for arm, method in ARMS.items():
        scores[arm] = student_distill.run(
            compose(
                DistillConfig,
                [
                    "experiment=demo",
                    f"method={method}",
                    f"run={folder}/{arm}",
                    *([f"cache={cache}"] if arm != "none" else []),
                    "dataset.split=synthetic_train",
                    *data,
                    *val,
                ],
            )
        )
    inspect_cache.run(
        compose(
            InspectConfig, [f"cache={cache}", "sample=first", f"picture={folder}/cache.png", *data]
        )
    )
    metrics = {
        "teacher": {key: scores["teacher"][key] for key in SCORES},
        **{
            name: {key: scores[name][key] for key in (*SCORES, "seconds_per_step")} for name in ARMS
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def main(arguments: list[str]) -> int:
    """Run the demo into the folder named on the command line; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = Path(arguments[0] if arguments else "runs/demo")
    start = time.perf_counter()
    try:
        metrics = run(folder)
    except BevcaskError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except Stopped as stopped:
        sys.stderr.write(f"{stopped}\n")
        return exit_code(stopped.signal)
    sys.stdout.write(table(metrics))
    sys.stdout.write(
        f"\nsynthetic world, seed {SEED}; {time.perf_counter() - start:.0f} s. Look at {folder}/, "
        f"then try: bevcask inspect {folder}/cache.zarr\n"
        "So short a training shows the machinery, not what distillation is worth: see "
        "docs/measured.md\n"
    )
    return 0


def table(metrics: dict[str, Any]) -> str:
    """Format the scores as text."""
    lines = [f"{'':12}{'mAP':>8}{'NDS':>8}{'s/step':>8}"]
    for name, row in metrics.items():
        step = f"{row['seconds_per_step']:8.3f}" if "seconds_per_step" in row else ""
        lines.append(f"{name:12}{row['mAP']:8.3f}{row['NDS']:8.3f}{step}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

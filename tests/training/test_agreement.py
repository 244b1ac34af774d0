"""How far cached targets are from a teacher in the loop: every method, codec and augmentation.

Trained teachers on half their range (RayDN: of random weights, on all of it), students from random
weights; two synthetic frames. Both arms
see the canonical frame; the teacher in the loop is never quantised. `pytest -m "" -s FILE` prints a
table: relative change of the distillation loss, of its worst term, and of the gradient on all
student weights as one vector.
"""

import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bevcask.compose import compose, words_for
from bevcask.data.index.frames import Frames
from bevcask.data.samples import Replay
from bevcask.stages import teacher_extract
from bevcask.verbs import DistillConfig, ExtractConfig
from training.test_cached_equals_online import FLIPS, ONLINE, gap, gradients, whole_gap


@dataclass(frozen=True)
class Goal:
    """The largest relative change allowed."""

    loss: float
    gradient: float


GOALS = {"float32": Goal(1e-6, 1e-6), "float16": Goal(1e-4, 1e-3), "auto": Goal(1e-3, 1e-2)}
LEVELS = GOALS | {"int8": Goal(1e-3, 1e-2)}  # `auto` is float16 where all targets are image levels
TEACHERS = {
    name: (f"teacher={name}", f"teacher.checkpoint=catalog:{checkpoint}")
    for name, checkpoint in (
        ("centerpoint_tiny", "centerpoint_tiny_synthetic"),
        ("bevdepth_tiny", "bevdepth_tiny_start"),
        ("bevfusion_tiny", "bevfusion_tiny_synthetic"),
        ("bevformer_tiny", "bevformer_tiny_synthetic"),
        ("raydn_tiny", "raydn_tiny_synthetic"),
    )
}
TEACHERS["bevformer_tiny"] += ("teacher.memory=window",)
HALF_RANGE = ("teacher.detector.half_extent=25.6", "student.detector.half_extent=25.6")
OWN = {  # a window has its frames drawn one by one, as `both_views` counts them
    "raydn_tiny": ("method.modulated=0.1", "method.schedule=false", "student.detector.history=1")
}
PAIRS = {
    "distillbev, LiDAR": ("centerpoint_tiny", "bevdepth_tiny"),
    "distillbev, camera": ("bevdepth_tiny", "bevdepth_tiny"),
    "tigdistill, LiDAR": ("centerpoint_tiny", "bevdepth_tiny"),
    "tigdistill, fusion": ("bevfusion_tiny", "bevdepth_tiny"),
    "simdistill, fusion": ("bevfusion_tiny", "bevsimdet_tiny"),
    "focaldistiller, memory": ("bevformer_tiny", "bevformer_tiny_student"),
    "harmodistill, memory": ("raydn_tiny", "raydn_tiny"),
}
AUGMENTS: Mapping[str, tuple[str, ...]] = {
    "off": (),
    "flips": tuple(FLIPS),
    "views": (
        "augment.resize=[-0.02,0.04]",
        "augment.crop=true",
        "augment.image_flip=true",
        "augment.image_rotation=5",
    ),
    "geometry": (
        "augment.resize=[-0.02,0.04]",
        "augment.crop=true",
        "augment.image_flip=true",
        "augment.bev_rotation=0.3925",
        "augment.bev_scale=[0.95,1.05]",
    ),
    "colours": (
        "augment.photometric=true",
        "augment.grid_mask=0.7",
        "augment.image_size_HW=[80,144]",
    ),
}
VIEWS = "store.views=2"
ROWS = [
    pytest.param(*row, marks=pytest.mark.slow)
    for row in itertools.product(PAIRS, ("off", "flips", "views"))
    if not row[0].endswith("memory")
] + [
    pytest.param(pair, augment, marks=pytest.mark.slow)
    for pair, augments in {
        "focaldistiller, memory": ("off", "colours"),
        "harmodistill, memory": ("off", "geometry", "colours"),
    }.items()
    for augment in augments
]


def configure(world: Path, pair: str, *more: str, verb: type[Any] = DistillConfig) -> Any:
    teacher, student = PAIRS[pair]
    words = [
        "dataset=synthetic",
        f"dataset.root={world}",
        "dataset.split=synthetic_val",
        "dataset.limit=2",
        f"method={pair.partition(',')[0]}",
        *TEACHERS[teacher],
        f"student={student}",
        *OWN.get(teacher, HALF_RANGE),
        "trainer=tiny",
        "loader.batch_size=2",
        "loader.num_workers=0",
        "device=cpu",
        "seed=3",
    ]
    return compose(verb, words_for(verb, [*words, *more]))


def both_views(config: DistillConfig) -> tuple[int, int]:
    """Return two steps; the second shows the other view of every frame. A batch is an epoch."""
    tokens = Frames.select(config.dataset).tokens
    replay = Replay(config.seed, 2)
    shown = [[replay.view(config.seed, token, step) for token in tokens] for step in range(99)]
    assert len(tokens) == config.loader.batch_size
    return 0, shown.index([3 - view for view in shown[0]])


@pytest.mark.parametrize(("pair", "augment"), ROWS)
def test_cached_targets_agree(pair: str, augment: str, tiny_world: Path, tmp_path: Path) -> None:
    """Both views of each frame; what LiDAR alone says is the same in every view."""
    prefix = pair.partition(",")[0] + "/"
    moving = AUGMENTS[augment]
    viewed = (
        (VIEWS,)
        if augment in ("views", "colours", "geometry") and not pair.endswith("LiDAR")
        else ()
    )
    stored = (*viewed, *moving) if viewed else ()
    loop = configure(tiny_world, pair, *ONLINE, *moving, *viewed, "store.codec=float32")
    steps = both_views(loop) if augment in ("views", "colours", "geometry") else (0,)
    exact = [gradients(loop, prefix, step) for step in steps]
    if len(steps) > 1:
        assert gap(exact[0][0], exact[1][0]) > 1e-3
    for codec, goal in (LEVELS if pair.startswith("harmo") else GOALS).items():
        url = f"cache={tmp_path / codec}.zarr"
        teacher_extract.run(
            configure(tiny_world, pair, url, f"store.codec={codec}", *stored, verb=ExtractConfig)
        )
        cached = configure(tiny_world, pair, url, *moving)
        changes = []
        for step, (losses, slopes) in zip(steps, exact, strict=True):
            own_losses, own_slopes = gradients(cached, prefix, step)
            total, own_total = (float(sum(terms.values())) for terms in (losses, own_losses))
            change = abs(own_total / total - 1), gap(own_losses, losses)
            changes.append((*change, whole_gap(own_slopes, slopes)))
        loss, worst, gradient = (max(column) for column in zip(*changes, strict=True))
        sys.stdout.write(
            f"{pair:24}{augment:9}{codec:9}loss {loss:.1e} (goal {goal.loss:.0e}), "
            f"worst term {worst:.1e}, gradient {gradient:.1e} (goal {goal.gradient:.0e})\n"
        )
        assert loss <= goal.loss
        assert gradient <= goal.gradient
        assert worst <= goal.loss or codec != "float32"

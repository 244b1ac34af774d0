"""What a student learns from a cache is what it learns with the teacher in the loop."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.compose import compose, words_for
from bevcask.data.index.frames import Frames
from bevcask.detectors import find_detector
from bevcask.methods import build_method
from bevcask.stages import student_distill, teacher_extract
from bevcask.training.module import Distillation
from bevcask.training.order import training_order
from bevcask.training.teaching import open_teaching
from bevcask.verbs import DistillConfig, ExtractConfig

SMALL = [
    "dataset=synthetic",
    "dataset.split=synthetic_train",
    "method=distillbev",
    "seed=3",
    "device=cpu",
    "loader.num_workers=0",
    "loader.batch_size=3",
    *(
        f"{role}.detector.{key}"
        for role in ("teacher", "student")
        for key in (
            "pillar=0.8",
            "num_sweeps=1",
            "pillar_channels=8",
            "channels=[8,12,16]",
            "convs=[1,1,1]",
            "strides=[1,2,2]",
            "neck_channels=[8,8,8]",
            "head.channels=8",
        )
    ),
    "teacher=centerpoint_tiny",
    "student=centerpoint_tiny",
    "trainer=tiny",
]
FLIPS = ["augment.bev_flip_x=true", "augment.bev_flip_y=true"]
ONLINE = ["targets=online", "online.input=canonical"]


def configure(world: Path, *more: str, verb: type[Any] = DistillConfig) -> Any:
    return compose(verb, words_for(verb, [*SMALL, f"dataset.root={world}", *more]))


@pytest.fixture(scope="module", params=["float32", "auto"])
def cache(
    request: pytest.FixtureRequest, tiny_world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """URL and codec."""
    url = str(tmp_path_factory.mktemp("codec") / f"{request.param}.zarr")
    teacher_extract.run(
        configure(tiny_world, f"cache={url}", f"store.codec={request.param}", verb=ExtractConfig)
    )
    return url, request.param


def gradients(
    config: DistillConfig, only: str = "", step: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the loss terms of a step whose names start with `only`, and their gradients.

    Gradients are those of every student parameter the terms reach, by name.
    """
    torch.manual_seed(11)
    plugin, own = find_detector(config.student.detector, "student.detector")
    method = build_method(config.method)
    teaching = open_teaching(config, method, Frames.select(config.dataset), torch.device("cpu"))
    torch.manual_seed(12)
    method.build(plugin.describe_taps(own), teaching.specs)
    student = plugin(own)
    module = Distillation(student, method, teaching.source, config.trainer, {})
    order = training_order(config, teaching, plugin.inputs(own))
    reading = student_distill.training_batches(config, teaching, order)
    loaded = next(iter(reading(step)))
    every = module.losses(*module.transfer_batch_to_device(loaded, torch.device("cpu"), 0))
    terms = {name: term for name, term in every.items() if name.startswith(only)}
    torch.stack(list(terms.values())).sum().backward()
    found = {n: p.grad for n, p in module.student.named_parameters() if p.grad is not None}
    return {name: term.detach() for name, term in terms.items()}, found


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest relative difference, tensor by tensor."""
    assert one.keys() == other.keys()
    return max(
        float((one[name] - other[name]).norm() / other[name].norm().clamp(min=1e-12))
        for name in one
    )


def whole_gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the relative difference of everything as one vector."""
    flat, rest = (torch.cat([t.flatten() for t in group.values()]) for group in (one, other))
    return float((flat - rest).norm() / rest.norm())


@pytest.mark.parametrize("augment", [[], FLIPS], ids=["clean", "flips"])
def test_cached_equals_online(augment: list[str], cache: tuple[str, str], tiny_world: Path) -> None:
    url, codec = cache
    cached = gradients(configure(tiny_world, f"cache={url}", f"store.codec={codec}", *augment))
    online = gradients(configure(tiny_world, f"store.codec={codec}", *ONLINE, *augment))
    assert any(name.startswith("distillbev/") for name in cached[0])
    assert gap(cached[0], online[0]) < 1e-6
    assert gap(cached[1], online[1]) < 1e-6


@pytest.mark.slow
def test_windows_of_a_teacher_that_remembers_are_the_same_cached_and_online(
    tiny_world: Path, tmp_path: Path
) -> None:
    named = "teacher.detector.type=detectors.remembering:Remembering"
    words = [named, "trust_code=true", "teacher.memory=window", "store.codec=float32"]
    url = f"cache={tmp_path / 'window.zarr'}"
    teacher_extract.run(
        configure(tiny_world, *words, url, "loader.batch_size=2", verb=ExtractConfig)
    )
    cached = gradients(configure(tiny_world, url, *words, *FLIPS))
    online = gradients(configure(tiny_world, *words, *ONLINE, *FLIPS))
    assert any(name.startswith("distillbev/") for name in cached[0])
    assert gap(cached[0], online[0]) < 1e-6
    assert gap(cached[1], online[1]) < 1e-6
    shorter = gradients(configure(tiny_world, *words, *ONLINE, *FLIPS, "teacher.history=1"))
    assert gap(shorter[0], online[0]) > 1e-6


def test_quantised_targets_stay_near_the_exact_ones(
    cache: tuple[str, str], tiny_world: Path
) -> None:
    url, codec = cache
    cached = gradients(configure(tiny_world, f"cache={url}"), "distillbev/")
    exact = gradients(configure(tiny_world, "store.codec=float32", *ONLINE), "distillbev/")
    losses, slopes = whole_gap(cached[0], exact[0]), whole_gap(cached[1], exact[1])
    say(f"{codec} against float32 online: loss {losses:.1e}, gradient {slopes:.1e}")
    assert losses < 1e-3
    assert slopes < 1e-2


TRAINED = [
    "dataset=synthetic",
    "dataset.split=synthetic_val",
    "method=distillbev",
    "seed=3",
    "device=cpu",
    "loader.num_workers=0",
    "loader.batch_size=2",
    "teacher=centerpoint_tiny",
    "teacher.checkpoint=catalog:centerpoint_tiny_synthetic",
    "student=bevdepth_tiny",
    "student.checkpoint=catalog:bevdepth_tiny_start",
    "trainer=tiny",
]


@pytest.mark.slow
def test_uint8_targets_of_the_trained_teacher(tiny_world: Path, tmp_path: Path) -> None:
    here = [*TRAINED, f"dataset.root={tiny_world}"]
    url = f"cache={tmp_path / 'trained.zarr'}"
    teacher_extract.run(compose(ExtractConfig, words_for(ExtractConfig, [*here, url])))
    online = [*here, "store.codec=float32", "targets=online", *FLIPS]
    stored = gradients(compose(DistillConfig, [*here, url, *FLIPS]))
    exact = gradients(compose(DistillConfig, [*online, "online.input=canonical"]))
    augmented = gradients(compose(DistillConfig, [*online, "online.input=augmented"]))
    losses, slopes = whole_gap(stored[0], exact[0]), whole_gap(stored[1], exact[1])
    say(f"trained teacher, uint8: loss {losses:.1e}, gradient {slopes:.1e}")
    far = whole_gap(exact[0], augmented[0]), whole_gap(exact[1], augmented[1])
    say(f"trained teacher, canonical against augmented: loss {far[0]:.1e}, gradient {far[1]:.1e}")
    assert losses < 1e-3
    assert slopes < 1e-2


def test_the_published_input_differs_and_the_gap_is_printed(tiny_world: Path) -> None:
    words = ("store.codec=float32", "targets=online", *FLIPS)
    canonical = configure(tiny_world, *words, "online.input=canonical")
    augmented = configure(tiny_world, *words, "online.input=augmented")
    ours, theirs = (gradients(one, "distillbev/") for one in (canonical, augmented))
    losses, slopes = whole_gap(ours[0], theirs[0]), whole_gap(ours[1], theirs[1])
    say(f"canonical against augmented: loss {losses:.1e}, gradient {slopes:.1e}")
    assert losses > 1e-4  # T(flip x) is not flip T(x) for a network that was never told so
    detection = [gradients(one, "detection/")[0] for one in (canonical, augmented)]
    assert gap(*detection) < 1e-6


SIZES = (
    "half_extent=25.6",
    "image_size_HW=[64,96]",
    "image_channels=16",
    "decoder_channels=[8,12,16]",
)
EXACT, VIEWS = "store.codec=float32", "store.views=2"
FUSION = [
    "dataset=synthetic",
    "dataset.split=synthetic_train",
    "method=simdistill",
    "seed=3",
    "device=cpu",
    "loader.num_workers=0",
    "loader.batch_size=3",
    *(f"{role}.detector.{size}" for role in ("teacher", "student") for size in SIZES),
    "teacher=bevfusion_tiny",
    "student=bevsimdet_tiny",
    "trainer=tiny",
]
IMAGES = ["augment.resize=[-0.02,0.04]", "augment.crop=true", "augment.image_flip=true"]
TURNS = ["augment.bev_rotation=0.3", "augment.bev_scale=[0.95,1.05]", *FLIPS]


def fused(world: Path, *more: str, verb: type[Any] = DistillConfig) -> Any:
    return compose(verb, words_for(verb, [*FUSION, f"dataset.root={world}", *more]))


@pytest.fixture(scope="module")
def fusion_caches(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The words that name a canonical cache and one of two views, both float32."""
    folder = tmp_path_factory.mktemp("fusion")
    once, views = f"cache={folder / 'once.zarr'}", f"cache={folder / 'views.zarr'}"
    teacher_extract.run(fused(tiny_world, EXACT, once, verb=ExtractConfig))
    teacher_extract.run(fused(tiny_world, EXACT, views, VIEWS, *IMAGES, verb=ExtractConfig))
    return once, views


@pytest.mark.parametrize(
    ("augment", "replayed"),
    [
        pytest.param([], False, id="clean", marks=pytest.mark.slow),
        pytest.param(FLIPS, False, id="flips", marks=pytest.mark.slow),
        pytest.param(TURNS, False, id="turns"),
        pytest.param([*IMAGES, *FLIPS], True, id="views", marks=pytest.mark.slow),
    ],
)
def test_simdistill_cached_equals_online(
    augment: list[str], replayed: bool, fusion_caches: tuple[str, str], tiny_world: Path
) -> None:
    cached = gradients(fused(tiny_world, EXACT, fusion_caches[replayed], *augment))
    viewed = [VIEWS] if replayed else []
    online = gradients(fused(tiny_world, EXACT, *augment, *ONLINE, *viewed))
    terms = [float(loss) for name, loss in cached[0].items() if name.startswith("simdistill/")]
    assert len(terms) == 5
    assert min(terms) > 0
    assert gap(cached[0], online[0]) < 1e-6
    assert gap(cached[1], online[1]) < 1e-6


@pytest.mark.slow
def test_simdistill_quantised_targets_stay_near_the_exact_ones(
    tiny_world: Path, tmp_path: Path
) -> None:
    url = f"cache={tmp_path / 'auto.zarr'}"
    teacher_extract.run(fused(tiny_world, url, verb=ExtractConfig))
    cached = gradients(fused(tiny_world, url), "simdistill/")
    exact = gradients(fused(tiny_world, EXACT, *ONLINE), "simdistill/")
    for name, loss in exact[0].items():
        say(f"{name}: {loss:.4g}, changes by {float(cached[0][name] / loss - 1):.1e}")
    losses, slopes = whole_gap(cached[0], exact[0]), whole_gap(cached[1], exact[1])
    say(f"simdistill, default codecs against float32: loss {losses:.1e}, gradient {slopes:.1e}")
    assert losses < 1e-3
    assert slopes < 1e-2


def say(measured: str) -> None:
    """Show a measured number; `pytest -s` prints it."""
    sys.stdout.write(f"\n{measured}\n")

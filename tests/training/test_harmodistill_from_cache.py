"""A RayDN or StreamPETR teaches a smaller one: what is cached is what a teacher in the loop says.

Image levels of replayed views, which need no memory, at twice the student's image size; and every
term without augmentation, of frames that have their scene behind them.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.cache import open_cache
from bevcask.cache.reader import Cache
from bevcask.compose import compose, words_for
from bevcask.data.index.frames import Frames
from bevcask.data.join import TrainBatch
from bevcask.data.samples import Key, SampleReader, collate
from bevcask.errors import ConfigError
from bevcask.methods.base import Target
from bevcask.stages import plan, teacher_extract, verify
from bevcask.targets.spec import view_key
from bevcask.teachers.native import NativeTeacher
from bevcask.training.sources import CachedTargets
from bevcask.verbs import DistillConfig, ExtractConfig, PlanConfig, VerifyConfig
from training.test_cached_equals_online import ONLINE, gap, gradients, say, whole_gap

SHARED = (
    "backbone.width=4",
    "channels=32",
    "heads=2",
    "feed_forward=16",
    "layers=2",
    "queries=12",
    "propagated=4",
    "kept=6",
    "memory=8",
)
OWN = {
    "raydn": ("groups=2", "points=3", "image_channels=8"),
    "streampetr": ("depth_bins=31",),
}
METHODS = {"raydn": "harmodistill", "streampetr": "harmodistill_streampetr"}
SMALL = [
    "dataset=synthetic",
    "dataset.split=synthetic_train",
    "seed=3",
    "device=cpu",
    "loader.num_workers=0",
    "loader.batch_size=1",
    "trainer=tiny",
    "store.shard_rows=2",
]
IMAGES = (
    "augment.resize=[-0.02,0.04]",
    "augment.crop=true",
    "augment.image_flip=true",
    "augment.photometric=true",
    "augment.grid_mask=0.7",
    "augment.image_size_HW=[40,72]",
)
TURNS = ("augment.bev_rotation=0.3", "augment.bev_scale=[0.95,1.05]")
VIEWS, EXACT = "store.views=2", "store.codec=float32"
BOTH_WAYS = ("method.schedule=false", "method.modulated=0.1")
EVERY = (*BOTH_WAYS, "method.response=0.1", "method.local=0.1", "method.denoising=true")
TAUGHT = "harmodistill/"
THIRD = 2  # step of the third frame of a scene: all of it lies in a window of two


def configure(world: Path, kind: str, *more: str, verb: type[Any] = DistillConfig) -> Any:
    words = [
        *SMALL,
        f"dataset.root={world}",
        f"method={METHODS[kind]}",
        "method.layers=2",
        f"teacher={kind}_tiny",
        f"student={kind}_tiny",
        *(f"{who}.detector.{key}" for who in ("teacher", "student") for key in SHARED + OWN[kind]),
        "teacher.detector.image_size_HW=[80,144]",
        "student.detector.image_size_HW=[40,72]",
    ]
    return compose(verb, words_for(verb, [*words, *more]))


def extracted(world: Path, kind: str, url: Path, *more: str) -> str:
    teacher_extract.run(configure(world, kind, f"cache={url}", *more, verb=ExtractConfig))
    return f"cache={url}"


@pytest.fixture(scope="module", params=METHODS)
def viewed(
    request: pytest.FixtureRequest, tiny_world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """Kind of both detectors, and the word that names a cache of two views."""
    kind = str(request.param)
    url = tmp_path_factory.mktemp("views") / "cache.zarr"
    return kind, extracted(tiny_world, kind, url, EXACT, VIEWS, *IMAGES, *BOTH_WAYS)


def test_image_levels_of_each_view(viewed: tuple[str, str], tiny_world: Path) -> None:
    """The teacher remembers; what is asked of it does not, so it is asked in the loop as well."""
    kind, cache = viewed
    words = (EXACT, *IMAGES, *TURNS, *BOTH_WAYS)
    loop = configure(tiny_world, kind, *words, *ONLINE, VIEWS)
    cached = configure(tiny_world, kind, *words, cache)
    found, exact = gradients(cached), gradients(loop)
    terms = [own for name, own in found[0].items() if name.startswith(TAUGHT)]
    assert len(terms) == (8 if kind == "raydn" else 2)
    assert min(terms) > 0
    assert gap(found[0], exact[0]) < 1e-6
    assert gap(found[1], exact[1]) < 1e-6


def test_the_teacher_agrees_with_every_view_of_its_levels(
    viewed: tuple[str, str], tiny_world: Path
) -> None:
    """Boxes depend on the scene before, so it is not asked for them frame by frame."""
    kind, cache = viewed
    words = (EXACT, cache, "resample=1")
    found = verify.run(configure(tiny_world, kind, *words, verb=VerifyConfig))
    assert found["ok"], found["problems"]
    stored = open_cache(cache.partition("=")[2]).specs
    assert stored["head.boxes"].tap.context == "scene"
    assert found["resample"].keys() == stored.keys() - {"head.boxes"}


def test_a_window_is_shown_where_it_changes_something(tiny_world: Path) -> None:
    """Image levels take one pass a frame, states of queries one for each frame of the window."""
    window = ("teacher.memory=window", "teacher.history=2")
    config = configure(tiny_world, "raydn", *window)
    teacher = NativeTeacher(config.teacher, 3)
    reader = SampleReader(Frames.select(config.dataset), teacher.reads(), None, 3)
    batch, passes = collate([reader.at(Key(2), reader.frames)]), list[int]()
    assert len(batch.history) == 2
    teacher.detector.register_forward_hook(lambda *_: passes.append(1))
    for names, expected in ((["image.level0"], 1), (["image.level0", "query.last"], 3)):
        passes.clear()
        teacher(batch, names)
        assert len(passes) == expected


QUERIES = ("method.balanced=0", "method.local=0.1")


def test_what_needs_memory_is_refused_where_there_is_none(tiny_world: Path, tmp_path: Path) -> None:
    taps = "query.states, query.references, query.offsets"
    with pytest.raises(ConfigError, match=f"store.views=2: .* and {taps}.* depends on memory"):
        extracted(tiny_world, "raydn", tmp_path / "c.zarr", VIEWS, *IMAGES, *QUERIES)
    with pytest.raises(ConfigError, match=f"targets=online: .* but {taps}.* depends on memory"):
        gradients(configure(tiny_world, "raydn", *QUERIES, *ONLINE))


def test_what_needs_memory_is_stored_once_beside_views(
    tiny_world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = tmp_path / "c.zarr"
    words = (EXACT, *IMAGES, "method.local=0.1", "dataset.limit=1")
    cache = extracted(tiny_world, "raydn", url, VIEWS, *words)
    assert "query.states, query.references, query.offsets" in caplog.text
    stored = open_cache(str(url)).specs
    assert {"image.level0.view1", "image.level0.view2", "query.states"} <= stored.keys()
    assert "image.level0" not in stored
    caplog.clear()
    gradients(configure(tiny_world, "raydn", *words, cache))
    assert "approximate under this augmentation: query.offsets, query.ref" in caplog.text


def other_view(cache: Cache, name: str, token: str, view: int) -> Tensor:
    return stored(cache, name, token, 3 - view)


def a_frame_late(cache: Cache, name: str, token: str, view: int) -> Tensor:
    tokens = list(cache.frames.tokens)
    return stored(cache, name, tokens[tokens.index(token) - 1], view)


def flipped(cache: Cache, name: str, token: str, view: int) -> Tensor:
    return stored(cache, name, token, view).flip(-1)


def stored(cache: Cache, name: str, token: str, view: int) -> Tensor:
    key = view_key(name, view)
    return torch.from_numpy(cache.read(token, [key])[key].floats())[None]


@pytest.mark.parametrize("wrong", [other_view, a_frame_late, flipped])
def test_levels_of_something_else_are_noticed(
    wrong: Callable[[Cache, str, str, int], Tensor],
    viewed: tuple[str, str],
    tiny_world: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What must not pass for equal is apart by more than ten times what is called equal."""
    kind, cache = viewed
    opened = open_cache(cache.partition("=")[2])
    config = configure(tiny_world, kind, EXACT, *IMAGES, *BOTH_WAYS, cache)
    right = gradients(config, TAUGHT)
    given = CachedTargets.__call__

    def otherwise(source: CachedTargets, batch: TrainBatch) -> dict[str, Target]:
        targets, (token,) = given(source, batch), batch.batch.tokens
        name, own = next(iter(targets.items()))
        shown = [torch.equal(own.values, stored(opened, name, token, view)) for view in (1, 2)]
        assert sum(shown) == 1
        view = 1 + shown.index(True)
        return {
            name: replace(own, values=wrong(opened, name, token, view))
            for name, own in targets.items()
        }

    monkeypatch.setattr(CachedTargets, "__call__", otherwise)
    changed = gradients(config, TAUGHT)
    assert all(apart(changed[0], right[0]).values())
    assert whole_gap(changed[1], right[1]) > 1e-5


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, bool]:
    return {name: gap({name: one[name]}, {name: other[name]}) > 1e-5 for name in one}


def looped(world: Path, *more: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return losses and gradients of a RayDN taught in the loop, shown windows."""
    words = (EXACT, *EVERY, *ONLINE, "teacher.memory=window")
    return gradients(configure(world, "raydn", *words, *more), step=THIRD)


def test_every_term_of_a_scene_shown_in_order(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window of two begins with the scene of the third frame, so it says what the scene says."""
    url = tmp_path / "scenes.zarr"
    cache = extracted(tiny_world, "raydn", url, EXACT, *EVERY)
    opened = open_cache(str(url))
    assert opened.fingerprint["memory"] == {"policy": "scene"}
    config = configure(tiny_world, "raydn", EXACT, *EVERY, cache)
    cached, exact = gradients(config, step=THIRD), looped(tiny_world, "teacher.history=2")
    taught = {name.rpartition("/")[2] for name in cached[0] if name.startswith(TAUGHT)}
    assert taught == {"balanced", "modulated", "response", "local"}
    assert gap(cached[0], exact[0]) < 1e-6
    assert gap(cached[1], exact[1]) < 1e-6

    given = CachedTargets.__call__

    def late(source: CachedTargets, batch: TrainBatch) -> dict[str, Target]:
        """Say of every tap what was said a frame before."""
        targets, (token,) = given(source, batch), batch.batch.tokens
        before = opened.frames.tokens[list(opened.frames.tokens).index(token) - 1]
        return {
            name: replace(own, values=stored(opened, name, before, 0))
            for name, own in targets.items()
        }

    monkeypatch.setattr(CachedTargets, "__call__", late)
    changed = gradients(config, step=THIRD)
    told = {name for name, moved in apart(changed[0], exact[0]).items() if moved}
    matched = {name for name in exact[0] if name.startswith("detection/denoising/")}
    assert told == matched | {name for name in exact[0] if name.startswith(TAUGHT)}


@pytest.mark.slow
def test_a_window_without_all_of_the_scene_says_something_else(tiny_world: Path) -> None:
    whole, half = (looped(tiny_world, f"teacher.history={n}") for n in (2, 1))
    told = {name for name, moved in apart(half[0], whole[0]).items() if moved}
    levels = ("balanced", "modulated")  # of one frame
    for name in whole[0]:
        if name.startswith(TAUGHT):
            assert (name in told) != name.endswith(levels), name


@pytest.mark.slow
def test_levels_are_probed_without_memory_and_queries_are_not(tiny_world: Path) -> None:
    def probed(*more: str) -> dict[str, Any]:
        return plan.run(configure(tiny_world, "raydn", "probe=1", *more, verb=PlanConfig))

    rows = {row["name"]: row for row in probed()["probe"]}
    assert rows["float32"]["gradient"] == 0 < rows["float16"]["gradient"] < 1e-2
    with pytest.raises(ConfigError, match="this one remembers whole scenes"):
        probed("method.local=0.1")


CODECS = {"float16": (1e-3, 5e-3), "int8": (3e-3, 5e-3)}


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_codecs_change_little(codec: str, tiny_world: Path, tmp_path: Path) -> None:
    """Every term, of the third frame; printed by `pytest -m slow -s`."""
    words = (f"store.codec={codec}", *EVERY)
    cache = extracted(tiny_world, "raydn", tmp_path / "cache.zarr", *words)
    cached = gradients(configure(tiny_world, "raydn", *words, cache), TAUGHT, THIRD)
    words = (EXACT, *EVERY, *ONLINE, "teacher.memory=window", "teacher.history=2")
    exact = gradients(configure(tiny_world, "raydn", *words), TAUGHT, THIRD)
    for name, own in exact[0].items():
        say(f"{codec} {name}: {own:.4g}, changes by {float(cached[0][name] / own - 1):.1e}")
    loss, slope = gap(cached[0], exact[0]), whole_gap(cached[1], exact[1])
    say(f"harmodistill, {codec}: worst term {loss:.1e}, gradient {slope:.1e}")
    assert loss < CODECS[codec][0]
    assert slope < CODECS[codec][1]

"""on_missing=generate: a teacher here says what a cache lacks, once, as an extraction would."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bevcask.cache.reader import open_cache
from bevcask.cache.verify_bytes import verify
from bevcask.stages import generate
from bevcask.teachers.native import NativeTeacher
from cache.test_writer import different_files
from small_student import STUDENT

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens of the frames that the teacher is shown."""
    tokens: list[str] = []
    real = NativeTeacher.targets

    def noted(self: NativeTeacher, batch: object, names: object) -> object:
        tokens.extend(batch.tokens)  # type: ignore[attr-defined]
        return real(self, batch, names)  # type: ignore[arg-type]

    monkeypatch.setattr(NativeTeacher, "targets", noted)
    return tokens


def distil(
    call: Call, cache: Path, teacher_words: list[str], run: Path, *more: str
) -> tuple[list[str], str]:
    """Return the losses of four epochs, and what was logged."""
    code, _, err = call(
        "student-distill",
        cache,
        *STUDENT,
        *(word for word in teacher_words if word.startswith(("teacher", "dataset"))),
        "dataset.split=synthetic_train",
        "method=distillbev",
        f"run={run}",
        "trainer.max_steps=6",
        "trainer.log_every=1",
        *more,
    )
    assert code == 0, err
    with (run / "logs" / "csv" / "sitting_0" / "metrics.csv").open() as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]], err


@pytest.mark.slow
def test_what_is_generated_is_what_is_extracted(
    teacher_words: list[str], call: Call, tmp_path: Path, asked: list[str]
) -> None:
    extracted, url = tmp_path / "extracted.zarr", tmp_path / "generated.zarr"
    split = ["dataset.split=synthetic_train", "store.shard_rows=8"]
    code, _, err = call("teacher-extract", extracted, *teacher_words, *split)
    assert code == 0, err
    expected, _ = distil(call, extracted, teacher_words, tmp_path / "from_extracted")
    assert len(expected) == 6
    asked.clear()

    losses, _ = distil(call, url, teacher_words, tmp_path / "first", "on_missing=generate")
    assert len(asked) == len(set(asked)) == 3
    assert losses == expected
    assert different_files(extracted, url) == []
    assert verify(str(url)).ok
    assert (tmp_path / "generated.head.safetensors").exists()

    asked.clear()
    losses, _ = distil(call, url, teacher_words, tmp_path / "second", "on_missing=generate")
    assert losses == expected
    assert asked == []


@pytest.fixture(scope="module")
def begun(teacher_words: list[str], call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first quarter of `cached_world`."""
    url = tmp_path_factory.mktemp("begun") / "begun.zarr"
    code, _, err = call("teacher-extract", url, *teacher_words, "store.shard_rows=2", "part=1/4")
    assert code == 0, err
    return url


def test_only_what_an_extraction_left_is_generated(
    begun: Path,
    cached_world: Path,
    teacher_words: list[str],
    call: Call,
    tmp_path: Path,
    asked: list[str],
) -> None:
    """The cache of a larger selection: a part of it was extracted, training wants another."""
    url = Path(shutil.copytree(begun, tmp_path / "begun.zarr"))
    before = open_cache(str(url), allow_unsealed=True)
    done = before.committed
    extracted = {token for shard in done for token in before.layout.tokens_of(shard)}
    more = ("on_missing=generate", "trainer.max_steps=2", "trainer.warmup_steps=1")
    distil(call, url, teacher_words, tmp_path / "run", *more)
    cache = open_cache(str(url), allow_unsealed=True)
    assert not cache.sealed
    assert cache.committed > done > frozenset()
    assert asked
    assert not set(asked) & extracted
    theirs = open_cache(str(cached_world))
    for shard in cache.committed:
        assert cache.commit[shard] == theirs.commit[shard]


@pytest.mark.slow
def test_workers_read_what_is_generated(
    teacher_words: list[str], call: Call, tmp_path: Path, asked: list[str]
) -> None:
    here, there = tmp_path / "here.zarr", tmp_path / "there.zarr"
    more = ("on_missing=generate", "trainer.max_steps=12")
    expected, _ = distil(call, here, teacher_words, tmp_path / "a", *more)
    losses, _ = distil(call, there, teacher_words, tmp_path / "b", *more, "loader.num_workers=2")
    assert losses == expected
    assert different_files(here, there) == []
    assert len(asked) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["targets=online"], "leave targets=online out"),
        (["cache=a.zarr,b.zarr"], "to one cache"),
        (["cache=new.zarr", "store.views=2"], "store.views"),
        (["cache=new.zarr", "dry_run=true"], "it begins the cache"),
        (["cache=new.zarr", "teacher.checkpoint=nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_generated_is_refused(
    teacher_words: list[str],
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [word for word in teacher_words if word.startswith(("teacher", "dataset"))]
    more = ["dataset.split=synthetic_train", "method=distillbev", "on_missing=generate"]
    code, _, err = call("student-distill", *STUDENT, *given, *more, "run=run", *words)
    assert code == 2
    assert said in " ".join(err.split())
    assert not (tmp_path / "new.zarr").exists()


def test_another_teacher_is_refused(
    begun: Path, teacher_words: list[str], call: Call, tmp_path: Path
) -> None:
    given = [word for word in teacher_words if word.startswith(("teacher=", "dataset"))]
    more = ["dataset.split=synthetic_train", "method=distillbev", "on_missing=generate"]
    code, _, err = call("student-distill", begun, *STUDENT, *given, *more, f"run={tmp_path / 'r'}")
    assert code == 2
    assert "teacher.weights" in err


def test_a_sealed_cache_is_left_as_it_is(
    cached_world: Path, teacher_words: list[str], call: Call, tmp_path: Path
) -> None:
    """Also where the method reads what it lacks: adding targets is an extraction's."""
    url = Path(shutil.copytree(cached_world, tmp_path / "sealed.zarr"))
    given = [word for word in teacher_words if word.startswith(("teacher", "dataset"))]
    more = ["dataset.split=synthetic_train", "method=simdistill", "on_missing=generate"]
    code, _, err = call("student-distill", url, *STUDENT, *given, *more, f"run={tmp_path / 'r'}")
    assert code == 2, err
    assert not (url / "addition").exists()
    assert different_files(cached_world, url) == []


def test_a_scene_is_generated_whole_for_a_teacher_that_remembers_it(
    cached_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(str(cached_world))  # two scenes of two shards
    filled: list[range] = []
    monkeypatch.setattr(generate, "fill", lambda job, shards, *_, **__: filled.append(shards))
    begun = SimpleNamespace(cache=SimpleNamespace(layout=cache.layout, committed={0, 1, 2}))
    job: Any = SimpleNamespace(begun=begun, whole_scenes=True)
    generator = generate.Generator(job)
    generator.require({0, 1})
    assert filled == []
    generator.require({1, 3})
    generator.require({2, 3})
    assert filled == [range(2, 4)]
    assert generator.generated == 1

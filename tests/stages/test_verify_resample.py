"""verify resample=N: the teacher's noise, another device or precision, and damage, told apart."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bevcask.cache import Cache, Encoded, open_cache
from bevcask.teachers import native
from cache.example import rewrite, rows_in

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def words(tiny_world: Path, checkpoint: Path) -> list[str]:
    teacher = ["teacher=centerpoint_tiny", f"teacher.checkpoint={checkpoint}"]
    return [*teacher, f"dataset.root={tiny_world}", "device=cpu"]


@pytest.fixture(params=["auto", "float32"])
def elsewhere(
    request: pytest.FixtureRequest,
    words: list[str],
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A cache of a teacher that reckoned with fewer digits, as on another device, unsaid."""
    url = tmp_path / "cache.zarr"
    split = ["dataset=synthetic", "dataset.split=synthetic_train", "method=distillbev_tiny"]
    stored = [f"store.codec={request.param}", "store.shard_rows=2", "loader.num_workers=0"]

    def half(precision: str, device: str) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    with monkeypatch.context() as patch:
        patch.setattr(native, "half_precision", half)
        code, _, err = call("teacher-extract", url, *words, *split, *stored)
    assert code == 0, err
    return url


def asked(call: Call, url: Path, words: list[str], code: int, *more: str) -> dict[str, Any]:
    answer = call("verify", url, "resample=1", *words, *more, "--json")
    assert answer[0] == code, answer[1] + answer[2]
    found: dict[str, Any] = json.loads(answer[1])
    return found


def changed(cache: Cache, url: Path, target: str) -> Path:
    """Write the cache again with the largest value of a target gone in every frame."""

    def rows_of(shard: int) -> list[dict[str, Encoded[Any]]]:
        rows = rows_in(cache, shard)
        for row in rows:
            values = row[target].values.copy()
            values[np.unravel_index(np.abs(values).argmax(), values.shape)] = 0
            row[target] = replace(row[target], values=values)
        return rows

    return rewrite(cache, url, rows_of)


def test_another_precision_is_no_damage_and_a_changed_value_is(
    elsewhere: Path, words: list[str], call: Call, tmp_path: Path
) -> None:
    found = asked(call, elsewhere, words, 0)
    verdicts = {name: own["verdict"] for name, own in found["resample"].items()}
    assert verdicts["bev.neck"] == "elsewhere"
    assert "damage" not in verdicts.values()
    (note,) = (note for note in found["notes"] if note.startswith("bev.neck: off by up to"))
    assert "a little everywhere: arithmetic of another device" in note
    assert "Made on cpu, asked on cpu" in note
    url = changed(open_cache(str(elsewhere)), tmp_path / "changed.zarr", "bev.neck")
    found = asked(call, url, words, 1)
    assert found["resample"]["bev.neck"]["verdict"] == "damage"
    assert {problem["target"] for problem in found["problems"]} == {"bev.neck"}


def test_a_changed_value_is_damage_where_arithmetic_is_the_same(
    cached_world: Path, words: list[str], call: Call, tmp_path: Path
) -> None:
    url = changed(open_cache(str(cached_world)), tmp_path / "changed.zarr", "bev.neck")
    assert asked(call, url, words, 1)["resample"]["bev.neck"]["verdict"] == "damage"


def test_a_teacher_that_never_says_the_same_is_noisy(
    cached_world: Path, words: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that it says is shifted a little, anew each time."""
    torch.manual_seed(0)

    def shaken(self: Any, batch: Any, names: Any) -> Any:
        said = plain(self, batch, names)
        factor = 1 + 0.02 * torch.randn(())
        return {n: v if n.endswith("count") else v * factor for n, v in said.items()}

    plain = native.NativeTeacher.__call__
    monkeypatch.setattr(native.NativeTeacher, "__call__", shaken)
    found = asked(call, cached_world, words, 0)
    neck = found["resample"]["bev.neck"]
    assert neck["noise"] > 1
    assert neck["verdict"] == "noise"
    assert any("the teacher's own noise" in note for note in found["notes"])


def test_a_precision_that_is_said_makes_another_cache(
    cached_world: Path, words: list[str], call: Call, tmp_path: Path
) -> None:
    code, _, err = call("verify", cached_world, "resample=1", *words, "teacher.precision=bf16")
    assert code == 2
    assert "teacher.reckoning.precision" in err
    code, _, err = call("verify", cached_world, "resample=1", *words, "teacher.precision=tf32")
    assert code == 2
    assert "has none" in err or "teacher.reckoning.precision" in err

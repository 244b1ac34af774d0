"""verify from the command line: exit codes, the repair list, what each depth finds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def own_cache(cached_world: Path, tmp_path: Path) -> Path:
    """A copy of the cache that a test may damage."""
    return Path(shutil.copytree(cached_world, tmp_path / "own.zarr"))


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def result(answer: tuple[int, str, str], code: int) -> dict[str, Any]:
    assert answer[0] == code, answer[2]
    found: dict[str, Any] = json.loads(answer[1])
    return found


def test_damage_goes_to_the_repair_list(own_cache: Path, tmp_path: Path, call: Call) -> None:
    flip(own_cache / "targets/bev.neck/values/c.1.0.0.0")
    flip(next(own_cache.glob("commit/*/c.0.0.0")))
    (own_cache / "notes.txt").write_text("mine")
    mend = tmp_path / "lists" / "mend.jsonl"
    found = result(call("verify", own_cache, f"repair={mend}", "--json"), 1)
    lines = [json.loads(line) for line in mend.read_text().splitlines()]
    assert all(set(line) == {"shard", "target", "token", "problem"} for line in lines)
    assert {(line["shard"], line["target"]) for line in lines if line["shard"] == 1} == {
        (1, "bev.neck")
    }
    assert {line["target"] for line in lines if line["shard"] == 0} >= {"bev.neck", "head.boxes"}
    assert found["repair"]["lines"] == len(lines)
    assert found["repair"]["beyond_repair"] == 1
    assert found["ok"] is False


def test_a_sound_cache_gives_an_empty_list_and_exit_0(
    cached_world: Path, tmp_path: Path, call: Call
) -> None:
    mend = tmp_path / "mend.jsonl"
    assert result(call("verify", cached_world, f"repair={mend}", "--json"), 0)["problems"] == []
    assert mend.read_text() == ""
    code, out, _ = call("verify", cached_world)
    assert code == 0
    assert "ok" in out


def test_the_table_names_shard_and_target(own_cache: Path, call: Call) -> None:
    flip(own_cache / "targets/bev.neck/values/c.1.0.0.0")
    code, out, _ = call("verify", own_cache)
    assert code == 1
    assert "DAMAGED" in out
    assert "bev.neck" in out

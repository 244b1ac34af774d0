"""verify from the command line: exit codes, the repair list, what each depth finds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bevcask.cache import open_cache
from cache.example import rewrite, rows_in
from viz.cached import build

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
    flip(next(own_cache.glob("commit/*/c.0.0.0")), 5)
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


TEACHER = ("teacher=centerpoint_tiny", "device=cpu")


def named(world: Path, checkpoint: Path) -> tuple[str, ...]:
    return (*TEACHER, f"teacher.checkpoint={checkpoint}", f"dataset.root={world}")


def change(table: Path, edit: Callable[[list[dict[str, Any]]], None]) -> None:
    records = json.loads(table.read_text())
    edit(records)
    table.write_text(json.dumps(records))


def test_a_sound_cache_means_what_its_dataset_says(
    cached_world: Path, tiny_world: Path, call: Call
) -> None:
    found = result(
        call("verify", cached_world, "check=meaning", f"dataset.root={tiny_world}", "--json"), 0
    )
    assert (found["problems"], found["suspicions"]) == ([], [])
    assert {"bev.neck", "head.heatmap"} <= set(found["statistics"])
    code, out, _ = call("verify", cached_world, "check=meaning", f"dataset.root={tiny_world}")
    assert code == 0
    assert "drift" in out


def test_the_recorded_dataset_is_found(cached_world: Path, call: Call) -> None:
    found = result(call("verify", cached_world, "check=meaning", "--json"), 0)
    assert found["statistics"]["bev.neck"]["max"] > 0
    assert found["meaning"]["frames"] == 6
    assert "not_compared" not in found


def test_what_was_not_compared_does_not_read_as_ok(tmp_path: Path, call: Call) -> None:
    cache = build(tmp_path / "c.zarr")
    code, out, err = call("verify", cache.url, "check=meaning")
    assert code == 0, err
    assert out.startswith("sound, its meaning NOT COMPARED  ")
    assert "dataset.root=FOLDER says where it is" in " ".join(out.split())
    assert call("verify", cache.url, "check=meaning", "dataset.root=gone")[0] == 2


def _calibration(records: list[dict[str, Any]]) -> None:
    for record in records:
        record["translation"][0] += 0.01


def _time(records: list[dict[str, Any]]) -> None:
    records[2]["timestamp"] += 1000


@pytest.mark.parametrize(
    ("table", "edit", "key", "words"),
    [
        ("calibrated_sensor", _calibration, "fingerprint/dataset", "calibration.LIDAR_TOP"),
        ("calibrated_sensor", _calibration, "frames/lidar_to_global", "off the dataset's"),
        ("ego_pose", _calibration, "fingerprint/dataset", "poses.LIDAR_TOP"),
        ("sample", _time, "frames/timestamp", "0.001000 s off"),
    ],
)
def test_a_dataset_that_changed_is_found(
    table: str,
    edit: Callable[[list[dict[str, Any]]], None],
    key: str,
    words: str,
    cached_world: Path,
    own_world: Path,
    call: Call,
) -> None:
    change(own_world / "v1.0-synthetic" / f"{table}.json", edit)
    found = result(
        call("verify", cached_world, "check=meaning", f"dataset.root={own_world}", "--json"), 1
    )
    assert any(p["key"] == key and words in p["what"] for p in found["problems"])


def test_frames_of_another_dataset_are_named(
    cached_world: Path, tmp_path: Path, call: Call
) -> None:
    from bevcask.synthetic import synthesize
    from bevcask.verbs import SynthesizeConfig

    other = tmp_path / "other"
    synthesize(
        SynthesizeConfig(
            out=str(other),
            seed=8,
            num_scenes=1,
            num_keyframes=1,
            val_scenes=0,
            image_width=96,
            image_height=54,
            workers=0,
        )
    )
    found = result(
        call("verify", cached_world, "check=meaning", f"dataset.root={other}", "--json"), 1
    )
    gone = [p for p in found["problems"] if p["key"] == "frames/sample_token"]
    assert len(gone) == 6
    assert all(p["token"] for p in gone)


def test_the_teacher_agrees_with_its_cache(
    cached_world: Path, tiny_world: Path, checkpoint: Path, call: Call
) -> None:
    words = named(tiny_world, checkpoint)
    found = result(call("verify", cached_world, "resample=3", *words, "--json"), 0)
    for name, agreement in found["resample"].items():
        assert agreement["frames"] == 3
        assert agreement["error"] <= 1
        assert agreement["cells_differ"] == 0
        if name.startswith("bev."):
            assert agreement["error"] > 0.5  # 8 bits: some value lies near half a step


def test_shards_that_were_swapped_before_they_were_committed_are_found(
    cached_world: Path, tiny_world: Path, checkpoint: Path, tmp_path: Path, call: Call
) -> None:
    cache = open_cache(str(cached_world))
    assert cache.layout.frames_of(0) == range(2)
    assert cache.layout.frames_of(2) == range(3, 5)
    other = {0: 2, 2: 0}
    swapped = rewrite(
        cache, tmp_path / "swapped.zarr", lambda shard: rows_in(cache, other.get(shard, shard))
    )
    assert result(call("verify", swapped, "check=meaning", "--json"), 0)["problems"] == []
    mend = tmp_path / "mend.jsonl"
    words = (*named(tiny_world, checkpoint), "resample=6", f"repair={mend}")
    found = result(call("verify", swapped, *words, "--json"), 1)
    assert {p["shard"] for p in found["problems"]} == {0, 2}
    assert found["resample"]["bev.neck"]["error"] > 10
    lines = [json.loads(line) for line in mend.read_text().splitlines()]
    assert {line["token"] for line in lines} == {cache.frames.tokens[n] for n in (0, 1, 3, 4)}


def test_another_teacher_is_wrong_input(cached_world: Path, tiny_world: Path, call: Call) -> None:
    words = (*TEACHER, f"dataset.root={tiny_world}", "resample=1")
    code, out, err = call("verify", cached_world, *words, "seed=9")
    assert (code, out) == (2, "")
    assert "teacher.weights" in err


@pytest.mark.parametrize("key", ["resample=1", "equivariance=1"])
def test_a_teacher_must_be_named(key: str, cached_world: Path, call: Call) -> None:
    code, out, err = call("verify", cached_world, key)
    assert (code, out) == (2, "")
    assert "teacher=NAME" in err


def test_damage_is_told_whatever_comes_in_the_way_of_a_deeper_look(
    own_cache: Path, call: Call, tmp_path: Path
) -> None:
    shard = next(path for path in sorted(own_cache.rglob("c*")) if "values" in str(path.parent))
    flip(next(path for path in [shard, *sorted(shard.rglob("*"))] if path.is_file()))
    words = ("verify", own_cache, "check=meaning", "dataset.root=/nowhere", "--json")
    mend = tmp_path / "mend.jsonl"
    found = result(call(*words, f"repair={mend}"), 1)
    assert found["problems"]
    assert "/nowhere" in found["unfinished"]
    assert mend.read_text()
    code, out, _ = call(*words[:-1])
    assert code == 1
    assert "no deeper: " in out


@pytest.mark.slow
def test_the_equivariance_gap_is_a_table_and_never_a_failure(
    cached_world: Path, tiny_world: Path, checkpoint: Path, call: Call
) -> None:
    words = ("verify", cached_world, "equivariance=1", *named(tiny_world, checkpoint))
    found = result(call(*words, "--json"), 0)["equivariance"]
    assert len(found) == 9
    assert found["none"]["bev.neck"]["l2"] < 0.02 < found["flip x"]["bev.neck"]["l2"]
    assert found["none"]["bev.neck"]["cosine"] > 0.9
    code, out, _ = call(*words)
    assert code == 0
    assert "rotate 22.5" in out


def test_metadata_that_cannot_be_opened_is_damage_not_wrong_input(
    own_cache: Path, call: Call
) -> None:
    flip(own_cache / "frames/valid/c.0")
    found = result(call("verify", own_cache, "check=meaning", "--json"), 1)
    assert {p["key"] for p in found["problems"]} >= {"frames/valid/c.0", "zarr.json"}

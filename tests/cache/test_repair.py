"""Writing single shards again: the same bytes, other bytes, and a kill in between."""

import contextlib
import itertools
from pathlib import Path

import pytest

from bevcask.cache import open_cache, verify
from bevcask.cache.files import Files
from bevcask.cache.lease import Lease
from bevcask.cache.reader import Cache
from bevcask.cache.repair import Repairer
from bevcask.errors import CacheCorruptError, CacheIncompleteError
from cache.example import SPECS, begin, build, commit_folder, damage_commit, encoded
from cache.test_begin import cut_off_after
from cache.test_writer import different_files

NAMES = {spec.name for spec in SPECS}


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """A sealed cache that vouches for shard 2's targets in the place of shard 0's."""
    with begin(tmp_path / "wrong") as writer:
        for shard in writer.missing():
            writer.write(shard, encoded(writer, shard or 2))
    writer.seal()
    return tmp_path / "wrong"


def repair(url: Path, wanted: dict[int, set[str]]) -> Repairer:
    with Repairer(
        Cache(str(url), allow_unsealed=True, lenient=True), wanted, {"provenance": {}}
    ) as repairer:
        for shard in repairer.missing():
            repairer.write(shard, encoded(repairer, shard))
    return repairer


def test_other_bytes_are_committed_and_sealed_anew(sealed: str, wrong: Path) -> None:
    assert repair(wrong, {0: NAMES, 1: {"bev.neck"}}).changed == [0]
    assert different_files(Path(sealed), wrong) == []
    assert verify(str(wrong)).ok


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_cut_off_at_any_step_it_is_right_or_unsealed(
    sealed: str, tmp_path: Path, stride: int
) -> None:
    for number in itertools.count(step=stride):
        url = tmp_path / str(number)
        with begin(url) as writer:
            for shard in writer.missing():
                writer.write(shard, encoded(writer, shard or 2))
        writer.seal()
        with pytest.MonkeyPatch.context() as patch:
            changes = cut_off_after(patch, number)
            with contextlib.suppress(KeyboardInterrupt):
                repair(url, {0: NAMES})
        cache = open_cache(str(url), allow_unsealed=True)
        found = {problem.key for problem in verify(str(url)).problems}
        assert found == (set() if cache.sealed else {"zarr.json"})
        build(url)  # the plain command completes what is unsealed
        repair(url, {0: NAMES})
        assert different_files(Path(sealed), url) == []
        if len(changes) < number:
            break
    assert number > 4


def test_a_damaged_commit_takes_every_target(sealed: str, copied: Path) -> None:
    damage_commit(copied, 1)
    assert repair(copied, {1: {"bev.neck"}}).changed == []
    assert different_files(Path(sealed), copied) == []


def test_a_damaged_commit_beside_wrong_ones(sealed: str, wrong: Path) -> None:
    damage_commit(wrong, 2)
    assert repair(wrong, {0: NAMES, 2: NAMES}).changed == [0]
    assert different_files(Path(sealed), wrong) == []
    damage_commit(wrong, 0)
    damage_commit(wrong, 3)
    assert repair(wrong, {3: NAMES, 0: NAMES}).changed == []
    assert different_files(Path(sealed), wrong) == []


@pytest.mark.parametrize("damage", ["index", "gone", "longer"])
def test_what_verify_lists_mends_the_one_commit(sealed: str, copied: Path, damage: str) -> None:
    commit = commit_folder(copied) / "c.0.0.0"
    data = commit.read_bytes()
    commit.write_bytes(data[:-9] + b"?" + data[-8:] if damage == "index" else data + b"?")
    if damage == "gone":
        commit.unlink()
    with pytest.raises(CacheCorruptError):
        open_cache(str(copied))
    listed = {p.shard: NAMES for p in verify(str(copied)).problems if p.shard is not None}
    assert set(listed) == ({0, 1, 2, 3} if damage == "gone" else {3})
    assert repair(copied, listed).changed == []
    assert different_files(Path(sealed), copied) == []


def test_a_silent_target_that_got_a_file_loses_it(sealed: str, copied: Path) -> None:
    extra = copied / "targets/bev.silent/values/c.0.0.0.0"
    extra.write_bytes(b"12")
    repair(copied, {0: {"bev.silent"}})
    assert not extra.exists()
    assert verify(str(copied)).ok


def test_an_unsealed_cache_is_completed_first(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(CacheIncompleteError, match="without repair="):
        Repairer(Cache(str(tmp_path), allow_unsealed=True, lenient=True), {0: NAMES}, {})


HALVES = (
    "targets/bev.neck/values/c.1.0.0.0.abc.partial",
    "boxes/head.boxes/count/c.3.abc.partial",
    "zarr.json.abc.partial",
    "provenance/20260101T000000-abc/zarr.json.abc.partial",
    "commit/{id}/c.0.0.0.abc.partial",
    "commit/{id}.open/c.2.0.0.abc.partial",
)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("command", ["repair", "extract"])
def test_leftovers_of_a_killed_repair_go(
    sealed: str, copied: Path, half: str, command: str
) -> None:
    path = copied / half.format(id=open_cache(sealed).id[:16])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"half")
    if command == "repair":
        repair(copied, {1: {"bev.neck"}})
    else:
        build(copied)
    assert not list(copied.rglob("*.partial"))
    assert verify(str(copied)).ok
    assert different_files(Path(sealed), copied) in ([], ["provenance"])


def test_a_file_that_another_process_writes_is_no_leftover(copied: Path) -> None:
    half = copied / HALVES[0]
    half.write_bytes(b"half")
    with Lease(Files(str(copied)), range(1, 2), "repair"):
        begin(copied)
        assert half.exists()
    begin(copied)
    assert not half.exists()


def test_the_same_repair_goes_on_with_what_it_unsealed(sealed: str, tmp_path: Path) -> None:
    """Whatever of a shard was listed: a commit that is gone vouches for none of its targets."""
    for number in itertools.count():
        url = tmp_path / str(number)
        with begin(url) as writer:
            for shard in writer.missing():
                arrays = encoded(writer, shard)
                if shard == 0:
                    arrays["bev.neck"] = encoded(writer, 2)["bev.neck"]
                writer.write(shard, arrays)
        writer.seal()
        with pytest.MonkeyPatch.context() as patch:
            changes = cut_off_after(patch, number)
            with contextlib.suppress(KeyboardInterrupt):
                repair(url, {0: {"bev.neck"}})
        repair(url, {0: {"bev.neck"}})
        assert different_files(Path(sealed), url) == []
        assert verify(str(url)).ok
        if len(changes) < number:
            break
    assert number > 4

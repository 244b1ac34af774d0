"""Writing single shards again: the same bytes, other bytes, and a kill in between."""

import contextlib
import itertools
from pathlib import Path

import pytest

from bevcask.cache import open_cache, verify
from bevcask.cache.files import Files
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
    with Repairer(Cache(str(url), lenient=True), wanted, {"provenance": {}}) as repairer:
        for shard in repairer.missing():
            repairer.write(shard, encoded(repairer, shard))  # type: ignore[arg-type]
    return repairer


def test_other_bytes_are_committed_and_sealed_anew(sealed: str, wrong: Path) -> None:
    assert repair(wrong, {0: NAMES, 1: {"bev.neck"}}).changed == [0]
    assert different_files(Path(sealed), wrong) == []
    assert verify(str(wrong)).ok


def test_cut_off_at_every_step_it_is_right_or_unsealed(sealed: str, tmp_path: Path) -> None:
    for number in itertools.count():
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


def test_a_damaged_commit_needs_every_target(sealed: str, copied: Path) -> None:
    damage_commit(copied, 1)
    with pytest.raises(CacheCorruptError, match=r"list every target of shard 1"):
        repair(copied, {1: {"bev.neck"}})
    assert repair(copied, {1: NAMES}).changed == []
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


def test_leftovers_of_a_killed_repair_go(sealed: str, copied: Path) -> None:
    values = copied / "targets/bev.neck/values"
    (values / "c.1.0.0.0.abc.partial").write_bytes(b"half")
    repair(copied, {1: {"bev.neck"}})
    assert Files(str(copied)).get("targets/bev.neck/values/c.1.0.0.0.abc.partial") is None
    assert different_files(Path(sealed), copied) == []

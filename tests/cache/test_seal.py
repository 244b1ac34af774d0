"""Sealing: killed at any step, a cache is unsealed and whole, or sealed and whole."""

import contextlib
import itertools
import shutil
from pathlib import Path

import pytest
import zarr

from bevcask.cache import open_cache, verify
from bevcask.cache.files import Files
from cache.example import begin, build, commit_folder, encoded
from cache.test_begin import cut_off_after
from cache.test_writer import different_files


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A cache whose shards are all committed; nobody has sealed it."""
    with begin(tmp_path / "full") as writer:
        for shard in writer.missing():
            writer.write(shard, encoded(writer, shard))
    return tmp_path / "full"


def test_cut_off_at_every_step(sealed: str, full: Path, tmp_path: Path) -> None:
    seen = set()
    for number in itertools.count():
        url = Path(shutil.copytree(full, tmp_path / str(number)))
        with pytest.MonkeyPatch.context() as patch:
            changes = cut_off_after(patch, number)
            with contextlib.suppress(KeyboardInterrupt):
                begin(url).seal()
        cache = open_cache(str(url), allow_unsealed=True)
        assert len(cache.commit) == 4
        for token in cache.frames.tokens:
            cache.read(token)
        zarr.open_group(str(url), mode="r")["targets/bev.neck/values"][:]
        found = {problem.key for problem in verify(str(url)).problems}
        assert found == (set() if cache.sealed else {"zarr.json"})
        seen.add((cache.sealed, any(url.glob("commit/*.open/c.*"))))
        build(url)
        assert different_files(Path(sealed), url) == []
        if len(changes) < number:
            break
    assert seen == {(False, True), (True, True), (True, False)}


def test_what_was_left_half_written_goes(sealed: str, full: Path) -> None:
    begin(full).seal()
    folder = commit_folder(full)
    (folder / "c.0.0.0.abc.partial").write_bytes(b"half")
    own = folder.with_name(f"{folder.name}.open")
    own.mkdir()
    (own / "c.2.0.0.abc.partial").write_bytes(b"half")
    build(full)
    assert different_files(Path(sealed), full) == []


def test_who_comes_while_another_seals_removes_nothing(sealed: str, full: Path) -> None:
    """The second process saw a shard missing; before it holds its lease the first one seals."""
    name = Files(str(full))
    late = begin(full)
    late._done_S[1] = False
    assert late.missing() == [1]
    begin(full).seal()
    with late:
        assert late.missing() == []
    assert late.unfinished() == 0
    late.seal()
    assert different_files(Path(sealed), full) == []
    assert name.get("leases") is None


def test_unsealing_gives_every_shard_its_commit_back(sealed: str, copied: Path) -> None:
    from bevcask.cache.seal import unseal

    cache = open_cache(sealed)
    chunks = open_cache(str(copied)).commit.chunks()
    del chunks[2]
    unseal(open_cache(str(copied)), chunks)
    again = open_cache(str(copied), allow_unsealed=True)
    assert not again.sealed
    assert again.commit.missing == [2]
    assert again.commit[3] == cache.commit[3]
    build(copied)
    assert different_files(Path(sealed), copied) == []

"""Shards that another cache already has."""

from pathlib import Path

import pytest

from bevcask.cache import Writer, open_cache, verify
from bevcask.cache.parts import Part
from bevcask.cache.reuse import reuse
from bevcask.errors import CacheIdentityError
from cache.example import FINGERPRINT, SPECS, begin, build, encoded, frame_table
from cache.test_writer import different_files

BIG = frame_table((3, 2, 1, 4))  # the first three scenes are those of the example


def finish(writer: Writer) -> None:
    for shard in writer.missing():
        writer.write(shard, encoded(writer, shard))


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(build(tmp_path_factory.mktemp("big") / "big.zarr", frames=BIG))


def test_scenes_that_are_there_are_linked(sealed: str, big: Path, tmp_path: Path) -> None:
    url = tmp_path / "c"
    with begin(url, frames=BIG) as writer:
        assert reuse(writer, open_cache(sealed)) == 4
        assert writer.missing() == [4, 5]
        finish(writer)
    writer.seal()
    assert different_files(big, url) == []
    assert verify(str(url)).ok
    values = "targets/bev.neck/values"
    for name in ("c.0.0.0.0", "c.3.0.0.0"):
        assert (url / values / name).samefile(Path(sealed) / values / name)


def test_a_smaller_selection_takes_what_fits(sealed: str, big: Path, tmp_path: Path) -> None:
    """A frame less in the last scene of two rows: its shard is another one."""
    url = tmp_path / "c"
    with begin(url, frames=frame_table((3, 1))) as writer:
        assert reuse(writer, open_cache(str(big))) == 2
        assert writer.missing() == [2]


def test_a_teacher_with_a_memory_needs_the_frames_before(big: Path, tmp_path: Path) -> None:
    """The scene lost its first two frames: the shard of the others is the same, its past is not."""
    later = frame_table((2, 2))
    late = type(later)(
        BIG.tokens[8:10], ["scene-3"] * 2, later.timestamps[:2], later.lidar_to_global[:2]
    )
    for whole_scenes, taken in ((True, 0), (False, 1)):
        with begin(tmp_path / str(whole_scenes), frames=late) as writer:
            assert reuse(writer, open_cache(str(big)), whole_scenes) == taken
    with begin(tmp_path / "all", frames=BIG) as writer:
        assert reuse(writer, open_cache(str(big)), whole_scenes=True) == 6


def test_each_part_takes_its_own(sealed: str, big: Path, tmp_path: Path) -> None:
    url = tmp_path / "c"
    for number, taken in ((2, 1), (1, 3)):
        with begin(url, frames=BIG, part=Part(number, 2)) as writer:
            assert reuse(writer, open_cache(sealed)) == taken
            finish(writer)
    writer.seal()
    assert different_files(big, url) == []


def test_added_targets_are_taken_too(sealed: str, tmp_path: Path) -> None:
    build(tmp_path, specs=SPECS[:4])
    with begin(tmp_path) as writer:
        assert reuse(writer, open_cache(sealed)) == 4
    writer.seal()
    assert different_files(Path(sealed), tmp_path) == []


def test_copies_where_links_cannot_be(sealed: str, tmp_path: Path) -> None:
    url = "memory://reuse/c"
    with begin(url) as writer:
        assert reuse(writer, open_cache(sealed)) == 4
    writer.seal()
    assert verify(url).ok
    with begin(tmp_path) as writer:
        assert reuse(writer, open_cache(url)) == 4
    writer.seal()
    assert different_files(Path(sealed), tmp_path) == []


def test_an_unsealed_cache_gives_what_it_has(sealed: str, tmp_path: Path) -> None:
    with begin(tmp_path / "old") as writer:
        writer.write(2, encoded(writer, 2))
    with begin(tmp_path / "new") as writer:
        assert reuse(writer, open_cache(str(tmp_path / "old"), allow_unsealed=True)) == 1
        finish(writer)
    writer.seal()
    assert different_files(Path(sealed), tmp_path / "new") == []


@pytest.mark.parametrize("kind", ["gone", "flipped", "swapped"])
def test_damage_is_computed_again(copied: Path, sealed: str, tmp_path: Path, kind: str) -> None:
    values = copied / "targets/bev.neck/values"
    if kind == "gone":
        (values / "c.1.0.0.0").unlink()
    elif kind == "swapped":
        (values / "c.1.0.0.0").write_bytes((values / "c.0.0.0.0").read_bytes())
    else:
        data = bytearray((values / "c.1.0.0.0").read_bytes())
        data[3] ^= 4
        (values / "c.1.0.0.0").write_bytes(data)
    with begin(tmp_path / "new") as writer:
        assert reuse(writer, open_cache(str(copied))) == 3
        assert writer.missing() == [1]
        finish(writer)
    writer.seal()
    assert different_files(Path(sealed), tmp_path / "new") == []


@pytest.mark.parametrize(
    ("change", "leaf"),
    [
        ({"fingerprint": {**FINGERPRINT, "teacher": {"weights": "no"}}}, "teacher.weights"),
        ({"shard_rows": 3}, "shard_rows: expected 3"),
        ({"fingerprint": {**FINGERPRINT, "views": 2}}, "views: expected 2"),
        (
            {"fingerprint": {**FINGERPRINT, "teacher": {"weights": "aa" * 32}}},
            r"teacher.config: expected \(absent\) \(this run\)",
        ),
        ({"specs": [type(SPECS[0])(SPECS[0].tap, "float16")]}, "targets.bev.neck.codec"),
    ],
)
def test_shards_of_something_else_stay_there(
    sealed: str, tmp_path: Path, change: dict[str, object], leaf: str
) -> None:
    with begin(tmp_path, **change) as writer:
        with pytest.raises(CacheIdentityError, match=leaf):
            reuse(writer, open_cache(sealed))
        assert writer.missing()


def test_targets_it_lacks_are_named(tmp_path: Path) -> None:
    old = open_cache(build(tmp_path / "old", specs=SPECS[:2]))
    with (
        begin(tmp_path / "new") as writer,
        pytest.raises(CacheIdentityError, match=r"targets.bev.silent: .*got \(absent\)"),
    ):
        reuse(writer, old)

"""Several processes on one cache: who fills what, and what the end looks like."""

from pathlib import Path

import pytest

from bevcask.cache import Layout, open_cache, verify
from bevcask.cache.parts import Part, cut
from bevcask.errors import ConfigError
from cache.example import SPECS, begin, build, encoded, frame_table
from cache.test_writer import different_files

LAYOUT = Layout(frame_table((3, 2, 1, 9)), SPECS, 2)  # scenes start at shards 0, 2, 3, 4; 9 shards


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("whole_scenes", [False, True])
def test_parts_cover_every_shard_once(count: int, whole_scenes: bool) -> None:
    ranges = [Part(i, count).shards(LAYOUT, whole_scenes) for i in range(1, count + 1)]
    assert [shard for part in ranges for shard in part] == list(range(LAYOUT.num_shards))
    if whole_scenes:
        assert {part.start for part in ranges if part} <= {0, 2, 3, 4}
    else:
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_portions_are_single_shards_where_there_are_few() -> None:
    assert cut([1, 2, 5, 8], LAYOUT) == [range(n, n + 1) for n in (1, 2, 5, 8)]
    assert cut([], LAYOUT) == cut([], LAYOUT, 2) == []


@pytest.mark.parametrize(("number", "largest"), [(127, 1), (640, 10), (3516, 16)])
def test_many_shards_make_portions_of_several(number: int, largest: int) -> None:
    portions = cut(range(number), LAYOUT)
    assert [shard for portion in portions for shard in portion] == list(range(number))
    assert max(map(len, portions)) == largest


def test_portions_of_whole_scenes() -> None:
    assert cut([1, 2, 5, 8], LAYOUT, 1) == [range(2), range(2, 3), range(4, 9)]
    assert cut([1, 2, 5, 8], LAYOUT, 2) == [range(3), range(4, 9)]
    assert cut([0, 5], LAYOUT, 2) == [range(9)]


@pytest.mark.parametrize("text", ["0/2", "3/2", "x", "1/0", "1", "-1/2", "1/2/3", "1.0/2", ""])
def test_words_that_are_no_part(text: str) -> None:
    with pytest.raises(ConfigError, match=r"part=.*expected part=i/n .*1 <= i <= n.*part=1/2"):
        Part.parse(text)


def test_a_part_in_words() -> None:
    assert Part.parse("2/3") == Part(2, 3)
    assert str(Part(2, 3)) == "part=2/3"


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_number_of_parts_leaves_no_trace(sealed: str, tmp_path: Path, count: int) -> None:
    url = tmp_path / "c"
    writers = [begin(url, part=Part(i, count)) for i in range(1, count + 1)]
    for writer in writers[::-1]:
        with writer:
            for shard in writer.missing():
                writer.write(shard, encoded(writer, shard))
    left = [writer.unfinished() for writer in writers]
    assert left == [0] * count
    for writer in writers:  # several may find the end of it
        writer.seal()
    assert different_files(Path(sealed), url) == []
    cache = open_cache(str(url))
    wrote = {run["part"]: run["shards_written"] for run in cache.runs}
    assert sum(wrote.values()) == 4
    assert set(wrote) <= {f"part={i}/{count}" for i in range(1, count + 1)}
    assert verify(str(url)).ok


def test_a_part_knows_what_others_have_left(tmp_path: Path) -> None:
    with begin(tmp_path, part=Part(1, 2)) as writer:
        assert writer.missing() == [0, 1]
        assert writer.missing(everywhere=True) == [0, 1, 2, 3]
        for shard in writer.missing():
            writer.write(shard, encoded(writer, shard))
    assert writer.unfinished() == 2
    build(tmp_path)
    assert open_cache(str(tmp_path)).sealed

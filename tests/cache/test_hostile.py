"""A store somebody else made: it leads nowhere, takes no memory, and is refused in one line."""

import hashlib
import itertools
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevcask.cache import metadata, open_cache, stored_targets, verify
from bevcask.cache.chunks import encode_chunk, encode_plain
from bevcask.cache.layout import commit_bytes
from bevcask.cache.reader import Cache
from bevcask.cache.repair import Repairer
from bevcask.errors import BevcaskError, CacheCorruptError, CacheIdentityError, ConfigError
from cache.example import SPECS, begin, build, commit_folder, encoded
from cache.test_begin import stamps
from cache.test_writer import changed

NAMES = {spec.name for spec in SPECS}
DROP = object()
HUGE = 2**62


def read_all(url: Path) -> None:
    cache = open_cache(str(url))
    for token in cache.frames.tokens:
        cache.read(token)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Whatever a file claims, it gets no memory."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 26


@pytest.fixture(scope="module")
def _lent(sealed: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(sealed, tmp_path_factory.mktemp("hostile") / "lent.zarr"))


@pytest.fixture
def lent(sealed: str, _lent: Path) -> Iterator[Path]:
    """A copy whose files of metadata a test may rewrite; they are put back."""
    yield _lent
    for path in [
        *_lent.glob("*.json"),
        *_lent.glob("provenance/*.json"),
        *_lent.glob("frames/*/c*"),
    ]:
        shutil.copy(Path(sealed) / path.relative_to(_lent), path)


@pytest.fixture
def precious(tmp_path: Path) -> Iterator[Path]:
    """A folder of the user's, whose files nobody may touch."""
    folder = tmp_path / "precious"
    (folder / "leases").mkdir(parents=True)
    for name in ("c.0.0.0", "c.1.0.0", "zarr.json", "thesis.partial", "leases/a.json"):
        (folder / name).write_text("precious")
    before = stamps(folder)
    yield folder
    assert stamps(folder) == before


LINKS = (
    "commit/{id}.open",
    "leases",
    "targets",
    "targets/bev.neck/values",
    "addition",
    "provenance",
)


def plant(url: Path, key: str, target: Path) -> str:
    """Put a link in the place of a file or a folder of a cache; return its key."""
    key = key.format(id=open_cache(str(url), allow_unsealed=True).id[:16])
    place = url / key
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
    return key


@pytest.mark.parametrize("state", ["sealed", "open"])
@pytest.mark.parametrize("key", LINKS)
def test_no_folder_that_is_a_link_is_followed(
    tmp_path: Path, copied: Path, precious: Path, key: str, state: str
) -> None:
    url = copied
    if state == "open":
        url = tmp_path / "open"
        with begin(url) as writer:
            writer.write(1, encoded(writer, 1))
    link = plant(url, key, precious)
    for work in (
        lambda: begin(url),
        lambda: begin(url, specs=SPECS[:2], fingerprint=changed(teacher__weights="another")),
        lambda: build(url),
    ):
        with pytest.raises(CacheCorruptError, match=f"holds symbolic links: {link}"):
            work()
    with pytest.raises(CacheCorruptError):
        Repairer(
            Cache(str(url), allow_unsealed=True, lenient=True), dict.fromkeys(range(4), NAMES), {}
        )
    assert link in {problem.key for problem in verify(str(url)).problems}


@pytest.mark.parametrize(
    "key", ["zarr.json", "frames/valid/c.0", "targets/bev.neck/values/c.0.0.0.0", "notes"]
)
def test_no_file_that_is_a_link_is_read(copied: Path, key: str) -> None:
    plant(copied, key, Path("/dev/zero"))
    with pytest.raises(CacheCorruptError, match=rf"holds symbolic links: {key}\. .*cp -rL"):
        begin(copied)
    assert [problem.key for problem in verify(str(copied)).problems] == [key]
    if key != "notes":
        with pytest.raises(CacheCorruptError, match="symbolic link"):
            read_all(copied)


def test_a_cache_that_is_reached_through_a_link_is_fine(tmp_path: Path, sealed: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    build(tmp_path / "link" / "c.zarr")
    assert verify(str(tmp_path / "link" / "c.zarr")).ok
    (tmp_path / "straight").symlink_to(sealed)
    assert verify(str(tmp_path / "straight")).ok


def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(copied: Path) -> None:
    for key in ("zarr.json", "targets/bev.neck/scale/c.0.0"):
        path = copied / key
        before = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        assert not verify_quietly(copied)
        with pytest.raises(BevcaskError):
            read_all(copied)
        path.unlink()
        path.write_bytes(before)


def test_another_identity_is_refused_before_anything_is_tidied(tmp_path: Path) -> None:
    url = tmp_path / "c"
    with begin(url) as writer:
        writer.write(0, encoded(writer, 0))
    (url / "frames/valid/c.0.abc.partial").write_bytes(b"half")
    before = stamps(url)
    with pytest.raises(CacheIdentityError, match=r"teacher\.weights"):
        begin(url, fingerprint=changed(teacher__weights="another"))
    assert stamps(url) == before


def resealed(url: Path, change: Callable[[dict[str, Any]], Any], key: str = "zarr.json") -> None:
    """Change the attributes of a root and give it the digest that fits."""
    path = url / key
    document = json.loads(path.read_bytes())
    attributes = document["attributes"]
    change(attributes)
    path.write_bytes(metadata.seal_json({**document, "attributes": attributes}))


def verify_quietly(url: Path) -> bool:
    """Tell whether verify finds a cache in order; a refusal of ours is no."""
    try:
        return verify(str(url), workers=1).ok
    except BevcaskError:
        return False


KEYS = (
    "format",
    "schema_version",
    "id",
    "state",
    "commit",
    "shard_rows",
    "num_frames",
    "num_shards",
    "scenes",
    "specs",
    "fingerprint",
    "files",
)
VALUES = {
    "dropped": DROP,
    "null": None,
    "true": True,
    "zero": 0,
    "negative": -1,
    "huge": HUGE,
    "beyond": 10**40,
    "float": 0.5,
    "text": "../../../../dev/zero",
    "list": [[]],
    "numbers": [HUGE],
    "mapping": {"a": {"b": 1}},
    "empty": {},
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", KEYS)
def test_a_root_with_one_absurd_key_is_refused_in_one_line(
    lent: Path, key: str, value: str
) -> None:
    def change(attributes: dict[str, Any]) -> None:
        if VALUES[value] is DROP:
            del attributes[key]
        else:
            attributes[key] = VALUES[value]

    resealed(lent, change)
    refused(lent)


def refused(url: Path) -> None:
    with pytest.raises((CacheCorruptError, CacheIdentityError)) as caught:
        open_cache(str(url))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not verify_quietly(url)
    with pytest.raises(BevcaskError):
        begin(url)


def edit(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of one leaf of a root; `DROP` removes it."""

    def change(attributes: dict[str, Any]) -> None:
        node: Any = attributes
        for step in path[:-1]:
            node = node[step]
        if to is DROP:
            del node[path[-1]]
        else:
            node[path[-1]] = to

    return change


def duplicate(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda attributes: attributes[key].append(attributes[key][0])


LEAVES = {
    "one more shard": edit("num_shards", to=5),
    "one shard less": edit("num_shards", to=3),
    "one more frame": edit("num_frames", to=7),
    "other rows": edit("shard_rows", to=1),
    "another id": edit("id", to="0" * 64),
    "an id that climbs": edit("id", to="../../../../x"),
    "a sealed root without a commit": edit("commit", to=None),
    "an edited fingerprint": edit("fingerprint", "teacher", "weights", to="another"),
    "weights are a number": edit("fingerprint", "teacher", "weights", to=5),
    "no weights": edit("fingerprint", "teacher", "weights", to=DROP),
    "one more key": edit("more", to=1),
    "a file outside": edit("files", "../../../../dev/zero", to="0" * 64),
    "an absolute file": edit("files", "/etc/passwd", to="0" * 64),
    "a file with a null byte": edit("files", "a\0b", to="0" * 64),
    "a file that is a folder": edit("files", "targets", to="0" * 64),
    "a digest that is none": edit("files", "frames/valid/c.0", to="x"),
    "a file less": edit("files", "frames/valid/c.0", to=DROP),
    "poses less": edit("files", "frames/lidar_to_global/c.0.0.0", to=DROP),
    "a scene twice": duplicate("scenes"),
    "another scene": edit("scenes", 0, to="elsewhere"),
    "a scene less": edit("scenes", 0, to=DROP),
    "a target twice": duplicate("specs"),
    "a target less": edit("specs", 0, to=DROP),
    "a huge map": edit("specs", 0, "tap", "shape", to=[HUGE, HUGE, HUGE]),
    "a map of text": edit("specs", 0, "tap", "shape", to=["a", "b", "c"]),
    "a map of nothing": edit("specs", 0, "tap", "shape", to=[0, 6, 8]),
    "a negative map": edit("specs", 0, "tap", "shape", to=[-3, 6, 8]),
    "no shape": edit("specs", 0, "tap", "shape", to=DROP),
    "another shape": edit("specs", 0, "tap", "shape", to=[4, 6, 8]),
    "a name that climbs": edit("specs", 0, "tap", "name", to="../../x"),
    "a number for a name": edit("specs", 0, "tap", "name", to=5),
    "an unknown kind": edit("specs", 0, "tap", "kind", to="sound"),
    "an unknown codec": edit("specs", 0, "codec", to="object"),
    "a huge grid": edit("specs", 0, "tap", "grid", "num_x", to=HUGE),
    "a grid of text": edit("specs", 0, "tap", "grid", to="grid"),
    "an unknown region": edit("specs", 0, "region", "name", to="here"),
    "a deep region": edit("specs", 0, "region", "parts", to=[[[[[]]]]]),
    "a view of text": edit("specs", 0, "view", to="1"),
    "a key more in a target": edit("specs", 0, "more", to=1),
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_root_with_one_absurd_leaf_is_refused_in_one_line(lent: Path, name: str) -> None:
    resealed(lent, LEAVES[name])
    if name == "poses less":  # read when they are asked for
        with pytest.raises(CacheCorruptError, match="lacks frames/lidar_to_global"):
            _ = open_cache(str(lent)).frames.lidar_to_global
        assert not verify_quietly(lent)
        return
    refused(lent)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", ["provenance", "plan"])
def test_an_absurd_provenance_is_refused(lent: Path, key: str, value: str) -> None:
    if isinstance(VALUES[value], dict):
        return
    resealed(lent, edit(key, to=VALUES[value]), "provenance/zarr.json")
    with pytest.raises(CacheCorruptError, match=f"expected `{key}`, a mapping"):
        open_cache(str(lent))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "", "null"])
def test_a_root_that_is_no_root(lent: Path, text: str) -> None:
    (lent / "zarr.json").write_text(text)
    refused(lent)


def vouch(url: Path, key: str, data: bytes) -> None:
    """Write a small file, and let the root vouch for it."""
    (url / key).write_bytes(data)
    resealed(url, edit("files", key, to=hashlib.sha256(data).hexdigest()))


BOMB = encode_chunk(np.r_[np.zeros(1 << 26, np.uint8), np.ones(1, np.uint8)])


FRAMES = {
    "a bomb": ("valid/c.0", BOMB),
    "a bomb of tokens": ("sample_token/c.0.0", BOMB),
    "scene two billion": ("scene/c.0", encode_chunk(np.full(8, 2**31 - 1, np.int32))),
    "scene -1": ("scene/c.0", encode_chunk(np.array([0, 0, 0, 0, -1, -1, -2, 0], np.int32))),
    "scenes mixed": ("scene/c.0", encode_chunk(np.array([2, 2, 2, 0, 1, 1, 0, 0], np.int32))),
    "no pad rows": ("valid/c.0", encode_chunk(np.ones(8, bool))),
    "one frame": ("valid/c.0", encode_chunk(np.array([0, 0, 0, 0, 0, 0, 0, 1], bool))),
    "valid 7 times": ("valid/c.0", encode_chunk(np.full(8, 7, np.uint8))),
}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", FRAMES)
def test_frames_that_fit_no_root_are_refused(lent: Path, name: str) -> None:
    key, data = FRAMES[name]
    vouch(lent, f"frames/{key}", data)
    refused(lent)


@pytest.mark.usefixtures("little_memory")
def test_a_sparse_file_of_a_terabyte_is_not_read(copied: Path) -> None:
    for key in ("zarr.json", "frames/valid/c.0", "provenance/zarr.json"):
        path = copied / key
        before = path.read_bytes()
        with path.open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(CacheCorruptError, match="more than"):
            open_cache(str(copied))
        path.write_bytes(before)


@pytest.mark.usefixtures("little_memory")
def test_a_commit_that_promises_too_much_is_refused(copied: Path) -> None:
    path = commit_folder(copied) / "c.0.0.0"
    whole = path.read_bytes()
    width = (len(whole) - 4 * 16 - 4) // 4
    for entry, length in itertools.product(range(2), (2**64 - 1, 2**63, 2**50, 2**40)):
        data = bytearray(whole)
        place = commit_bytes(2) * entry + 32
        data[place : place + 8] = length.to_bytes(8, "little")
        data[:width] = encode_plain(bytes(data[: width - 4]))
        path.write_bytes(data)
        resealed(copied, edit("commit", to=hashlib.sha256(data).hexdigest()))
        with pytest.raises(CacheCorruptError):
            read_all(copied)
        assert not verify_quietly(copied)


@pytest.mark.usefixtures("little_memory")
def test_an_index_that_points_anywhere_is_refused(copied: Path) -> None:
    cache = open_cache(str(copied))
    (array,) = [a for a in cache.layout.arrays if a.key == "boxes/head.boxes/values"]
    path = copied / array.object_key(0)
    data = path.read_bytes()
    for start, length in ((0, 2**63), (2**63, 2**63), (5, 2**40), (len(data), 1)):
        index = np.array([[start, length]] * 2, "<u8").tobytes()
        path.write_bytes(data[:-36] + encode_plain(index))
        with pytest.raises(CacheCorruptError):
            open_cache(str(copied)).read(cache.frames.tokens[0], ["head.boxes"])


def test_what_a_cache_does_not_say_of_itself_is_named_and_no_key_error(tmp_path: Path) -> None:
    """Others may make caches too: every stage asks for leaves that only an extraction writes."""
    url = build(tmp_path, fingerprint={"teacher": {"weights": "aa"}, "views": {}}, plan={})
    cache = open_cache(url)
    for ask, words in (
        (lambda: cache.fingerprint["dataset"], "its fingerprint does not say `dataset`"),
        (lambda: cache.fingerprint["teacher"]["type"], r"fingerprint\.teacher does not say `type`"),
        (lambda: cache.fingerprint["views"]["seed"], r"fingerprint\.views does not say `seed`"),
        (lambda: cache.plan["dataset"], "its plan does not say `dataset`"),
        (lambda: cache.provenance["command"], "its provenance does not say `command`"),
    ):
        with pytest.raises(CacheIdentityError, match=words):
            ask()
    assert cache.plan.get("dataset") is None
    assert cache.fingerprint == {"teacher": {"weights": "aa"}, "views": {}}


@pytest.mark.parametrize("name", ["an id that climbs", "a file outside", "a huge map"])
def test_the_root_of_an_addition_is_believed_no_more(tmp_path: Path, name: str) -> None:
    build(tmp_path, specs=SPECS[:2])
    with begin(tmp_path, specs=SPECS[:3]) as writer:
        writer.write(0, encoded(writer, 0))
    resealed(tmp_path, LEAVES[name], "addition/zarr.json")
    before = stamps(tmp_path)
    for work in (lambda: begin(tmp_path, specs=SPECS[:3]), lambda: stored_targets(str(tmp_path))):
        with pytest.raises(CacheCorruptError, match=r"addition/zarr\.json: no cache says this"):
            work()
    assert stamps(tmp_path) == before
    assert "addition/zarr.json" in {problem.key for problem in verify(str(tmp_path)).problems}
    read_all(tmp_path)


def test_more_rows_than_a_cache_has_are_refused_when_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"take \d+ rows, a cache has at most 8388608"):
        begin(tmp_path, shard_rows=1 << 23)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("little_memory")
def test_a_row_longer_than_any_row_is_not_read(copied: Path) -> None:
    """A sparse file, an index that fits it, a commit that vouches for its length."""
    cache = open_cache(str(copied))
    key = "boxes/head.boxes/values"
    number = [array.key for array in cache.layout.arrays].index(key)
    index = encode_plain(np.array([[0, 1 << 40], [0, 1 << 40]], "<u8").tobytes())
    with (copied / f"{key}/c.0.0.0").open("wb") as file:
        file.seek(1 << 40)
        file.write(index)
    path = commit_folder(copied) / "c.0.0.0"
    data = bytearray(path.read_bytes())
    place = commit_bytes(2) * number + 32
    data[place : place + 8] = ((1 << 40) + len(index)).to_bytes(8, "little")
    path.write_bytes(data)
    resealed(copied, edit("commit", to=hashlib.sha256(data).hexdigest()))
    with pytest.raises(CacheCorruptError, match="not the bytes that were committed"):
        read_all(copied)


def test_a_number_of_shards_that_does_not_follow_from_the_frames_is_refused(lent: Path) -> None:
    """One more shard of pad rows, in the root and in every column."""
    layout = open_cache(str(lent)).layout
    columns = {
        "valid/c.0": layout.valid,
        "sample_token/c.0.0": layout.per_row(layout.frames.tokens.bytes_N16),
        "scene/c.0": layout.per_row(layout.frames.scenes.codes_N),
    }
    resealed(lent, edit("num_shards", to=layout.num_shards + 1))
    for key, rows in columns.items():
        padded = np.concatenate([rows, np.zeros_like(rows[:2])])
        vouch(lent, f"frames/{key}", encode_chunk(padded))
    with pytest.raises(CacheCorruptError, match="its frames fill 4 shards, it says 5"):
        open_cache(str(lent))
    refused(lent)

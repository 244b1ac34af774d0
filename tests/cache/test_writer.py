"""Writing: whole shards, resume, refusal, determinism, a full disk."""

import errno
import filecmp
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevcask.cache import Encoded, concatenate, open_cache, verify
from bevcask.cache.layout import commit_key
from bevcask.errors import (
    CacheIdentityError,
    CacheIncompleteError,
    DiskFullError,
    TargetMismatchError,
)
from cache.example import FINGERPRINT, SPECS, begin, build, commit_folder, encoded, frame_table


def different_files(left: Path, right: Path) -> list[str]:
    """Return the keys that differ or are on one side only, as `diff -r -x provenance` would."""

    def keys(root: Path) -> set[str]:
        found = {p.relative_to(root).as_posix() for p in root.rglob("*")}
        return {key for key in found if key.partition("/")[0] != "provenance"}

    both = keys(left) & keys(right)
    files = {key for key in both if (left / key).is_file()}
    differ = {k for k in files if not filecmp.cmp(left / k, right / k, shallow=False)}
    return sorted(differ | (keys(left) ^ keys(right)))


def test_two_runs_differ_in_provenance_alone(sealed: str, tmp_path: Path) -> None:
    again = build(tmp_path / "again", provenance={"host": "elsewhere"})
    assert different_files(Path(sealed), Path(again)) == []
    third = build(tmp_path / "third", provenance={"host": "elsewhere"}, specs=SPECS[::-1])
    assert different_files(Path(third), Path(again)) == []


def test_order_of_shards_and_resume_leave_no_trace(sealed: str, tmp_path: Path) -> None:
    url = tmp_path / "c"
    with begin(url) as writer:
        for shard in (2, 0):
            writer.write(shard, encoded(writer, shard))
    neck = url / "targets/bev.neck/values"
    (neck / "c.3.0.0.0").write_bytes(b"an object without a commit")
    (neck / "c.1.0.0.0.abc.partial").write_bytes(b"half an object")
    (commit_folder(url) / "c.1.0.0.abc.partial").write_bytes(b"half a commit")
    (url / "frames/valid/c.0.abc.partial").write_bytes(b"half a small file")
    with begin(url) as resumed:
        assert resumed.missing() == [1, 3]
        assert not (neck / "c.3.0.0.0").exists()
        assert not list(url.rglob("*.partial"))
        for shard in resumed.missing():
            resumed.write(shard, encoded(resumed, shard))
    resumed.seal()
    assert different_files(Path(sealed), url) == []
    assert begin(url).missing() == []
    begin(url).seal()


def test_partial_files_of_committed_shards_are_not_ours_to_remove(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    writer.write(0, encoded(writer, 0))
    other = tmp_path / "targets/bev.neck/values/c.0.0.0.0.abc.partial"
    other.write_bytes(b"of another process")
    with begin(tmp_path):
        assert other.exists()


def test_half_made_metadata_is_completed(sealed: str, tmp_path: Path) -> None:
    url = tmp_path / "c"
    (url / "frames").mkdir(parents=True)
    (url / "frames/zarr.json").write_bytes((Path(sealed) / "frames/zarr.json").read_bytes())
    (url / "frames/zarr.json.abc.partial").write_bytes(b"{")
    build(url)
    assert different_files(Path(sealed), url) == []


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(CacheIdentityError, match=r"not empty.*thesis.tex"):
        begin(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_commits_do_not_share_files(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    writer.write(0, encoded(writer, 0))
    commit = commit_folder(tmp_path)
    first = (commit / "c.0.0.0").stat().st_ino, (commit / "c.0.0.0").read_bytes()
    writer.write(1, encoded(writer, 1))
    names = sorted(path.name for path in commit.iterdir())
    assert names == ["c.0.0.0", "c.1.0.0", "zarr.json"]
    assert ((commit / "c.0.0.0").stat().st_ino, (commit / "c.0.0.0").read_bytes()) == first


def test_objects_reach_the_disk_before_their_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, events = begin(tmp_path), []
    replace, sync = Path.replace, os.fsync

    def renamed(path: Path, target: Path) -> Path:
        events.append(("rename", target.relative_to(tmp_path).as_posix()))
        return replace(path, target)

    def synced(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        name = path.relative_to(tmp_path).as_posix()
        events.append(("sync", name.rsplit(".", 2)[0] if name.endswith(".partial") else name))
        sync(descriptor)

    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(os, "fsync", synced)
    writer.write(1, encoded(writer, 1))
    keys = [name for event, name in events if event == "rename"]
    assert len(keys) == len(set(keys)) > 8
    last = commit_key(writer.cache.id, 1)
    assert keys[-1] == last
    commit = events.index(("sync", last))
    for key in keys[:-1]:
        content = events.index(("sync", key))
        rename = events.index(("rename", key))
        folder = events.index(("sync", key.rpartition("/")[0]), rename)
        assert content < rename < folder < commit
    assert events[-2:] == [("rename", last), ("sync", last.rpartition("/")[0])]


def test_a_silent_shard_writes_no_file_and_says_so(sealed: str) -> None:
    root = Path(sealed)
    assert not (root / "targets/bev.silent/values/c.0.0.0.0").exists()
    names = json.loads((commit_folder(root) / "zarr.json").read_bytes())["attributes"]["arrays"]
    entry = open_cache(sealed).commit[0][names.index("targets/bev.silent/values")]
    assert (entry.length, entry.sha256) == (0, hashlib.sha256(b"").digest())


def test_seal_needs_every_shard(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    writer.write(0, encoded(writer, 0))
    with pytest.raises(CacheIncompleteError, match="3 of 4 shards are missing, first 1"):
        writer.seal()


def test_every_run_is_recorded(tmp_path: Path) -> None:
    with begin(tmp_path, provenance={"host": "first"}) as writer:
        writer.write(2, encoded(writer, 2))
    build(tmp_path, provenance={"host": "second"})
    build(tmp_path, provenance={"host": "third, with nothing to do"})
    cache = open_cache(str(tmp_path))
    assert cache.provenance == {"host": "first"}
    said = [(run["provenance"]["host"], run["shards_written"]) for run in cache.runs]
    assert sorted(said) == [("first", 1), ("second", 3)]
    assert {run["part"] for run in cache.runs} == {"part=1/1"}
    assert verify(str(tmp_path)).ok


def changed(**changes: Any) -> dict[str, Any]:
    """Return the example fingerprint with dotted leaves replaced."""
    tree = json.loads(json.dumps(FINGERPRINT))
    for dotted, value in changes.items():
        *path, leaf = dotted.split("__")
        node = tree
        for part in path:
            node = node[part]
        node[leaf] = value
    return tree  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "leaf"),
    [
        ({"fingerprint": changed(teacher__weights="dd" * 32)}, "teacher.weights: expected dddd"),
        ({"fingerprint": changed(teacher__config__cell=0.1)}, "teacher.config.cell: expected 0.1"),
        (
            {"fingerprint": changed(dataset__calibration__CAM_FRONT="ee")},
            "dataset.calibration.CAM_FRONT: expected ee",
        ),
        ({"shard_rows": 3}, "shard_rows: expected 3 (this run), got 2 (the cache)"),
        ({"frames": frame_table((3, 2))}, "selection.num_frames: expected 5 (this run), got 6"),
        ({"frames": frame_table((3, 1, 2))}, "selection.scenes: expected"),
    ],
)
def test_another_identity_is_refused_by_leaf(
    copied: Path, change: dict[str, Any], leaf: str
) -> None:
    with pytest.raises(CacheIdentityError) as caught:
        begin(copied, **change)
    assert leaf in str(caught.value)
    assert "another URL" in str(caught.value)
    assert verify(str(copied)).ok


def test_state_may_differ(copied: Path) -> None:
    writer = begin(copied, provenance={"host": "other"}, plan={"total_bytes": 1})
    assert writer.missing() == []
    assert open_cache(str(copied)).provenance == {"host": "here"}


def test_wrong_arrays_are_refused_together_and_nothing_is_written(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    arrays = encoded(writer, 0)
    del arrays["bev.silent"]
    arrays["bev.extra"] = arrays["bev.neck"]
    arrays["bev.neck"] = Encoded(arrays["bev.neck"].values[:1], arrays["bev.neck"].scale)
    arrays["bev.signed"] = Encoded(arrays["bev.signed"].values)
    with pytest.raises(TargetMismatchError) as caught:
        writer.write(0, arrays)
    for words in (
        "bev.silent: missing",
        "bev.extra: not a target",
        "targets/bev.neck/values: expected (2, 3, 6, 8) uint8, got (1, 3, 6, 8) uint8",
        "targets/bev.signed/scale: expected (2, 3) float32, got nothing",
    ):
        assert words in str(caught.value)
    assert [path.name for path in (tmp_path / "targets/bev.neck/values").iterdir()] == ["zarr.json"]


def fill_disk_after(monkeypatch: pytest.MonkeyPatch, root: Path, num_bytes: int) -> None:
    """Let the file system take this many more bytes, then answer as a full disk does."""
    left = [num_bytes]
    opening = Path.open

    class Full:
        def __init__(self, file: Any) -> None:
            self._file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, data: bytes) -> None:
            self._file.write(data[: max(0, left[0])])
            left[0] -= len(data)
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")

    def opened(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        file = opening(path, mode, *rest, **more)
        return Full(file) if mode == "xb" and root in path.parents else file

    monkeypatch.setattr(Path, "open", opened)


def test_a_full_disk_loses_nothing(sealed: str, tmp_path: Path) -> None:
    writer = begin(tmp_path)
    writer.write(0, encoded(writer, 0))
    with pytest.MonkeyPatch.context() as patch:
        fill_disk_after(patch, tmp_path, 600)
        with pytest.raises(DiskFullError, match=r"disk full.*Every committed shard is safe"):
            writer.write(1, encoded(writer, 1))
    assert not list(tmp_path.rglob("*.partial"))
    cache = open_cache(str(tmp_path), allow_unsealed=True)
    assert cache.committed == {0}
    cache.read(cache.frames.tokens[1])
    build(tmp_path)
    assert different_files(Path(sealed), tmp_path) == []


def test_other_write_errors_keep_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = begin(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "I/O")))
    with pytest.raises(OSError, match="I/O") as caught:
        writer.write(0, encoded(writer, 0))
    assert not isinstance(caught.value, DiskFullError)


def test_concatenate_joins_batches(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    whole = encoded(writer, 0)["head.heatmap"]
    halves = [
        Encoded(whole.values[i : i + 1], whole.scale[i : i + 1], whole.region[i : i + 1])
        for i in (0, 1)
    ]
    joined = concatenate(halves)
    np.testing.assert_array_equal(joined.values, whole.values)
    np.testing.assert_array_equal(joined.region, whole.region)
    assert isinstance(joined.scale, np.ndarray)
    assert joined.count is None

"""Adding targets to a sealed cache: what it costs, what it must never do."""

import contextlib
import hashlib
import itertools
from pathlib import Path

import pytest

from bevcask.cache import open_cache, stored_targets, verify
from bevcask.cache.files import Files
from bevcask.cache.parts import Part
from bevcask.errors import CacheIdentityError, UnknownNameError
from cache.example import FINGERPRINT, SPECS, begin, build, encoded
from cache.test_writer import changed, different_files

OLD, NEW = SPECS[:4], SPECS[4:]


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A sealed cache of the first four targets."""
    return Path(build(tmp_path / "half", specs=OLD))


def stamps(root: Path) -> dict[str, tuple[int, int, str]]:
    return {
        path.relative_to(root).as_posix(): (
            path.stat().st_ino,
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in root.rglob("*")
        if path.is_file()
    }


def test_adding_ends_where_making_all_at_once_does(sealed: str, half: Path) -> None:
    before = stamps(half)
    build(half, specs=SPECS)
    assert different_files(Path(sealed), half) == []
    after = stamps(half)
    touched = {key for key in before if after.get(key) != before[key]}
    assert {key.partition("/")[0] for key in touched} == {"zarr.json", "commit"}
    assert open_cache(str(half)).id == open_cache(sealed).id
    assert verify(str(half)).ok


def test_only_missing_targets_are_asked_for(half: Path) -> None:
    with begin(half, specs=[*OLD[:1], *NEW[:1]]) as writer:
        assert [spec.name for spec in writer.specs] == ["head.boxes"]
        assert writer.missing() == [0, 1, 2, 3]


def test_targets_that_are_there_are_enough(half: Path) -> None:
    before = stamps(half)
    with begin(half, specs=OLD[1:2]) as writer:
        assert writer.missing() == []
    writer.seal()
    assert stamps(half) == before


def test_old_targets_read_on_and_new_ones_appear_at_the_end(half: Path) -> None:
    frozen = open_cache(str(half))
    writer = begin(half, specs=SPECS)
    token = frozen.frames.tokens[4]
    with writer:
        for shard in writer.missing():
            cache = open_cache(str(half))
            assert cache.sealed
            assert set(cache.specs) == {spec.name for spec in OLD}
            cache.read(token)
            assert verify(str(half)).ok
            with pytest.raises(UnknownNameError, match=r"has no target 'head.boxes'"):
                cache.read(token, ["head.boxes"])
            writer.write(shard, encoded(writer, shard))
    assert {spec.name for spec in stored_targets(str(half))} == {spec.name for spec in SPECS}
    writer.seal()
    assert "head.boxes" in open_cache(str(half)).read(token)
    assert "bev.neck" in frozen.read(token)


def test_parts_add_too(sealed: str, half: Path) -> None:
    for part in (Part(2, 2), Part(1, 2)):
        with begin(half, specs=SPECS, part=part) as writer:
            for shard in writer.missing():
                writer.write(shard, encoded(writer, shard))
        if not writer.unfinished():
            writer.seal()
    assert different_files(Path(sealed), half) == []


@pytest.mark.parametrize(
    ("change", "leaf"),
    [
        ({"fingerprint": changed(teacher__weights="dd" * 32)}, "teacher.weights: expected dddd"),
        (
            {"fingerprint": {**FINGERPRINT, "teacher": {**FINGERPRINT["teacher"], "more": 1}}},
            "teacher.more: expected 1 (this run), got (absent)",
        ),
        (
            {"fingerprint": changed(dataset__calibration__CAM_FRONT="ee")},
            "dataset.calibration.CAM_FRONT: expected ee",
        ),
        (
            {"specs": [type(SPECS[0])(SPECS[0].tap, "float16"), *NEW]},
            "targets.bev.neck.codec: expected float16 (this run), got uint8",
        ),
        ({"shard_rows": 4}, "shard_rows: expected 4"),
        (
            {"specs": OLD, "fingerprint": {**FINGERPRINT, "views": 2}},
            "views: expected 2 (this run), got (absent)",
        ),
    ],
)
def test_what_is_there_must_agree(half: Path, change: dict[str, object], leaf: str) -> None:
    before = stamps(half)
    with pytest.raises(CacheIdentityError) as caught:
        begin(half, **{"specs": SPECS, **change})
    assert leaf in str(caught.value)
    assert stamps(half) == before


def test_new_targets_may_rest_on_more_of_the_dataset(half: Path) -> None:
    more = changed()
    more["dataset"]["annotations"] = "ff" * 32
    more["views"] = {"seed": 3}
    build(half, specs=SPECS, fingerprint=more)
    assert open_cache(str(half)).fingerprint == more
    assert verify(str(half)).ok
    with pytest.raises(CacheIdentityError, match=r"dataset\.annotations: expected"):
        begin(half, specs=OLD)


def test_another_addition_waits_for_the_first(half: Path) -> None:
    with begin(half, specs=[*OLD, NEW[0]]) as writer:
        writer.write(0, encoded(writer, 0))
    with pytest.raises(CacheIdentityError) as caught:
        begin(half, specs=[*OLD, NEW[1]])
    for words in ("head.boxes are being added", "would add query.last", "addition"):
        assert words in str(caught.value)
    assert begin(half, specs=OLD).missing() == []
    build(half, specs=[*OLD, NEW[0]])
    build(half, specs=[*OLD, NEW[1]])
    assert set(open_cache(str(half)).specs) == {spec.name for spec in (*OLD, *NEW[:2])}
    assert verify(str(half)).ok


def test_giving_an_addition_up_and_beginning_again(sealed: str, half: Path) -> None:
    with begin(half, specs=SPECS) as writer:
        writer.write(1, encoded(writer, 1))
    Files(str(half)).delete_below("addition")
    build(half, specs=SPECS)
    assert different_files(Path(sealed), half) == []


def test_targets_of_an_unsealed_cache_are_those_it_began_with(sealed: str, tmp_path: Path) -> None:
    begin(tmp_path)
    with begin(tmp_path, specs=OLD) as writer:
        assert len(writer.specs) == len(SPECS)
    with begin(tmp_path / "other", specs=OLD):
        pass
    with pytest.raises(CacheIdentityError, match=r"targets.head.boxes: expected .*got \(absent\)"):
        begin(tmp_path / "other")
    build(tmp_path, specs=OLD)


def cut_off_after(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Let this many writes and deletions happen, then fail as a killed process would."""
    done: list[str] = []

    def counted(name: str) -> None:
        inner = getattr(Files, name)

        def call(self: Files, what: object, *rest: object) -> object:
            if not str(what).startswith("leases"):
                if len(done) >= number:
                    raise KeyboardInterrupt
                done.append(f"{name} {what if isinstance(what, str) else list(what)}")
            return inner(self, what, *rest)

        monkeypatch.setattr(Files, name, call)

    for name in ("put_many", "delete"):
        counted(name)
    return done


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_cut_off_at_any_step(tmp_path: Path, stride: int) -> None:
    """Interrupt an addition after 0, 1, 2, ... changes; the old targets must stay, all of them."""
    old, everything = (SPECS[0],), (SPECS[0], SPECS[4])
    whole = Path(build(tmp_path / "whole", specs=everything))
    for number in itertools.count(step=stride):
        url = tmp_path / str(number)
        build(url, specs=old)
        with pytest.MonkeyPatch.context() as patch:
            changes = cut_off_after(patch, number)
            with contextlib.suppress(KeyboardInterrupt):
                build(url, specs=everything)
        cache = open_cache(str(url))
        assert cache.sealed
        for token in cache.frames.tokens:
            cache.read(token, ["bev.neck"])
        assert verify(str(url)).ok
        build(url, specs=everything)
        assert different_files(whole, url) == []
        if len(changes) < number:
            break
    assert number > 15

"""Checkpoints: whole or not there, the one before kept, damage found, no code run."""

import errno
import io
import os
import random
import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from bevcask.errors import CheckpointError
from bevcask.training import saving
from bevcask.training.saving import (
    WholeFiles,
    keep,
    previous_of,
    read_checkpoint,
    resume_point,
    write_checkpoint,
)


def checkpoint(step: int) -> dict[str, Any]:
    torch.manual_seed(step)
    return {"global_step": step, "bevcask": {}, "state_dict": {"w": torch.randn(40, 40)}}


@pytest.fixture
def last(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.ckpt"
    for step in (1, 2):
        write_checkpoint(checkpoint(step), path)
    return path


def test_the_one_before_is_kept_and_nothing_else(last: Path) -> None:
    write_checkpoint(checkpoint(3), last)
    assert sorted(p.name for p in last.parent.iterdir()) == ["last.ckpt", "last.previous.ckpt"]
    assert read_checkpoint(last)["global_step"] == 3
    assert read_checkpoint(previous_of(last))["global_step"] == 2


def damage(data: bytes, how: str) -> bytes:
    if how == "flipped":
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
    return data[: {"empty": 0, "half": len(data) // 2, "short": len(data) - 1}[how]]


@pytest.mark.parametrize("how", ["empty", "half", "short", "flipped"])
def test_damage_is_found_and_the_older_one_is_offered(how: str, last: Path) -> None:
    last.write_bytes(damage(last.read_bytes(), how))
    with pytest.raises(CheckpointError, match=r"last\.ckpt: damaged") as caught:
        resume_point(last)
    assert "last.previous.ckpt, is whole and of step 1. Remove last.ckpt" in str(caught.value)
    last.unlink()
    resumed = resume_point(last)
    assert resumed is not None
    assert (resumed[0], resumed[1]["global_step"]) == (previous_of(last), 1)
    previous_of(last).write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        resume_point(last)


def test_no_flipped_bit_is_served(last: Path) -> None:
    data, whole = last.read_bytes(), read_checkpoint(last)
    places = random.Random(0)
    found = 0
    for _ in range(60):
        flipped = bytearray(data)
        flipped[places.randrange(len(data))] ^= 1 << places.randrange(8)
        last.write_bytes(flipped)
        try:
            read = read_checkpoint(last)
        except CheckpointError:
            found += 1
        else:
            assert torch.equal(read["state_dict"]["w"], whole["state_dict"]["w"])
            assert read["global_step"] == whole["global_step"]
    assert found > 40


def test_a_kill_at_any_rename_leaves_a_whole_one(
    last: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace
    for survived in range(2):
        moves = 0

        def dying(self: Path, target: Path, survived: int = survived) -> Path:
            nonlocal moves
            if moves == survived:
                raise KeyboardInterrupt
            moves += 1
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dying)
            with pytest.raises(KeyboardInterrupt):
                write_checkpoint(checkpoint(3), last)
        resumed = resume_point(last)
        assert resumed is not None
        assert resumed[1]["global_step"] == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_save_that_fails_is_told_at_once_and_keeps_the_last(
    code: int, last: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(saving.os, "fsync", failing)
    with pytest.raises(CheckpointError, match=os.strerror(code)) as caught:
        WholeFiles().save_checkpoint(checkpoint(3), last)
    assert "last.ckpt is intact" in str(caught.value)
    assert read_checkpoint(last)["global_step"] == 2
    assert len(list(last.parent.iterdir())) == 2


def test_a_write_that_fails_inside_torch_is_told_too(
    last: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch turns the error of a file it writes to into one of its own."""

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", lambda *arguments: Full())
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        write_checkpoint(checkpoint(3), last)
    assert "last.ckpt is intact" in str(caught.value)


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_no_checkpoint_runs_code_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, mark = tmp_path / "last.ckpt", tmp_path / "mark"
    torch.save({**checkpoint(1), "evil": Evil(mark)}, path)
    for read in (read_checkpoint, WholeFiles().load_checkpoint, resume_point):
        with pytest.raises(CheckpointError):
            read(path)
    with pytest.raises(CheckpointError):
        WholeFiles().load_checkpoint(path, weights_only=False)
    assert not mark.exists()


def test_every_load_says_what_it_trusts() -> None:
    """Torch's own default runs code in its older versions, and where the environment asks."""
    root = Path(__file__).resolve().parents[2]
    for path in [*root.glob("pipeline/**/*.py"), *root.glob("stages/*.py")]:
        for call in path.read_text().split("torch.load(")[1:]:
            assert "weights_only=" in call.partition("\n")[0], path


def test_the_best_outlives_the_last(last: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = last.with_name("best.ckpt")
    keep(last, best)
    write_checkpoint(checkpoint(3), last)
    write_checkpoint(checkpoint(4), last)
    assert read_checkpoint(best)["global_step"] == 2

    def unknown(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(saving.os, "link", unknown)
    keep(last, best)
    assert read_checkpoint(best)["global_step"] == 4
    assert len(list(last.parent.iterdir())) == 3


@pytest.mark.parametrize("name", ["archive/data/0", "../../escaped", "/tmp/escaped"])
def test_a_zip_that_swells_is_refused_before_it_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        file.writestr(name, bytes(200 << 20))
    assert path.stat().st_size < 1 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="its members are compressed"):
        read_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    assert [own.name for own in tmp_path.iterdir()] == ["last.ckpt"]

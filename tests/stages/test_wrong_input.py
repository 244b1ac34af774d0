"""Wrong input: one clear message, exit code 2, nothing lost."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bevcask.cache import files
from bevcask.cache.reader import open_cache

Call = Callable[..., tuple[int, str, str]]


def extract(call: Call, url: Path, world: Path, *more: str) -> tuple[int, str, str]:
    return call(
        "teacher-extract",
        str(url),
        "teacher=centerpoint_tiny",
        "dataset=synthetic",
        f"dataset.root={world}",
        "dataset.split=all",
        "loader.num_workers=0",
        "store.shard_rows=1",
        *more,
    )


def distil(call: Call, world: Path, run: Path, *more: str) -> tuple[int, str, str]:
    return call(
        "student-distill",
        "student=bevdepth_tiny",
        "dataset=synthetic",
        f"dataset.root={world}",
        "dataset.split=all",
        f"run={run}",
        "trainer=tiny",
        "trainer.max_steps=3",
        "loader.batch_size=6",
        "loader.num_workers=0",
        *more,
    )


def refused(answer: tuple[int, str, str], *parts: str) -> None:
    code, out, err = answer
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert err.count("error:") == 1
    for part in parts:
        assert part in err


def test_missing_table(own_world: Path, tmp_path: Path, call: Call) -> None:
    (own_world / "v1.0-synthetic" / "ego_pose.json").unlink()
    refused(extract(call, tmp_path / "c.zarr", own_world), "ego_pose.json", "13 tables")
    assert not (tmp_path / "c.zarr").exists()


def test_missing_dataset(tmp_path: Path, call: Call) -> None:
    refused(extract(call, tmp_path / "c.zarr", tmp_path / "nowhere"), "nowhere", "dataset.root")


def test_lidar_file_of_wrong_length_keeps_what_is_committed(
    own_world: Path, tmp_path: Path, call: Call
) -> None:
    scans = sorted((own_world / "samples" / "LIDAR_TOP").iterdir())
    whole = scans[-1].read_bytes()
    scans[-1].write_bytes(whole[:-7])
    answer = extract(call, tmp_path / "c.zarr", own_world)
    refused(answer, scans[-1].name, "20")
    half = open_cache(str(tmp_path / "c.zarr"), allow_unsealed=True)
    assert half.committed
    assert not half.sealed
    scans[-1].write_bytes(whole)
    assert extract(call, tmp_path / "c.zarr", own_world)[0] == 0
    assert open_cache(str(tmp_path / "c.zarr")).sealed


def test_missing_image(own_world: Path, tmp_path: Path, call: Call) -> None:
    image = sorted((own_world / "samples" / "CAM_BACK").iterdir())[0]
    image.unlink()
    refused(distil(call, own_world, tmp_path / "run", "method=none"), image.name)


def test_truncated_jpeg(own_world: Path, tmp_path: Path, call: Call) -> None:
    image = sorted((own_world / "samples" / "CAM_FRONT").iterdir())[-1]
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    refused(distil(call, own_world, tmp_path / "run", "method=none"), image.name, "truncated")


def test_unknown_key_and_misspelt_group(tiny_world: Path, tmp_path: Path, call: Call) -> None:
    refused(extract(call, tmp_path / "c.zarr", tiny_world, "store.codek=int8"), "'codec'")
    refused(extract(call, tmp_path / "c.zarr", tiny_world, "stoer.codec=int8"), "'store'")
    refused(extract(call, tmp_path / "c.zarr", tiny_world, "method=distilbev"), "'distillbev'")
    assert not (tmp_path / "c.zarr").exists()


def test_full_disk_keeps_what_is_committed(
    tiny_world: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all = files.write_all
    left = [4]

    def fill_up(contents: dict[Path, bytes], **more: bool) -> None:
        left[0] -= any("values" in str(path) for path in contents)
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(contents, **more)

    url = tmp_path / "c.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", fill_up)
        answer = extract(call, url, tiny_world)
    refused(answer, "disk")
    assert open_cache(str(url), allow_unsealed=True).committed
    assert extract(call, url, tiny_world)[0] == 0
    assert open_cache(str(url)).sealed


def test_projected_size_is_compared_with_the_disk(
    tiny_world: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=900_000))
    url = tmp_path / "c.zarr"
    refused(extract(call, url, tiny_world), "GB short", "store.codec")
    assert open_cache(str(url), allow_unsealed=True).committed


def test_unsealed_cache(own_world: Path, tmp_path: Path, call: Call) -> None:
    scans = sorted((own_world / "samples" / "LIDAR_TOP").iterdir())
    scans[-1].write_bytes(b"")
    url = tmp_path / "c.zarr"
    extract(call, url, own_world)
    answer = distil(call, own_world, tmp_path / "run", f"cache={url}", "method=distillbev")
    refused(answer, "not sealed", "teacher-extract")


def test_cache_of_another_teacher(
    cached_world: Path, tiny_world: Path, tmp_path: Path, call: Call
) -> None:
    answer = extract(call, cached_world, tiny_world, "store.shard_rows=2", "seed=9")
    refused(answer, "teacher.weights", str(cached_world))


def test_another_selection_into_the_same_url(
    cached_world: Path, tiny_world: Path, checkpoint: Path, call: Call
) -> None:
    answer = extract(
        call,
        cached_world,
        tiny_world,
        f"teacher.checkpoint={checkpoint}",
        "store.shard_rows=2",
        "dataset.limit=2",
    )
    refused(answer, "selection", "another URL")
    assert open_cache(str(cached_world)).sealed


def test_no_cache_at_all(tiny_world: Path, tmp_path: Path, call: Call) -> None:
    refused(call("verify", str(tmp_path / "no.zarr")), "no.zarr")
    refused(call("inspect", str(tmp_path / "no.zarr")), "no.zarr")
    refused(distil(call, tiny_world, tmp_path / "run", f"cache={tmp_path / 'no.zarr'}"), "no.zarr")


def test_method_without_a_source_of_targets(tiny_world: Path, tmp_path: Path, call: Call) -> None:
    answer = distil(call, tiny_world, tmp_path / "run", "method=distillbev")
    refused(answer, "cache=URL", "teacher-extract")


def test_checkpoint_of_another_architecture(
    checkpoint: Path, tiny_world: Path, tmp_path: Path, call: Call
) -> None:
    answer = extract(
        call,
        tmp_path / "c.zarr",
        tiny_world,
        f"teacher.checkpoint={checkpoint}",
        "teacher.detector.pillar_channels=24",
    )
    refused(answer, "of another shape", "encoder")


def test_damaged_cache_is_exit_1_for_verify_and_2_for_a_reader(
    cached_world: Path, tiny_world: Path, tmp_path: Path, call: Call
) -> None:
    import shutil

    own = Path(shutil.copytree(cached_world, tmp_path / "own.zarr"))
    shard = max(own.glob("targets/bev.neck/values/**/*"), key=lambda p: p.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, out, _ = call("verify", str(own), "--json")
    assert code == 1
    assert json.loads(out)["problems"][0]["target"] == "bev.neck"
    answer = distil(call, tiny_world, tmp_path / "run", f"cache={own}", "method=distillbev")
    refused(answer, "bev.neck")


def test_places_that_cannot_be_written(
    cached_world: Path, tiny_world: Path, tmp_path: Path, call: Call
) -> None:
    file = tmp_path / "file.txt"
    file.write_text("mine")
    within = file / "inside"
    refused(extract(call, within / "c.zarr", tiny_world), str(file), "Choose another place")
    refused(extract(call, file, tiny_world), str(file), "Choose another place")
    alone = ("method=none", "val=null")
    refused(distil(call, tiny_world, file, *alone), str(file), "Choose another place")
    refused(distil(call, tiny_world, within, *alone), str(file), "Choose another place")
    mend = f"repair={within}/mend.jsonl"
    refused(call("verify", str(cached_world), mend), str(file), "Choose another place")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("verb", ["verify", "inspect", "evaluate"])
def test_a_store_nobody_can_reach(verb: str, call: Call) -> None:
    refused(
        call(verb, "nonsense://bucket/c.zarr"), "nonsense://bucket/c.zarr", "Protocol not known"
    )

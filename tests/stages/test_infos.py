"""A dataset without tables, described by an info file, through every verb."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from nuscenes.nuscenes import NuScenes

from data.index.info_files import listed, stamped, write

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bare_world(own_world: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A world that lost its tables, and the words that select it."""
    devkit = NuScenes("v1.0-synthetic", str(own_world), verbose=False)
    path = write(tmp_path / "infos.pkl", stamped(devkit))
    shutil.rmtree(own_world / "v1.0-synthetic")
    shutil.rmtree(own_world / "maps")
    words = ["dataset=infos", f"dataset.infos={path}", f"dataset.root={own_world}"]
    return own_world, [*words, "dataset.version=v1.0-synthetic", "dataset.trust_pickle=true"]


def extract(call: Call, url: Path, *words: str) -> tuple[int, str, str]:
    return call(
        "teacher-extract", str(url), "teacher=centerpoint_tiny", "loader.num_workers=0", *words
    )


def distil(call: Call, run: Path, *words: str) -> tuple[int, str, str]:
    return call(
        "student-distill", "student=bevdepth_tiny", f"run={run}", "trainer=tiny",
        "trainer.max_steps=1", "loader.batch_size=2", "loader.num_workers=0", *words,
    )  # fmt: skip


def test_every_verb_but_evaluate_runs_without_tables(
    bare_world: tuple[Path, list[str]], tmp_path: Path, call: Call
) -> None:
    _, words = bare_world
    url, run = tmp_path / "c.zarr", tmp_path / "run"
    code, out, err = call("plan", "teacher=centerpoint_tiny", *words, "--json")
    assert code == 0, err
    assert json.loads(out)["frames"] == 6
    assert json.loads(out)["frames_from"] == "dataset"
    for answer in (
        extract(call, url, *words),
        call("verify", str(url)),
        call("inspect", str(url), "sample=first", f"picture={tmp_path / 'p.png'}", words[-1]),
        distil(call, run, f"cache={url}", "method=distillbev", *words),
    ):
        assert answer[0] == 0, answer[2]
    assert (tmp_path / "p.png").is_file()
    for refused in (
        call("evaluate", str(url), f"run={tmp_path / 'e'}"),
        call("evaluate", f"student.checkpoint={run / 'student.safetensors'}",
             "student=bevdepth_tiny", f"run={tmp_path / 'e'}", *words),
        distil(call, tmp_path / "v", "method=none", *words,
               *(word.replace("dataset", "val", 1) for word in words[1:]), "val.split=all"),
    ):  # fmt: skip
        assert refused[0] == 2
        assert "an info file cannot be scored against" in refused[2]
        assert "dataset.root" in refused[2]


def _move_lidar(root: Path) -> None:
    path = root / "v1.0-synthetic" / "calibrated_sensor.json"
    records = json.loads(path.read_text())
    for record in records:
        record["translation"][2] += 0.05
    path.write_text(json.dumps(records))


@pytest.mark.parametrize("form", ["0.17", pytest.param("1.1", marks=pytest.mark.slow)])
def test_a_cache_of_infos_is_scored_against_the_tables(
    form: str,
    tiny_world: Path,
    own_world: Path,
    tmp_path: Path,
    call: Call,
    caplog: pytest.LogCaptureFixture,
) -> None:
    devkit = NuScenes("v1.0-synthetic", str(tiny_world), verbose=False)
    content = stamped(devkit) if form == "1.1" else listed(devkit, old=True)
    path = write(tmp_path / "infos.pkl", content)
    words = [f"dataset.root={tiny_world}", "dataset.version=v1.0-synthetic", "dataset.split=all"]
    url = tmp_path / "c.zarr"
    infos = [f"dataset.infos={path}", "dataset.trust_pickle=true"]
    code, _, err = extract(call, url, *words, *infos)
    assert code == 0, err
    code, out, err = call(
        "evaluate", str(url), f"run={tmp_path / 'e'}", *words, "dataset.infos=", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["coverage"] == "6 of 6 frames"
    assert ("agree within what the info file rounds" in caplog.text) == (form == "1.1")
    _move_lidar(own_world)
    words[0] = f"dataset.root={own_world}"
    code, _, err = call("evaluate", str(url), f"run={tmp_path / 'f'}", *words, "dataset.infos=")
    assert code == 2
    assert "calibration.LIDAR_TOP" in err


def test_consent_reaches_every_depth_of_verify(
    bare_world: tuple[Path, list[str]], tmp_path: Path, call: Call
) -> None:
    _, words = bare_world
    url = tmp_path / "c.zarr"
    assert extract(call, url, *words)[0] == 0
    for deeper in (["check=meaning"], ["resample=1", "teacher=centerpoint_tiny"]):
        code, out, err = call("verify", str(url), *deeper, *words[1:], "--json")
        assert code == 0, err
        assert json.loads(out)["problems"] == []
        code, _, err = call("verify", str(url), *deeper, *words[1:-1])
        assert code == 2
        assert "say dataset.trust_pickle=true" in err


def test_a_cache_without_consent_is_not_extracted(
    bare_world: tuple[Path, list[str]], tmp_path: Path, call: Call
) -> None:
    _, words = bare_world
    code, _, err = extract(call, tmp_path / "c.zarr", *words[:-1])
    assert code == 2
    assert "dataset.trust_pickle=true" in err
    assert not (tmp_path / "c.zarr").exists()


def test_a_missing_image_is_named(
    bare_world: tuple[Path, list[str]], tmp_path: Path, call: Call
) -> None:
    world, words = bare_world
    image = sorted((world / "samples" / "CAM_BACK").iterdir())[-1]
    image.unlink()
    code, _, err = distil(call, tmp_path / "run", "method=none", *words)
    assert code == 2
    assert image.name in err
    assert err.count("error:") == 1


@pytest.mark.parametrize("verb", ["plan", "teacher-extract", "student-distill"])
def test_help_lists_the_keys(verb: str) -> None:
    from bevcask.cli import key_help

    assert "dataset.infos=" in key_help(verb)
    assert "dataset.trust_pickle=" in key_help(verb)

"""A run folder belongs to one configuration."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bevcask.compose import compose
from bevcask.errors import ConfigError
from bevcask.training import record
from bevcask.training.record import RunFolder
from bevcask.verbs import DistillConfig

HOLD = """
import sys
from pathlib import Path
from bevcask.training.record import RunFolder
with RunFolder(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.read()
"""


def config(run: Path, **changes: object) -> DistillConfig:
    return DistillConfig.model_validate({"run": str(run), **changes})


def test_same_configuration_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(config(tmp_path))
    elsewhere = {
        "loader": {"num_workers": 7, "prefetch": 5, "local": "/scratch"},
        "trainer": {"profile": 3},
    }
    folder.open(config(tmp_path / "elsewhere", device="cpu", **elsewhere))
    assert folder.finished() is None


def test_other_configuration_is_refused_by_key(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(config(tmp_path))
    changed = config(tmp_path, seed=4, trainer={"lr": 0.5})
    with pytest.raises(ConfigError, match=r"seed: was 0, now 4\n- trainer.lr: was 0.0002, now 0.5"):
        folder.open(changed)


def test_starting_over_clears_only_what_a_run_wrote(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(config(tmp_path))
    folder.checkpoints.mkdir()
    folder.last.write_bytes(b"x")
    folder.metrics.write_text('{"mAP": 1}')
    (folder.path / "mine.txt").write_text("kept")
    assert folder.finished() == {"mAP": 1}
    folder.open(config(tmp_path, seed=4, resume=False))
    assert folder.finished() is None
    assert not folder.last.exists()
    assert (folder.path / "mine.txt").read_text() == "kept"


def test_a_step_without_validation_has_no_result(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).validation_result(3) == {}


def test_two_processes_never_train_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_PATIENCE_SECONDS", 0.2)
    folder = RunFolder(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        busy = pytest.raises(ConfigError, match=r"run: another process is training in this folder")
        with busy, folder.held():
            pass
        other.kill()
        other.wait()
        with folder.held():
            pass


def test_a_folder_is_free_again_when_its_run_ends(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for _ in range(2):
        with folder.held():
            folder.open(config(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_a_damaged_file_is_named_and_can_be_removed(name: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(config(tmp_path))
    folder.finish({"mAP": 1})
    assert not list(folder.path.glob("*.partial"))
    path = folder.path / name
    path.write_text(path.read_text()[:5])
    with pytest.raises(ConfigError, match=rf"{name}: damaged, no JSON .* Remove this file alone"):
        folder.open(config(tmp_path)) if name == "config.json" else folder.finished()
    path.unlink()
    folder.open(config(tmp_path))
    assert folder.finished() == (None if name == "metrics.json" else {"mAP": 1})


@pytest.mark.parametrize(
    "key",
    [
        "cache",
        "dataset.root",
        "val.root",
        "dataset.infos",
        "student.checkpoint",
        "student.init",
        "student.detector.config",
    ],
)
def test_a_run_is_the_same_however_its_paths_are_written(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "w" / "a"
    place.mkdir(parents=True)
    (tmp_path / "link").symlink_to(place)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = RunFolder(tmp_path / "run")
    home = ["~/w/a"] if "detector" not in key else []
    for spelling in ("w/a", "w/a/", "./w/a", "w/../w/a", str(place), "link", *home):
        folder.open(compose(DistillConfig, [f"{key}={spelling}"]))
    with pytest.raises(ConfigError, match=rf"{key}: was {place}, now {tmp_path / 'w'}\n"):
        folder.open(compose(DistillConfig, [f"{key}=w"]))


def test_names_of_the_catalog_are_the_places_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEVCASK_HOME", str(tmp_path))
    entry = {"root": str(tmp_path / "d"), "version": "v", "licence": "l", "description": "d"}
    (tmp_path / "catalog.yaml").write_text(json.dumps({"datasets": {"mine": entry}}))
    folder = RunFolder(tmp_path / "run")
    folder.open(compose(DistillConfig, [f"dataset.root={tmp_path}/d"]))
    folder.open(compose(DistillConfig, ["dataset.root=catalog:mine"]))

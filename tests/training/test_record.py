"""A run folder belongs to one configuration."""

from pathlib import Path

import pytest

from bevcask.config import RunConfig
from bevcask.errors import ConfigError
from bevcask.training.record import RunFolder


def config(run: Path, **changes: object) -> RunConfig:
    return RunConfig.model_validate({"run": str(run), **changes})


def test_same_configuration_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(config(tmp_path))
    folder.open(config(tmp_path / "elsewhere", device="cpu", loader={"num_workers": 7}))
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

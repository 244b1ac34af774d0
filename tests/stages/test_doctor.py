"""doctor says what is there, and what to do about what is not."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bevcask.disk_rate import DiskRate
from bevcask.stages import doctor
from bevcask.verbs import DoctorConfig


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_WATCHED", 0.0)


def test_everything_is_said_as_json(tiny_world: Path, tmp_path: Path, call: Any) -> None:
    code, out, err = call(
        "doctor", str(tmp_path / "later" / "c.zarr"), "dataset=synthetic",
        f"dataset.root={tiny_world}", "dataset.split=all", "--json",
    )  # fmt: skip
    assert code == 0, err
    checks = json.loads(out)["checks"]
    assert {"environment", "device", "open files", "cache", "dataset", "mmdet3d"} <= checks.keys()
    assert checks["dataset"]["state"] == "ok"
    assert "MB/s" in checks["cache"]["found"]
    assert "6 frames of 2 scenes" in checks["dataset"]["found"]
    assert all(row["next"] for row in checks.values() if row["state"] in ("warning", "optional"))
    assert not list(tmp_path.rglob(".bevcask-rate-*"))


def test_a_dataset_without_its_sensors_is_wrong(own_world: Path, call: Any) -> None:
    for path in (own_world / "samples" / "CAM_FRONT_LEFT").iterdir():
        path.unlink()
    given = ("dataset=synthetic", f"dataset.root={own_world}", "dataset.split=all")
    code, out, _ = call("doctor", *given, "--json")
    assert code == 1
    assert "is not there" in json.loads(out)["checks"]["dataset"]["found"]
    code, out, _ = call("doctor", "dataset=nuscenes", "dataset.root=nowhere")
    assert code == 1
    assert "wrong" in out


def test_little_of_something_is_told_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_shared", lambda: 64_000_000)
    limits = SimpleNamespace(RLIMIT_NOFILE=7, getrlimit=lambda _: (1024, 524288))
    monkeypatch.setattr(doctor, "resource", limits)
    slow = DiskRate(Path("/caches"), 20e6, settled=True, free=10**12)
    monkeypatch.setattr(doctor, "disk_rate", lambda *_: slow)
    checks = doctor.run(DoctorConfig(cache="c.zarr"))["checks"]
    assert checks["shared memory"]["next"].startswith("in a container: docker run --shm-size")
    assert checks["open files"]["next"] == "ulimit -n 65536, for many loader workers"
    assert checks["cache"]["state"] == "warning"
    assert "20 MB/s" in checks["cache"]["found"]


def test_a_place_that_cannot_be_written_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> DiskRate:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor, "disk_rate", full)
    result = doctor.run(DoctorConfig(cache="c.zarr"))
    assert not result["ok"]
    assert "No space left" in result["checks"]["cache"]["found"]


def test_what_nobody_asked_about_is_not_missing() -> None:
    checks = doctor.run(DoctorConfig())["checks"]
    assert checks["cache"]["state"] == checks["dataset"]["state"] == "not asked"


@pytest.mark.parametrize(
    ("url", "state", "said"),
    [
        ("foo://bar/c.zarr", "wrong", "Protocol not known: foo"),
        ("memory://c.zarr", "ok", "memory://c.zarr answers"),
    ],
)
def test_a_store_is_asked(url: str, state: str, said: str) -> None:
    row = doctor.run(DoctorConfig(cache=url))["checks"]["cache"]
    assert row["state"] == state
    assert said in row["found"]


def test_a_gpu_needs_no_other_version_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "version", lambda _: "2.13.0+cpu")
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.torch.version, "cuda", None)
    assert "torch==2.13.0," in doctor._device()["next"]
    monkeypatch.setattr(doctor.torch.version, "cuda", "13.0")
    assert "nvidia-smi" in doctor._device()["next"]

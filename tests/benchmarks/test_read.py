"""Every store gives back what it was given, and the arithmetic of the comparison is right."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.example import build

pytest.importorskip("h5py", reason="peers are not installed: pip install -e '.[bench]'")
pytest.importorskip("lmdb", reason="peers are not installed: pip install -e '.[bench]'")
pytest.importorskip("webdataset", reason="peers are not installed: pip install -e '.[bench]'")

pytestmark = [  # webdataset closes its tar files when they are collected, not before
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("read")


def test_end_to_end(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(read, "make_cache", lambda size, folder: Path(build(tmp_path / "c.zarr")))
    size = read.Size((), "none", num_frames=6, num_reads=6)
    result = read.measure(size, tmp_path, 1)
    json.dumps(result)
    assert set(result["bytes_a_sample"]) == {
        "bevcask",
        *(f"{peer}, {payload}" for peer in read.PEERS for payload in ("stored", "float16")),
    }
    assert all(value > 0 for times in result["seconds"].values() for value in times)
    lines = read.table(result).splitlines()
    assert len(lines) == 3 + 2 * len(read.PEERS)
    row = next(line for line in lines if line.startswith("| LMDB, stored"))
    warm = result["seconds"]["bevcask, warm"][0] / result["seconds"]["LMDB, stored, warm"][0]
    assert f" {warm:.2f} |" in row


def test_a_store_that_errs_is_caught(read: Any, tmp_path: Path) -> None:
    samples = read.stored_samples(Path(build(tmp_path / "c.zarr")))
    for name, make in read.PEERS.items():
        folder = tmp_path / name
        folder.mkdir()
        store = make(folder)
        store.write(samples)
        read.check_contents(store, samples)
        damaged = [{key: np.array(array) for key, array in sample.items()} for sample in samples]
        for sample in damaged:
            sample["bev.neck/values"].flat[7] ^= 1
        with pytest.raises(AssertionError, match=r"bev\.neck/values"):
            read.check_contents(store, damaged)
        store.close()


def test_float16_holds_the_values(read: Any, tmp_path: Path) -> None:
    sample = read.stored_samples(Path(build(tmp_path / "c.zarr")))[0]
    floats = read.as_float16(sample)
    assert not [key for key in floats if key.endswith("/scale")]
    expected = sample["bev.neck/values"] * sample["bev.neck/scale"][:, None, None]
    np.testing.assert_allclose(floats["bev.neck/values"], expected, rtol=1e-3)
    assert floats["head.boxes/values"].dtype == np.float32

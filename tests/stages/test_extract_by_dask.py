"""Extraction on the workers of a dask cluster: the store is that of one process, whoever dies."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from multiprocessing import current_process
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client, KilledWorker

from bevcask import cluster
from bevcask.cache.verify_bytes import verify
from bevcask.errors import ClusterError, ConfigError
from bevcask.worker import own_device, require_children, unwanted
from cache.test_writer import different_files
from command_words import last_of_each_key
from slow_teacher import TYPE

Call = Callable[..., tuple[int, str, str]]
WORKERS, KILLS = 3, 10
PATIENCE = 30  # seconds from a signal to the end


@pytest.fixture(scope="module")
def words(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An extraction of six frames, a shard each; its teacher writes `loads` in the same folder."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "wants.yaml").write_text("type: teachers.test_outside:Wants\n")
    return [
        f"teacher.type={TYPE}",
        f"teacher.log={folder / 'loads'}",
        f"method={folder / 'wants.yaml'}",
        "dataset=synthetic",
        f"dataset.root={tiny_world}",
        "dataset.split=all",
        "loader.num_workers=0",
        "store.shard_rows=1",
        "trust_code=true",
    ]


@pytest.fixture(scope="module")
def whole(words: list[str], call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes; read only."""
    url = tmp_path_factory.mktemp("whole") / "whole.zarr"
    extract(call, url, words)
    return url


def extract(call: Call, url: Path, words: list[str], code: int = 0) -> dict[str, Any]:
    got, out, err = call("teacher-extract", url, *words, "--json")
    assert got == code, err
    return json.loads(out) if code == 0 else {"error": " ".join(err.split())}


def loads(words: list[str]) -> list[str]:
    """Return the pid of each process that loaded the teacher, and forget them."""
    log = Path(words[1].partition("=")[2])
    found = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return found


def test_workers_make_what_one_process_makes(
    whole: Path, words: list[str], scheduler: str, call: Call, tmp_path: Path
) -> None:
    url = tmp_path / "dask.zarr"
    loads(words)
    by_dask = [*words, "engine=dask", f"scheduler={scheduler}"]
    half = extract(call, url, [*by_dask, "part=1/2"])
    assert (half["sealed"], half["shards_left"]) == (False, 3)
    assert extract(call, url, by_dask)["sealed"]
    assert different_files(whole, url) == []
    assert verify(str(url)).ok
    assert len(loads(words)) == 2  # once a run: the two workers are one process
    assert extract(call, url, by_dask)["sealed"]
    assert loads(words) == []


def test_what_a_worker_raises_is_what_is_said(
    whole: Path, words: list[str], own_world: Path, scheduler: str, call: Call, tmp_path: Path
) -> None:
    url = tmp_path / "dask.zarr"
    by_dask = [*words, f"dataset.root={own_world}", "engine=dask", f"scheduler={scheduler}"]
    extract(call, url, [*by_dask, "part=1/3"])
    for scan in own_world.glob("samples/LIDAR_TOP/*"):
        scan.unlink()
    assert "missing, of frame" in extract(call, url, by_dask, code=2)["error"]


def until_unwanted(folder: str) -> None:
    Path(folder, "begun").touch()
    while not unwanted():
        time.sleep(0.01)
    Path(folder, "ended").touch()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_piece_notices_that_nobody_waits_for_it(scheduler: str, tmp_path: Path) -> None:
    with Client(scheduler) as client:  # type: ignore[no-untyped-call]
        future = client.submit(until_unwanted, str(tmp_path), pure=False)
        wait_for(tmp_path / "begun")
        assert not (tmp_path / "ended").exists()
        future.cancel()
        wait_for(tmp_path / "ended")


def test_a_scheduler_that_is_none(
    words: list[str], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_SECONDS", 0.1)
    by_dask = [*words, "engine=dask", "scheduler=tcp://127.0.0.1:9"]
    error = extract(call, tmp_path / "x.zarr", by_dask, code=2)["error"]
    assert "scheduler=tcp://127.0.0.1:9: no dask scheduler answers there" in error
    assert list(tmp_path.iterdir()) == []


def test_without_dask(
    words: list[str], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    error = extract(call, tmp_path / "x.zarr", [*words, "engine=dask"], code=2)["error"]
    assert "pip install 'bevcask[dask]'" in error


def test_a_daemon_starts_no_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    require_children(2)
    monkeypatch.setitem(current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    require_children(0)
    for number in (2, "auto"):
        with pytest.raises(ConfigError, match="DASK_DISTRIBUTED__WORKER__DAEMON=False"):
            require_children(number)


@pytest.mark.parametrize(
    ("worker", "device", "own"),
    [
        (3, "auto", "cuda:3"),
        ("SLURMCluster-9", "auto", "cuda:1"),
        ("some", "auto", "auto"),
        (3, "cuda:0", "cuda:0"),
        (3, "cpu", "cpu"),
    ],
)
def test_each_worker_of_a_host_has_its_own_gpu(
    worker: int | str, device: str, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("distributed.get_worker", lambda: SimpleNamespace(name=worker))
    assert own_device(device) == own


def test_workers_that_die_of_a_piece_are_counted() -> None:
    class Dies:
        def result(self) -> None:
            raise KilledWorker("x", SimpleNamespace(address="tcp://1"), 3)  # type: ignore[no-untyped-call,arg-type]

    class Lost:
        def result(self) -> None:
            raise CancelledError

    client = SimpleNamespace(cancel=lambda futures: None)
    for future, message in ((Dies(), "on 4 different workers"), (Lost(), "scheduler is gone")):
        client.map = lambda *_, own=future, **__: [own]
        with pytest.raises(ClusterError, match=message):
            list(cluster.Workers(client).map(str, [0]))


@pytest.fixture(scope="module")
def big(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An extraction of 40 frames that takes 0.3 s a shard of one."""
    from bevcask.synthetic import synthesize
    from bevcask.verbs import SynthesizeConfig

    world = tmp_path_factory.mktemp("big") / "world"
    tiny = {"image_width": 64, "image_height": 36, "num_sweeps": 0, "workers": 0}
    synthesize(
        SynthesizeConfig(out=str(world), num_scenes=4, num_keyframes=10, val_scenes=1, **tiny)
    )
    return [*words, f"dataset.root={world}", "teacher.seconds=0.3"]


@pytest.fixture(scope="module")
def big_whole(big: list[str], call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of it; read only."""
    url = tmp_path_factory.mktemp("big_whole") / "whole.zarr"
    extract(call, url, [*big, "teacher.seconds=0"])
    return url


@contextmanager
def running(url: Path, words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """An extraction of its own, which ends with the block."""
    given = last_of_each_key("teacher-extract", url, *words)
    command = [sys.executable, "-m", "bevcask.cli", *given]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "100"
    with (
        url.with_suffix(".log").open("w") as log,
        subprocess.Popen(command, stderr=log, text=True, env=environment) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def address(url: Path, process: subprocess.Popen[str]) -> str:
    """Wait until an extraction says where its scheduler is; return its address."""
    while process.poll() is None:
        if found := re.search(r"tcp://\S+\d", url.with_suffix(".log").read_text()):
            return found[0]
        time.sleep(0.1)
    raise AssertionError(url.with_suffix(".log").read_text())


@pytest.mark.slow
def test_killed_workers_cost_nothing_but_time(
    big: list[str], big_whole: Path, tmp_path: Path
) -> None:
    url = tmp_path / "dask.zarr"
    loads(big)
    draw, killed = random.Random(0), set[int]()
    words = [*big, "teacher.seconds=1", "engine=dask", f"workers={WORKERS}"]
    with running(url, words) as process:
        with Client(address(url, process)) as client:  # type: ignore[no-untyped-call]
            while len(killed) < KILLS:
                time.sleep(draw.uniform(0.2, 1.5))
                assert process.poll() is None, f"over after {len(killed)} kills"
                living = set(client.run(os.getpid, on_error="ignore").values()) - killed
                if living:
                    victim = draw.choice(sorted(living))
                    os.kill(victim, signal.SIGKILL)
                    killed.add(victim)
        assert process.wait(timeout=300) == 0, url.with_suffix(".log").read_text()
    assert different_files(big_whole, url) == []
    assert verify(str(url)).ok
    pids = loads(big)
    assert len(set(pids)) == len(pids) <= WORKERS + KILLS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]
)
def test_an_interrupted_run_leaves_nothing_running(
    number: signal.Signals, code: int, big: list[str], big_whole: Path, call: Call, tmp_path: Path
) -> None:
    url = tmp_path / "dask.zarr"
    loads(big)
    with running(url, [*big, "engine=dask", "workers=2"]) as process:
        while not list(url.glob("commit/*/c.*")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(timeout=PATIENCE) == code, url.with_suffix(".log").read_text()
    assert "Traceback" not in url.with_suffix(".log").read_text()
    time.sleep(1.0)
    assert [pid for pid in loads(big) if Path(f"/proc/{pid}").exists()] == []
    assert not verify(str(url)).ok
    extract(call, url, [*big, "teacher.seconds=0"])
    assert different_files(big_whole, url) == []

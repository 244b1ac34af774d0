"""The whole job with its cache in a bucket: the network fails, processes are killed."""

import csv
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bevcask.cache import open_cache, verify
from bevcask.cache.files import Files
from bevcask.cache.lease import FOLDER as LEASES
from bucket import BUCKET, Proxy, bucket
from small_student import STUDENT

pytest.importorskip("moto.server")
pytestmark = pytest.mark.slow
Call = Callable[..., tuple[int, str, str]]
RATE = 0.01  # of requests are answered with 5xx, as many are cut, as many wait
PATIENCE = 300


@pytest.fixture
def endpoint() -> Iterator[str]:
    with bucket() as server:
        yield server


@pytest.fixture
def words(teacher_words: list[str]) -> list[str]:
    return [*teacher_words, "store.shard_rows=1", "--json"]


def extract(call: Call, url: str, words: list[str]) -> dict[str, Any]:
    code, out, err = call("teacher-extract", url, *words)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def contents(url: str) -> dict[str, bytes | None]:
    """Return every file but those that say who wrote it when."""
    files = Files(url)
    return files.get_many(key for key in files.list() if not key.startswith("provenance/"))


def kill_two_writers(url: str, words: list[str]) -> int:
    """Let two processes fill a cache, kill and start them again; return how often."""
    seeded, kills = random.Random(0), 0

    def start(part: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "bevcask.cli", "teacher-extract", url, *words]
        return subprocess.Popen(
            [*command, f"part={part}/2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    running = {part: start(part) for part in (1, 2)}
    done, files = 0, Files(url)
    while kills < 4:
        deadline = time.monotonic() + PATIENCE
        while (now := sum("/c." in key for key in files.list("targets"))) <= done:
            assert time.monotonic() < deadline
            if all(one.poll() is not None for one in running.values()):
                break
            time.sleep(0.05)
        done = now
        time.sleep(seeded.uniform(0, 0.5))
        for part in seeded.choice(((1,), (2,), (1, 2))):
            running[part].send_signal(signal.SIGKILL)
            running[part].communicate()
            running[part] = start(part)
        kills += 1
    for one in running.values():
        _, err = one.communicate(timeout=PATIENCE)
        assert one.returncode == 0, err.decode()
    return kills


def test_extract_add_verify_repair_train_and_evaluate(
    endpoint: str, words: list[str], tiny_world: Path, call: Call, tmp_path: Path
) -> None:
    whole, url = str(tmp_path / "whole.zarr"), f"s3://{BUCKET}/whole.zarr"
    extract(call, whole, words)
    with Proxy(endpoint, rate=RATE) as proxy:
        assert kill_two_writers(url, [*words, "method=none"])
        extract(call, url, words)
        assert contents(url) == contents(whole)
        assert verify(url).ok

        mend, files = tmp_path / "mend.jsonl", Files(url)
        key = "targets/bev.neck/values/c.1.0.0.0"
        data = bytearray(files.get(key) or b"")
        data[50] ^= 1
        files.put(key, bytes(data))
        files.delete("targets/bev.neck/scale/c.4.0")
        assert call("verify", url, f"repair={mend}")[0] == 1
        assert extract(call, url, [*words, f"repair={mend}"])["repaired"] == 2
        assert contents(url) == contents(whole)
        assert call("verify", url)[0] == 0
        assert not list(files.list(LEASES))

        trained = [train(call, cache, tiny_world, tmp_path) for cache in (whole, url)]
        assert trained[0] == trained[1]
        scored = [evaluate(call, cache, tiny_world, tmp_path) for cache in (whole, url)]
        assert scored[0] == scored[1]
    assert open_cache(url).sealed
    total = proxy.fates.total()
    sys.stderr.write(f"{total} requests: {dict(proxy.fates)}\n")
    assert proxy.fates["well"] < total


def train(call: Call, cache: str, world: Path, folder: Path) -> list[str]:
    """Return the losses of 40 steps."""
    run = folder / f"trained-{'bucket' if '://' in cache else 'disk'}"
    code, _, err = call(
        "student-distill",
        cache,
        *STUDENT,
        "method=distillbev",
        "dataset=synthetic",
        f"dataset.root={world}",
        "dataset.split=synthetic_train",
        f"run={run}",
        "trainer.max_steps=40",
        "trainer.log_every=1",
        "loader.num_workers=1",
        f"loader.local={run / 'near'}",
        "loader.local_gb=0.001",  # for the small ones
    )
    assert code == 0, err
    with (run / "logs" / "csv" / "sitting_0" / "metrics.csv").open() as file:
        losses = [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 40
    return losses


def evaluate(call: Call, cache: str, world: Path, folder: Path) -> Any:
    code, out, err = call(
        "evaluate",
        cache,
        "dataset=synthetic",
        f"dataset.root={world}",
        "dataset.split=synthetic_val",
        "loader.num_workers=0",
        f"run={folder / 'scores'}",
        "--json",
    )
    assert code == 0, err
    result = json.loads(out)
    return result["mAP"], result["NDS"]


def test_errors_are_a_message_and_exit_code_2(
    endpoint: str, words: list[str], call: Call, tmp_path: Path
) -> None:
    nowhere = "s3://nowhere/c.zarr"
    verbs = [("inspect",), ("verify",), ("evaluate",), ("teacher-extract", *words)]
    for verb, *rest in verbs:
        code, _, err = call(verb, nowhere, *rest)
        assert code == 2
        assert "there is no bucket nowhere" in " ".join(err.split())
        assert "Traceback" not in err
    with Proxy(endpoint, denies=True):
        for verb, *rest in verbs:
            code, _, err = call(verb, f"s3://{BUCKET}/c.zarr", *rest)
            assert code == 2
            assert "403" in err
            assert "Traceback" not in err

"""How fast does one process read random samples of a cache in a bucket, beside raw range requests?

    python benchmarks/bucket.py FOLDER [--frames N] [--rounds N]

FOLDER gets a cache of the trained tiny teacher of the demo (see `read.py`), which is copied into a
bucket of moto's server, a process of its own on this machine. Every arm reads the same random
samples, in batches of four.

    raw         the bytes of the samples' rows alone, by plain HTTP over kept connections, all at
                once: what this server can give
    driver      the same ranges by s3fs, which signs and parses each request
    ranges      the same as the reader gets them, unchecked
    first       the reader, freshly opened: indexes, scales and rows, every byte checked, decoded
    bucket      the reader once it has read all samples before: rows
    near        the same with copies near by (`loader.local`), as from the second epoch on
    disk        the cache on the local disk

Rates are samples a second. A server that is itself written in Python and shares two cores with its
client answers some hundred requests a second; Amazon's answers thousands, some ten milliseconds
late, so what counts there is how many are under way at a time (`signed.CONNECTIONS`).
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from socket import create_server
from statistics import median
from threading import local
from time import perf_counter
from typing import Any

import torch
from measure import ground, interleave, ratio, report
from read import SEED, SIZES, make_cache

from bevcask.cache import Cache, open_cache
from bevcask.cache.files import Files, Span
from bevcask.cache.near import Near
from bevcask.cache.signed import CONNECTIONS

BATCH = 4
BUCKET = "bench"
GOAL = ">= 0.6"
SAMPLES = 32


@contextmanager
def server() -> Iterator[str]:
    """Run moto's server in another process, and name it by the usual variables."""
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    silent = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=silent, stderr=silent) as process:
        host = f"127.0.0.1:{port}"
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://{host}",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        try:
            _make_bucket(host)
            yield host
        finally:
            process.terminate()


def _make_bucket(host: str) -> None:
    for _ in range(300):
        try:
            connection = HTTPConnection(host)
            connection.request("PUT", f"/{BUCKET}")
            assert connection.getresponse().status == 200
            return
        except ConnectionError:
            time.sleep(0.1)
    raise SystemExit(f"moto's server did not begin to answer at {host}.")


def upload(folder: Path) -> str:
    """Copy a cache into the bucket; return its URL."""
    url = f"s3://{BUCKET}/cache.zarr"
    keys = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    Files(url).put_many({key: (folder / key).read_bytes() for key in keys})
    return url


class Raw:
    """Range requests over plain HTTP, one kept connection a thread."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._own = local()
        self._pool = ThreadPoolExecutor(CONNECTIONS)

    def fetch(self, spans: Sequence[Span]) -> int:
        return sum(self._pool.map(self._one, spans))

    def _one(self, span: Span) -> int:
        if not hasattr(self._own, "connection"):
            self._own.connection = HTTPConnection(self._host)
        connection: HTTPConnection = self._own.connection
        headers = {
            "Range": f"bytes={span.start}-{span.stop - 1}",
            "Authorization": "AWS someone:signature",  # which moto does not check
        }
        connection.request("GET", f"/{BUCKET}/cache.zarr/{span.key}", headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        assert answer.status == 206, answer.status
        assert len(data) == span.stop - span.start
        return len(data)


def row_spans(cache: Cache) -> dict[str, list[Span]]:
    """Return where each sample's rows are, by token: what the reader asks for once it is warm."""
    cache.read_batch(cache.frames.tokens)
    asked: list[Span] = []
    source = cache._files
    fetch = source.get_ranges

    def noting(spans: Sequence[Span]) -> Iterator[bytes | None]:
        asked.extend(spans)
        return fetch(spans)

    source.get_ranges = noting  # type: ignore[method-assign]
    found = {}
    for token in cache.frames.tokens:
        asked.clear()
        cache.read(token)
        found[token] = list(asked)
    return found


class Clocks:
    """Seconds a sample of every arm; in a round all of them read the same samples."""

    def __init__(self, host: str, folder: Path, url: str, near: Near) -> None:
        self._raw, self._url = Raw(host), url
        self._files = Files(url)
        self._spans = row_spans(open_cache(str(folder)))
        self._warm = {
            "bucket": open_cache(url),
            "near": open_cache(url, near=near),
            "disk": open_cache(str(folder)),
        }
        self._tokens = list(self._warm["disk"].frames.tokens)
        for cache in self._warm.values():
            cache.read_batch(self._tokens)
        self._turns: dict[str, int] = {}

    def arms(self) -> dict[str, Any]:
        return {
            "raw": lambda: self._ranges("raw"),
            "driver": lambda: self._ranges("driver"),
            "ranges": lambda: self._ranges("ranges"),
            "first": self._first,
            **{name: partial(self._read, name, cache) for name, cache in self._warm.items()},
        }

    def _order(self, arm: str) -> list[str]:
        turn = self._turns[arm] = self._turns.get(arm, -1) + 1
        return random.Random(turn).sample(self._tokens, min(SAMPLES, len(self._tokens)))

    def _ranges(self, arm: str) -> float:
        spans = [span for token in self._order(arm) for span in self._spans[token]]
        start = perf_counter()
        if arm == "raw":
            self._raw.fetch(spans)
        elif arm == "driver":
            paths = [f"{BUCKET}/cache.zarr/{span.key}" for span in spans]
            starts, stops = [span.start for span in spans], [span.stop for span in spans]
            self._files._remote.cat_ranges(paths, starts, stops, on_error="raise")
        else:
            assert None not in list(self._files.get_ranges(spans))
        return (perf_counter() - start) / min(SAMPLES, len(self._tokens))

    def _first(self) -> float:
        return self._read("first", open_cache(self._url))

    def _read(self, arm: str, cache: Cache) -> float:
        order = self._order(arm)
        start = perf_counter()
        for first in range(0, len(order), BATCH):
            cache.read_batch(order[first : first + BATCH])
        return (perf_counter() - start) / len(order)

    def requests(self) -> tuple[float, float]:
        """Return the ranges and bytes of a sample's rows, on average."""
        spans = [span for found in self._spans.values() for span in found]
        total = sum(span.stop - span.start for span in spans)
        return len(spans) / len(self._spans), total / len(self._spans)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Fill a cache, copy it into a bucket, time all arms."""
    size = SIZES["tiny"]
    result = ground(torch.device("cpu"), [*size.words, f"batch={BATCH}"], SEED)
    torch.set_num_threads(1)
    cache = make_cache(size, folder)
    shutil.rmtree(folder / "near", ignore_errors=True)
    with server() as host:
        clocks = Clocks(host, cache, upload(cache), Near((folder / "near").absolute(), 10**10))
        seconds = interleave(clocks.arms(), rounds, SEED)
        num_ranges, num_bytes = clocks.requests()

    def rates(ours: str, theirs: str, goal: str | None = None) -> dict[str, Any]:
        pairs = zip(seconds[ours], seconds[theirs], strict=True)
        return ratio(f"{ours} / {theirs}, samples/s", [b / a for a, b in pairs], goal)

    ratios = [
        rates("bucket", "raw", GOAL),
        rates("ranges", "driver"),
        rates("first", "raw"),
        rates("near", "disk"),
    ]
    return {
        **result,
        "weights": size.weights,
        "seconds": seconds,
        "samples_per_second": {name: 1 / median(values) for name, values in seconds.items()},
        "ranges_a_sample": num_ranges,
        "bytes_a_sample": num_bytes,
        "connections": CONNECTIONS,
        "ratios": ratios,
    }


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    report("bucket", measure(arguments.folder, arguments.rounds), arguments.out)


if __name__ == "__main__":
    main()

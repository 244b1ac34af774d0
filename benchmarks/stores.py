"""Nine ways to keep the targets of samples on a disk, as their users keep them.

Each class writes a list of samples (dicts of arrays) into a folder of its own and yields batches of
them, stacked. Compression is per sample, so that a random sample costs one decoding.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr
from numcodecs.zstd import Zstd

from bevcask.cache import open_cache
from bevcask.cache.chunks import decode_chunk, decode_index, decode_into
from bevcask.cache.files import Files
from bevcask.cache.stored import Part, Stored

try:
    import h5py
    import lmdb
    import tensorstore
    import webdataset
except ImportError as missing:
    raise SystemExit(
        f"benchmarks/read.py compares with {missing.name}, which is not installed. Install the "
        "peers: pip install -c constraints.txt -e '.[bench]'"
    ) from None

Arrays = dict[str, npt.NDArray[Any]]
Numbered = tuple[list[int], Arrays]
_SHARD = 16  # samples a tar
_ROWS = 8  # samples a shard, as ours


class Store:
    """Samples in a folder; `open` before reading, `close` after."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, samples: Sequence[Arrays]) -> None:
        raise NotImplementedError

    def open(self) -> None:
        """Get ready to read."""

    def close(self) -> None:
        """Let go of every file."""

    def read(self, numbers: list[int]) -> Arrays:
        """Return samples by number, stacked."""
        raise NotImplementedError

    def batches(self, order: Sequence[int], size: int) -> Iterator[Numbered]:
        """Yield the samples of an order in batches: their numbers, and what they hold."""
        for start in range(0, len(order), size):
            numbers = list(order[start : start + size])
            yield numbers, self.read(numbers)


class Bevcask(Store):
    """A sealed cache; somebody else wrote it."""

    def open(self) -> None:
        self._cache = open_cache(str(self.folder))

    def read(self, numbers: list[int]) -> Arrays:
        tokens = [self._cache.frames.tokens[number] for number in numbers]
        return flat(self._cache.read_batch(tokens))


class Believing(Bevcask):
    """The same cache, read as if no file could change its place: what that check costs."""

    def open(self) -> None:
        super().open()
        cache = self._cache
        cache._stored = _BelievingStored(Files(cache.url), cache.layout, cache.commit, None)


class _BelievingStored(Stored):
    """Takes lengths from the commit, and no digest or checksum of a row."""

    def _row(self, part: Part, place: int, data: bytes, out: npt.NDArray[Any]) -> None:
        decode_into(out, data, part.key)

    def _index(self, part: Part, end: int, data: bytes) -> npt.NDArray[np.int64]:
        spans = decode_index(data, self._layout.shard_rows, end, part.key)
        return np.array([span or (-1, -1) for span in spans])

    def _chunk(self, part: Part, data: bytes) -> npt.NDArray[Any]:
        return decode_chunk(data, self._shape(part), part.array.dtype, part.key)


def flat(targets: Any) -> Arrays:
    """Return encoded targets as a dict `TAP/PART`."""
    parts = [(name, part, array) for name, t in targets.items() for part, array in vars(t).items()]
    return {f"{name}/{part}": array for name, part, array in parts if array is not None}


class Npy(Store):
    """One memory-mapped `.npy` an array."""

    def write(self, samples: Sequence[Arrays]) -> None:
        for key in samples[0]:
            np.save(self._path(key), np.stack([sample[key] for sample in samples]))
        (self.folder / "keys.txt").write_text("\n".join(samples[0]))

    def open(self) -> None:
        keys = (self.folder / "keys.txt").read_text().split()
        self._arrays = {key: np.load(self._path(key), mmap_mode="r") for key in keys}

    def close(self) -> None:
        del self._arrays

    def read(self, numbers: list[int]) -> Arrays:
        return {key: np.asarray(array[numbers]) for key, array in self._arrays.items()}

    def _path(self, key: str) -> Path:
        return self.folder / f"{key.replace('/', '.')}.npy"


class TorchFiles(Store):
    """`torch.save`, one file a sample."""

    def write(self, samples: Sequence[Arrays]) -> None:
        for number, sample in enumerate(samples):
            tensors = {key: torch.from_numpy(np.array(array)) for key, array in sample.items()}
            torch.save(tensors, self.folder / f"{number}.pt")

    def read(self, numbers: list[int]) -> Arrays:
        return _stack(
            [torch.load(self.folder / f"{number}.pt", weights_only=True) for number in numbers]
        )


class Hdf5(Store):
    """One data set an array, one sample a chunk; floats get the byte shuffle filter."""

    def __init__(self, folder: Path, compression: str) -> None:
        super().__init__(folder)
        self._compression = compression

    def write(self, samples: Sequence[Arrays]) -> None:
        with h5py.File(self.folder / "samples.h5", "w") as file:
            for key in samples[0]:
                stacked = np.stack([sample[key] for sample in samples])
                dense = stacked.ndim > 1
                file.create_dataset(
                    key,
                    data=stacked,
                    chunks=(1, *stacked.shape[1:]) if dense else None,
                    compression=self._compression if dense else None,
                    shuffle=dense and stacked.itemsize > 1,
                )

    def open(self) -> None:
        self._file = h5py.File(self.folder / "samples.h5", "r")
        self._sets: dict[str, Any] = {}
        self._file.visititems(
            lambda key, item: self._sets.update({key: item}) if hasattr(item, "shape") else None
        )

    def close(self) -> None:
        self._file.close()

    def read(self, numbers: list[int]) -> Arrays:
        found = {}
        for key, array in self._sets.items():
            found[key] = np.empty((len(numbers), *array.shape[1:]), array.dtype)
            for place, number in enumerate(numbers):
                array.read_direct(found[key], np.s_[number], np.s_[place])
        return found


class Lmdb(Store):
    """One value a sample: its arrays end to end, as they are or each compressed by zstd level 1."""

    def __init__(self, folder: Path, compressed: bool = False) -> None:
        super().__init__(folder)
        self._zstd = Zstd(level=1) if compressed else None

    def write(self, samples: Sequence[Arrays]) -> None:
        self._like = {key: (array.shape, array.dtype) for key, array in samples[0].items()}
        room = 2 * len(samples) * sum(array.nbytes for array in samples[0].values()) + 2**24
        with lmdb.open(str(self.folder), map_size=room) as store, store.begin(write=True) as change:
            for number, sample in enumerate(samples):
                pieces = [self._pack(array) for array in sample.values()]
                lengths = np.array([len(piece) for piece in pieces], "<u8").tobytes()
                change.put(b"%08d" % number, b"".join([lengths, *pieces]))

    def _pack(self, array: npt.NDArray[Any]) -> bytes:
        data = np.ascontiguousarray(array).tobytes()
        return data if self._zstd is None else bytes(self._zstd.encode(data))

    def open(self) -> None:
        self._store = lmdb.open(str(self.folder), readonly=True, lock=False, readahead=False)

    def close(self) -> None:
        self._store.close()

    def read(self, numbers: list[int]) -> Arrays:
        found = {k: np.empty((len(numbers), *s), dtype) for k, (s, dtype) in self._like.items()}
        head = 8 * len(found)
        with self._store.begin(buffers=True) as view:
            for place, number in enumerate(numbers):
                value = view.get(b"%08d" % number)
                assert value is not None
                stops = np.cumsum(np.frombuffer(value[:head], "<u8")) + head
                for (start, stop), array in zip(
                    itertools.pairwise([head, *map(int, stops)]), found.values(), strict=True
                ):
                    self._unpack(value[start:stop], array[place : place + 1])
        return found

    def _unpack(self, piece: memoryview, out: npt.NDArray[Any]) -> None:
        if self._zstd is None:
            out.view(np.uint8).reshape(-1)[:] = np.frombuffer(piece, np.uint8)
        else:
            self._zstd.decode(piece, out=out)


class WebDataset(Store):
    """Tar files read from end to end through a shuffle buffer: it knows no random access."""

    def write(self, samples: Sequence[Arrays]) -> None:
        self._keys = {key.replace("/", ".") + ".npy": key for key in samples[0]}
        pattern = str(self.folder / "%04d.tar")
        with webdataset.ShardWriter(pattern, maxcount=_SHARD, verbose=0) as sink:
            for number, sample in enumerate(samples):
                members = {name: np.asarray(sample[key]) for name, key in self._keys.items()}
                sink.write({"__key__": f"{number:08d}", **members})

    def batches(self, order: Sequence[int], size: int) -> Iterator[Numbered]:
        tars = sorted(str(path) for path in self.folder.glob("*.tar"))
        start = order[0] // _SHARD  # an order that differs from pass to pass
        stream = webdataset.WebDataset(
            [*tars[start:], *tars[:start]], shardshuffle=False, empty_check=False
        )
        samples = iter(stream.shuffle(_SHARD, seed=order[0]).decode())
        for first in range(0, len(order), size):
            found = list(itertools.islice(samples, min(size, len(order) - first)))
            stacked = _stack([{key: s[n] for n, key in self._keys.items()} for s in found])
            yield [int(sample["__key__"]) for sample in found], stacked


class Zarr(Store):
    """zarr-python with its default codecs, one sample a chunk."""

    def write(self, samples: Sequence[Arrays]) -> None:
        group = zarr.create_group(str(self.folder), overwrite=True)
        for key in samples[0]:
            stacked = np.stack([sample[key] for sample in samples])
            group.create_array(key, data=stacked, chunks=(1, *stacked.shape[1:]))
        self._keys = list(samples[0])

    def open(self) -> None:
        group = zarr.open_group(str(self.folder), mode="r")
        self._arrays: dict[str, Any] = {key: group[key] for key in self._keys}

    def read(self, numbers: list[int]) -> Arrays:
        return {key: array.oindex[numbers] for key, array in self._arrays.items()}


class TensorStore(Store):
    """tensorstore on Zarr v3 as we write it: shards of samples, each compressed and checksummed."""

    def write(self, samples: Sequence[Arrays]) -> None:
        self._keys = list(samples[0])
        for key in self._keys:
            stacked = np.stack([sample[key] for sample in samples])
            zstd = {"name": "zstd", "configuration": {"level": 1}}
            inner = [{"name": "bytes"}, zstd, {"name": "crc32c"}]
            one = [1, *stacked.shape[1:]]
            sharded = {"chunk_shape": one, "codecs": inner}
            metadata = {
                "shape": list(stacked.shape),
                "data_type": stacked.dtype.name,
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [_ROWS, *one[1:]]},
                },
                "codecs": [{"name": "sharding_indexed", "configuration": sharded}],
            }
            spec = {**self._spec(key), "metadata": metadata}
            tensorstore.open(spec, create=True).result().write(stacked).result()

    def open(self) -> None:
        one = {name: {"limit": 1} for name in ("data_copy_concurrency", "file_io_concurrency")}
        self._context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}, **one})
        self._arrays = {
            key: tensorstore.open(self._spec(key), context=self._context, open=True).result()
            for key in self._keys
        }

    def close(self) -> None:
        del self._arrays, self._context

    def read(self, numbers: list[int]) -> Arrays:
        waiting = {key: array[numbers].read() for key, array in self._arrays.items()}
        return {key: np.asarray(found.result()) for key, found in waiting.items()}

    def _spec(self, key: str) -> dict[str, Any]:
        path = f"{self.folder}/{key}/"
        return {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}


def _stack(samples: Sequence[dict[str, Any]]) -> Arrays:
    return {key: np.stack([np.asarray(sample[key]) for sample in samples]) for key in samples[0]}


PEERS: dict[str, Callable[[Path], Store]] = {
    "npy, memory-mapped": Npy,
    "torch.save": TorchFiles,
    "HDF5 gzip": lambda folder: Hdf5(folder, "gzip"),
    "HDF5 lzf": lambda folder: Hdf5(folder, "lzf"),
    "LMDB": Lmdb,
    "LMDB of zstd": lambda folder: Lmdb(folder, compressed=True),
    "WebDataset": WebDataset,
    "zarr-python": Zarr,
    "tensorstore": TensorStore,
}

"""The format as others see it: plain zarr, xarray, dask, and the README's snippets.

Warnings are errors throughout (pytest settings), so opening is silent too.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import xarray
import zarr

import bevcask.cache
from bevcask.cache import open_cache
from cache.example import GRID, SPECS, build, truth

README = Path(bevcask.cache.__file__).parent / "README.md"


@pytest.fixture(params=["path", "memory"])
def url(request: pytest.FixtureRequest, sealed: str) -> str:
    return sealed if request.param == "path" else build("memory://format/c")


def test_plain_zarr_reads_what_we_read(url: str) -> None:
    cache = open_cache(url)
    group = zarr.open_group(url, mode="r")
    for row, token in enumerate(cache.frames.tokens):
        place = cache.layout.row_of[token]
        assert bytes(group["frames/sample_token"][place]).hex() == token, row
        for name, sample in cache.read(token).items():
            top = {"head.boxes": "boxes", "query.last": "queries"}.get(name, "targets")
            np.testing.assert_array_equal(group[f"{top}/{name}/values"][place], sample.values)
            for part in ("scale", "count"):
                if getattr(sample, part) is not None:
                    stored = group[f"{top}/{name}/{part}"][place]
                    np.testing.assert_array_equal(stored, getattr(sample, part))
    packed = group["targets/head.heatmap/region"][:]
    bits = np.unpackbits(packed, axis=1, bitorder="little")[:, :48].reshape(-1, 6, 8)
    region = truth(cache.specs["head.heatmap"], 4).amax(dim=0) > 0.77
    np.testing.assert_array_equal(bits[cache.layout.row_of[cache.frames.tokens[4]]], region)


def test_every_array_is_v3_core_and_named(sealed: str) -> None:
    allowed = {"bytes", "zstd", "crc32c", "sharding_indexed"}
    seen = 0
    for path in Path(sealed).rglob("zarr.json"):
        document = json.loads(path.read_bytes())
        if document["node_type"] == "group":
            continue
        seen += 1
        assert len(document["dimension_names"]) == len(document["shape"])
        assert document["fill_value"] in (0, 0.0, False)
        codecs = document["codecs"]
        if codecs[0]["name"] == "sharding_indexed":
            inner = codecs[0]["configuration"]
            assert inner["chunk_shape"][0] == 1
            assert [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
            codecs = codecs + inner["codecs"]
        assert {codec["name"] for codec in codecs} <= allowed
        assert codecs[-1]["name"] == "crc32c"
    assert seen > 25


def test_xarray_opens_every_target(url: str) -> None:
    for spec in SPECS:
        top = {"box_set": "boxes", "query_set": "queries"}.get(spec.tap.kind, "targets")
        data = xarray.open_zarr(url, group=f"{top}/{spec.name}", consolidated=False)
        assert data["values"].shape == (8, *spec.tap.shape)
        assert data["values"].dtype == spec.codec
        if spec.tap.grid is not None:
            np.testing.assert_array_equal(data["x"], GRID.centres()[0, :, 0])
            np.testing.assert_array_equal(data["y"], GRID.centres()[:, 0, 1])
            assert data["x"].attrs["units"] == "m"
        data.load()


def test_xarray_opens_the_tree(url: str) -> None:
    tree = xarray.open_datatree(url, engine="zarr", consolidated=False)
    assert {"/frames", "/targets/bev.neck", "/boxes/head.boxes", "/provenance"} <= set(tree.groups)
    commit = f"/commit/{tree.attrs['id'][:16]}"
    assert tree[commit].dims == ("shard", "array", "commit_byte")
    tree.load()


def test_dask_opens_arrays(url: str) -> None:
    array = dask.array.from_zarr(url, component="targets/bev.signed/values")
    np.testing.assert_array_equal(
        array[0].compute(), open_cache(url).read(f"{0xABC0:032x}")["bev.signed"].values
    )


def test_commit_is_what_the_readme_says(sealed: str) -> None:
    group = zarr.open_group(sealed, mode="r")
    commit = group[f"commit/{group.attrs['id'][:16]}"]
    own = (Path(sealed) / commit.path / "c.0.0.0").read_bytes()
    assert group.attrs["commit"] == hashlib.sha256(own).hexdigest()
    for number, name in enumerate(commit.attrs["arrays"]):
        for shard in range(commit.shape[0]):
            entry = commit[shard, number].tobytes()
            zeros = [".0"] * (group[name].ndim - 1)
            path = Path(sealed) / name / f"c.{shard}{''.join(zeros)}"
            data = path.read_bytes() if path.exists() else b""
            assert entry[:32] == hashlib.sha256(data).digest()
            assert int.from_bytes(entry[32:40], "little") == len(data)
            rows = [entry[start : start + 4] for start in range(40, len(entry), 4)]
            assert len(rows) == 2
            if not name.endswith("/values") or not data:
                assert rows == [bytes(4)] * 2
                continue
            index = np.frombuffer(data[-36:-4], "<u8").reshape(2, 2)
            stops = [
                start + length if length < 2**64 - 1 else None for start, length in index.tolist()
            ]
            assert rows == [bytes(4) if s is None else data[s - 4 : s] for s in stops]


def test_self_digest_is_what_the_readme_says(sealed: str) -> None:
    for name in ("zarr.json", "provenance/zarr.json"):
        data = (Path(sealed) / name).read_bytes()
        own = json.loads(data)["attributes"]["sha256"].encode()
        assert hashlib.sha256(data.replace(own, b"0" * 64)).hexdigest().encode() == own


def test_id_is_what_the_readme_says(sealed: str) -> None:
    attributes = zarr.open_group(sealed, mode="r").attrs.asdict()
    scenes = ["scene-0"] * 3 + ["scene-1"] * 2 + ["scene-2"]

    def canonical(tree: Any) -> bytes:
        return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()

    tree = {
        **attributes["fingerprint"],
        "schema_version": 4,
        "shard_rows": 2,
        "selection": {
            "num_frames": 6,
            "scenes": hashlib.sha256(canonical(scenes)).hexdigest(),
            "tokens": [f"{0xABC0 + i:032x}" for i in range(6)],
        },
        "targets": {spec["tap"]["name"]: spec for spec in attributes["specs"]},
    }
    assert attributes["id"] == hashlib.sha256(canonical(tree)).hexdigest()


def test_readme_snippets_run_without_bevcask(sealed: str, tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(snippets) == 2
    assert len([line for line in snippets[0].splitlines() if line]) <= 10
    assert "bevcask" not in "".join(snippets)
    os.symlink(sealed, tmp_path / "cache.zarr")
    result = "assert neck.dtype == np.float32; np.save('neck.npy', neck)"
    for number, text in enumerate((f"{snippets[0]}\n{result}", snippets[1])):
        script = tmp_path / f"snippet{number}.py"
        script.write_text(text)
        command = [sys.executable, "-W", "error", str(script)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    cache = open_cache(sealed)
    sample = cache.read(cache.frames.tokens[2])["bev.neck"]
    np.testing.assert_array_equal(
        np.load(tmp_path / "neck.npy"), sample.values * sample.scale[:, None, None]
    )

"""Eight faults, each planted alone: the first screen of a report names it, and a clean one nothing.

Read from what the page embeds, which is what it draws.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pyquaternion import Quaternion

from bevcask.cache import Encoded, open_cache
from bevcask.catalog import resolve
from bevcask.geometry import CLASSES
from bevcask.synthetic import synthesize
from bevcask.verbs import SynthesizeConfig
from cache.example import rewrite, rows_in
from viz.html.page_elements import elements

Call = Callable[..., tuple[int, str, str]]
Row = dict[str, Encoded[npt.NDArray[Any]]]
CAR, PERSON = CLASSES.index("car"), CLASSES.index("pedestrian")
DEAD = 5
MAPS = ("bev.neck", "head.heatmap")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames and pixels enough to tell where a camera looks."""
    out = tmp_path_factory.mktemp("report") / "world"
    size = {"image_width": 400, "image_height": 225, "num_scenes": 3, "num_keyframes": 5}
    synthesize(SynthesizeConfig(out=str(out), seed=42, val_scenes=0, workers=0, **size))
    return out


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
    shutil.copy(resolve("checkpoint", "catalog:centerpoint_tiny_synthetic"), path)
    return path


@pytest.fixture(scope="module")
def clean(world: Path, weights: Path, call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("clean") / "c.zarr"
    code, _, err = call(
        "teacher-extract", url, "teacher=centerpoint_tiny", f"teacher.checkpoint={weights}",
        "method=distillbev", "dataset=synthetic", f"dataset.root={world}", "dataset.split=all",
        "loader.num_workers=0",
    )  # fmt: skip
    assert code == 0, err
    return url


def warnings(call: Call, url: Path, page: Path, *words: str) -> list[dict[str, str]]:
    code, _, err = call("inspect", url, f"html={page}", *words)
    assert code == 0, err
    found: list[dict[str, str]] = elements(page)["data"]["warnings"]
    return found


def planted(clean: Path, url: Path, change: Callable[[Row, Row], Row]) -> Path:
    """Write the cache again, each frame as `change(frame, first frame)` says."""
    cache = open_cache(str(clean))
    first = cache.read(cache.frames.tokens[0])
    return rewrite(cache, url, lambda shard: [change(row, first) for row in rows_in(cache, shard)])


def mirrored(row: Row, _: Row) -> Row:
    changed = dict(row)
    for name in MAPS:
        own, region = row[name], row[name].region
        flipped = None if region is None else region[:, ::-1].copy()
        changed[name] = replace(own, values=own.values[..., ::-1].copy(), region=flipped)
    return changed


def shifted(row: Row, _: Row) -> Row:
    changed = dict(row)
    for name in MAPS:
        own, region = row[name], row[name].region
        moved = None if region is None else np.roll(region, 2, axis=1)
        changed[name] = replace(own, values=np.roll(own.values, 2, axis=-1), region=moved)
    return changed


def dead(row: Row, _: Row) -> Row:
    values = row["bev.neck"].values.copy()
    values[DEAD] = 0
    return row | {"bev.neck": replace(row["bev.neck"], values=values)}


def constant(row: Row, first: Row) -> Row:
    return row | {"bev.neck": first["bev.neck"]}


def swapped(row: Row, _: Row) -> Row:
    heat, boxes = row["head.heatmap"], row["head.boxes"].values.copy()
    order = np.arange(len(CLASSES))
    order[[CAR, PERSON]] = PERSON, CAR
    assert heat.scale is not None
    boxes[:, 10] = order[boxes[:, 10].astype(int)]
    boxes[int(row["head.boxes"].count) :] = 0
    return row | {
        "head.heatmap": replace(heat, values=heat.values[order], scale=heat.scale[order]),
        "head.boxes": replace(row["head.boxes"], values=boxes),
    }


VALUES: dict[str, tuple[Callable[[Row, Row], Row], str, str, str]] = {
    "mirrored x": (mirrored, "axes", "mirrored x", "head.heatmap"),
    "shifted grid": (shifted, "shift", "the grid lies 2 cells to -x", "bev.neck"),
    "dead channel": (dead, "dead channels", "1 channels have one value", "bev.neck, channels 5"),
    "constant map": (constant, "constant map", "does not change", "bev.neck"),
    "swapped classes": (swapped, "classes", "car is pedestrian", "head.boxes"),
}


def test_a_clean_cache_has_no_warning(clean: Path, tmp_path: Path, call: Call) -> None:
    assert warnings(call, clean, tmp_path / "r.html") == []


@pytest.mark.parametrize("name", VALUES)
def test_what_is_wrong_with_values_is_named(
    name: str, clean: Path, tmp_path: Path, call: Call
) -> None:
    change, kind, what, where = VALUES[name]
    url = planted(clean, tmp_path / "c.zarr", change)
    found = warnings(call, url, tmp_path / "r.html")
    own = [one for one in found if one["kind"] == kind]
    assert any(what in one["what"] and where in one["where"] for one in own), found
    assert all(one["todo"] for one in found)
    if kind != "constant map":  # whose map lies nowhere near the boxes either
        assert {one["kind"] for one in found} == {kind}


@pytest.fixture
def other_weights(weights: Path) -> Iterator[None]:
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    yield
    weights.write_bytes(data)


@pytest.mark.usefixtures("other_weights")
def test_stale_weights_are_named(clean: Path, weights: Path, tmp_path: Path, call: Call) -> None:
    [found] = warnings(call, clean, tmp_path / "r.html")
    assert (found["severity"], found["kind"]) == ("error", "stale weights")
    assert str(weights) in found["where"]


def test_a_corrupted_frame_is_named(clean: Path, tmp_path: Path, call: Call) -> None:
    url = Path(shutil.copytree(clean, tmp_path / "c.zarr"))
    path = url / "targets/bev.neck/values/c.1.0.0.0"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    found = warnings(call, url, tmp_path / "r.html")
    assert {own["kind"] for own in found} == {"damaged"}
    tokens = open_cache(str(clean)).layout.tokens_of(1)
    assert found[0]["severity"] == "error"
    assert found[0]["where"].startswith(f"bev.neck, frames {tokens[0]}")
    rows = elements(tmp_path / "r.html")["data"]["frames"]
    broken = {row["token"] for row in rows if "damaged" in row}
    assert broken
    assert broken <= set(tokens)


@pytest.mark.parametrize("degrees", [2, -2])
def test_a_turned_camera_is_named(
    degrees: float, clean: Path, world: Path, tmp_path: Path, call: Call
) -> None:
    root = Path(shutil.copytree(world, tmp_path / "world"))
    tables = root / "v1.0-synthetic"
    sensors = json.loads((tables / "sensor.json").read_text())
    [back] = [own["token"] for own in sensors if own["channel"] == "CAM_BACK"]
    rows = json.loads((tables / "calibrated_sensor.json").read_text())
    turn = Quaternion(axis=(0, 1, 0), radians=math.radians(degrees))
    for row in rows:
        if row["sensor_token"] == back:
            row["rotation"] = (Quaternion(row["rotation"]) * turn).elements.tolist()
    (tables / "calibrated_sensor.json").write_text(json.dumps(rows))
    found = warnings(call, clean, tmp_path / "r.html", f"dataset.root={root}")
    assert [(own["kind"], own["where"].partition(",")[0]) for own in found] == [
        ("calibration", "CAM_BACK")
    ]
    [told] = re.findall(r"turned by ([+-][\d.]+) degrees", found[0]["what"])
    assert float(told) == pytest.approx(degrees, abs=0.5)

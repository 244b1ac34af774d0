"""A teacher that ran elsewhere fills the cache that it would have filled here."""

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bevcask.cache import open_cache
from bevcask.compose import compose
from bevcask.data.index.frames import Frames
from bevcask.data.samples import SampleReader, collate
from bevcask.geometry import CLASSES
from bevcask.spool.recorder import Recorder
from bevcask.teachers import build_teacher
from bevcask.teachers.base import Teacher
from bevcask.verbs import ExtractConfig

# As mmdet3d below 1.0 would write them; rows and columns swapped, rows against y, classes turned.
CLASSES_THERE = [*CLASSES[3:], *CLASSES[:3]]
COLUMNS = ["x", "y", "z", "w", "l", "h", "yaw", "vx", "vy", "score", "label"]


def manifest(teacher: Teacher) -> dict[str, Any]:
    taps: dict[str, Any] = {}
    for name, tap in teacher.taps().items():
        if tap.kind in ("dense_bev", "heatmap"):
            assert tap.grid is not None
            grid = {"x_min": tap.grid.x_min, "y_min": tap.grid.y_min, "cell": tap.grid.cell}
            c, y, x = tap.shape
            taps[name] = {
                "kind": tap.kind, "shape": [c, x, y], "axes": ["C", "X", "-Y"], "grid": grid,
                "nonnegative": tap.nonnegative,
            }  # fmt: skip
            if tap.kind == "heatmap":
                taps[name]["values"] = "logits"
        elif tap.kind == "box_set":
            taps[name] = {"kind": "box_set", "shape": [500, len(COLUMNS)]}
    boxes = {"columns": COLUMNS, "z": "bottom", "yaw_zero": "-y", "yaw_turns": "clockwise"}
    return {"taps": taps, "classes": CLASSES_THERE, "boxes": boxes, "teacher": {"name": "there"}}


def there(name: str, kind: str, said: dict[str, torch.Tensor]) -> Any:
    """Return a tap of a batch as that repository has it."""
    if kind != "box_set":
        map_BCYX = said[name]
        if kind == "heatmap":
            map_BCYX = map_BCYX[:, [CLASSES.index(own) for own in CLASSES_THERE]].double().logit()
        return map_BCYX.transpose(2, 3).flip(3)
    rows = []
    for boxes_N11, count in zip(said[name], said[f"{name}.count"], strict=True):
        x, y, z, length, width, h, yaw, vx, vy, score, label = boxes_N11[:count].double().T
        label = torch.tensor([CLASSES_THERE.index(CLASSES[int(own)]) for own in label])
        yaw = -yaw - torch.pi / 2
        fields = [x, y, z - h / 2, width, length, h, yaw, vx, vy, score, label]
        rows.append(torch.stack(fields, dim=1).numpy())
    return rows


def record(folder: Path, teacher_words: list[str], limit: int | None = None) -> int:
    config = compose(ExtractConfig, [*teacher_words, "cache=unused", "method=distillbev"])
    teacher, frames = build_teacher(config.teacher, 0), Frames.select(config.dataset)
    teacher.load("cpu")
    said_of = manifest(teacher)
    recorder, reader = (
        Recorder(str(folder), said_of),
        SampleReader(frames, teacher.inputs(), None, 0),
    )
    made = 0
    for token in frames.tokens[:limit]:
        if recorder.has([token]):
            continue
        said = teacher(collate([reader.read(token)]), list(said_of["taps"]))
        taps = said_of["taps"].items()
        recorder.put([token], {name: there(name, own["kind"], said) for name, own in taps})
        made += 1
    if limit is None:
        recorder.finish()
    return made


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory, teacher_words: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("spool") / "there"
    first = record(folder, teacher_words, 2)  # and then that process was killed
    assert first == 2
    assert record(folder, teacher_words) > 0
    return folder


def words(spool: Path, url: Path, teacher_words: list[str]) -> list[str]:
    data = [word for word in teacher_words if not word.startswith("teacher")]
    return [str(url), "teacher=spool", f"teacher.folder={spool}", *data, "method=distillbev"]


def test_the_cache_is_that_of_the_teacher_here(
    spool: Path, teacher_words: list[str], cached_world: Path, tmp_path: Path, call: Any
) -> None:
    code, _, err = call("teacher-extract", *words(spool, tmp_path / "c.zarr", teacher_words))
    assert code == 0, err
    here, found = open_cache(str(cached_world)), open_cache(str(tmp_path / "c.zarr"))
    assert found.sealed
    assert set(found.specs) == set(here.specs)
    for token in here.frames.tokens:
        one, other = here.read(token), found.read(token)
        for name, spec in here.specs.items():
            a, b = one[name], other[name]
            if spec.codec == "uint8":
                assert np.abs(a.values.astype(int) - b.values.astype(int)).max() <= 1, name
                np.testing.assert_allclose(a.scale, b.scale, rtol=1e-4)
            else:
                np.testing.assert_allclose(b.values, a.values, atol=2e-4, rtol=1e-3)
            assert (a.count is None) or int(a.count) == int(b.count)


def test_another_spool_is_another_teacher(
    spool: Path, teacher_words: list[str], tmp_path: Path, call: Any
) -> None:
    url = tmp_path / "c.zarr"
    assert call("teacher-extract", *words(spool, url, teacher_words))[0] == 0
    other = tmp_path / "other"
    other.mkdir()
    tree = json.loads((spool / "manifest.json").read_text())
    tree["boxes"]["yaw_turns"] = "counterclockwise"
    (other / "manifest.json").write_text(json.dumps(tree))
    code, _, err = call("teacher-extract", *words(other, url, teacher_words))
    assert code == 2
    assert "yaw_turns" in err


def test_a_spool_that_is_being_filled_is_followed(
    spool: Path, teacher_words: list[str], tmp_path: Path, call: Any
) -> None:
    growing = tmp_path / "growing"
    (growing / "samples").mkdir(parents=True)
    (growing / "manifest.json").write_bytes((spool / "manifest.json").read_bytes())
    given = words(growing, tmp_path / "c.zarr", teacher_words)
    code, _, err = call("teacher-extract", *given)
    assert code == 2
    assert "nothing was recorded of sample" in err
    assert "teacher.follow=true waits" in err

    def fill() -> None:
        for path in sorted((spool / "samples").iterdir()):
            time.sleep(0.05)
            (growing / "samples" / path.name).symlink_to(path)

    filler = threading.Thread(target=fill)
    filler.start()
    code, _, err = call("teacher-extract", *given, "teacher.follow=true")
    filler.join()
    assert code == 0, err
    assert open_cache(str(tmp_path / "c.zarr")).sealed


def test_what_is_sealed_is_removed_if_so_told(
    spool: Path, teacher_words: list[str], tmp_path: Path, call: Any
) -> None:
    copy = Path(shutil.copytree(spool, tmp_path / "copy"))
    given = words(copy, tmp_path / "c.zarr", teacher_words)
    assert call("teacher-extract", *given, "teacher.consume=true", "part=1/2")[0] == 0
    assert len(list((copy / "samples").iterdir())) == len(list((spool / "samples").iterdir()))
    assert call("teacher-extract", *given, "teacher.consume=true", "part=2/2")[0] == 0
    assert list((copy / "samples").iterdir()) == []
    assert call("teacher-extract", *given, "teacher.consume=true")[0] == 0  # nothing left to do


@pytest.mark.parametrize("memory", ["scene", "window of 2"])
def test_a_teacher_that_remembered_is_known_to_have(
    spool: Path, teacher_words: list[str], tmp_path: Path, call: Any, memory: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "samples").symlink_to(spool / "samples")
    tree = json.loads((spool / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(tree | {"memory": memory}))
    code, _, err = call("teacher-extract", *words(other, tmp_path / "c.zarr", teacher_words))
    assert code == 0, err
    cache = open_cache(str(tmp_path / "c.zarr"))
    assert {spec.tap.context for spec in cache.specs.values()} == {memory}

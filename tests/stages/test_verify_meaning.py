"""Manifests that say something else than what was recorded: each is found, and named."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from bevcask.compose import compose
from bevcask.data.index.frames import Frames
from bevcask.data.samples import SampleReader, collate
from bevcask.evaluation.box_readings import judge_boxes
from bevcask.evaluation.changes import changes
from bevcask.evaluation.map_readings import Truth, dense_energy, judge_maps
from bevcask.evaluation.readings import Finding
from bevcask.geometry import BOX_FIELDS, CLASSES
from bevcask.spool.manifest import Manifest
from bevcask.spool.reading import canonical
from bevcask.spool.recorder import Recorder
from bevcask.teachers import build_teacher
from bevcask.verbs import ExtractConfig
from bevcask.viz.verification import render

Call = Callable[..., tuple[int, str, str]]
Tree = dict[str, Any]
Values = dict[str, torch.Tensor]
Change = Callable[[Tree, list[Values]], None]
COLUMNS = [*BOX_FIELDS, "score", "label"]
H, YAW = 5, 6
HEATMAP, BOXES = "head.heatmap", "head.boxes"


@dataclass(frozen=True)
class Recorded:
    """What a teacher said of each frame, and the manifest that is true of it."""

    manifest: Tree
    values: dict[str, Values]
    truth: dict[str, Truth]


@pytest.fixture(scope="session")
def trained_words(tiny_world: Path) -> list[str]:
    return [
        "teacher=centerpoint_tiny",
        "teacher.checkpoint=catalog:centerpoint_tiny_synthetic",
        "dataset=synthetic",
        f"dataset.root={tiny_world}",
        "dataset.split=all",
        "loader.num_workers=0",
    ]


@pytest.fixture(scope="session")
def recorded(trained_words: list[str]) -> Recorded:
    """A trained teacher; where its boxes head, and how fast, is told: it never learned that."""
    config = compose(ExtractConfig, [*trained_words, "cache=unused", "method=distillbev"])
    teacher, frames = build_teacher(config.teacher, 0), Frames.select(config.dataset)
    teacher.load("cpu")
    reader = SampleReader(frames, teacher.inputs(), None, 0)
    taps: Tree = {}
    for name, tap in teacher.taps().items():
        if tap.kind in ("dense_bev", "heatmap") and name != "bev.block0":
            assert tap.grid is not None
            grid = {"x_min": tap.grid.x_min, "y_min": tap.grid.y_min, "cell": tap.grid.cell}
            taps[name] = {"kind": tap.kind, "shape": list(tap.shape), "grid": grid}
        elif tap.kind == "box_set":
            taps[name] = {"kind": "box_set", "shape": [500, len(COLUMNS)]}
    values, truth = {}, {}
    random = np.random.default_rng(0)
    for token in frames.tokens:
        said = teacher(collate([reader.read(token)]), list(taps))
        boxes_N9, classes_N, _ = frames.labels(token)
        seen = frames.seen(token)
        truth[token] = Truth(boxes_N9[seen].astype(np.float64), classes_N[seen])
        rows = said["head.boxes"][0, : said["head.boxes.count"][0]].numpy()
        own = {name: said[name][0] for name in taps if name != "head.boxes"}
        values[token] = own | {"head.boxes": torch.from_numpy(told(rows, truth[token], random))}
    return Recorded({"taps": taps, "teacher": {"name": "there"}}, values, truth)


def told(rows: Any, truth: Truth, random: np.random.Generator) -> Any:
    """Give boxes the heading and velocity of the nearest true box, a little off."""
    gap = np.linalg.norm(rows[:, None, :2] - truth.boxes_N9[None, :, :2], axis=-1)
    nearest = truth.boxes_N9[gap.argmin(1)]
    rows = rows.copy()
    rows[:, YAW] = nearest[:, 6] + random.normal(0, 0.15, len(rows))
    rows[:, 7:9] = nearest[:, 7:9] * random.normal(1, 0.1, (len(rows), 1))
    return rows


def maps(**said: Any) -> Change:
    """Declare something else of every map."""

    def change(manifest: Tree, _: list[Values]) -> None:
        for tap in manifest["taps"].values():
            if tap["kind"] != "box_set":
                tap.update(said)

    return change


def grid(**off: float) -> Change:
    """Declare another grid of every map: metres a cell times, borders plus so many cells."""

    def change(manifest: Tree, _: list[Values]) -> None:
        for tap in manifest["taps"].values():
            if own := tap.get("grid"):
                for key, factor in off.items():
                    own[key] = own[key] * factor if factor > 1 else own[key] + factor * own["cell"]

    return change


def boxes(**said: Any) -> Change:
    def change(manifest: Tree, _: list[Values]) -> None:
        manifest["boxes"] = said

    return change


def rows(edit: Callable[[torch.Tensor], None]) -> Change:
    """Record boxes that are not what the manifest says."""

    def change(_: Tree, frames: list[Values]) -> None:
        for own in frames:
            own[BOXES] = own[BOXES].clone()
            edit(own[BOXES])

    return change


def cells_a_second(rows_N11: torch.Tensor) -> None:
    rows_N11[:, 7:9] /= 0.8


def bottoms(rows_N11: torch.Tensor) -> None:
    rows_N11[:, 2] -= rows_N11[:, H] / 2


def turned_classes(manifest: Tree, _: list[Values]) -> None:
    manifest["classes"] = [*CLASSES[3:], *CLASSES[:3]]


def as_logits(manifest: Tree, _: list[Values]) -> None:
    manifest["taps"]["head.heatmap"]["values"] = "logits"


def logits(_: Tree, frames: list[Values]) -> None:
    for own in frames:
        own[HEATMAP] = own[HEATMAP].double().clamp(1e-6).logit().float()


RATIO = 54 / 51.2
WRONG: dict[str, tuple[Change, tuple[str, str, str]]] = {
    "swapped axes": (maps(axes=["C", "X", "Y"]), (HEATMAP, "axes", "x and y swapped")),
    "mirrored x": (maps(axes=["C", "Y", "-X"]), (HEATMAP, "axes", "mirrored x")),
    "mirrored y": (maps(axes=["C", "-Y", "X"]), (HEATMAP, "axes", "mirrored y")),
    "turned yaw": (boxes(yaw_zero="y"), (BOXES, "yaw", "turned by 90 degrees")),
    "l and w": (
        boxes(columns=["x", "y", "z", "w", "l", "h", *COLUMNS[YAW:]]),
        (BOXES, "size", "l and w exchanged"),
    ),
    "classes": (turned_classes, (HEATMAP, "classes", "class order rotated by 3")),
    "half a cell": (
        grid(x_min=0.5),
        (HEATMAP, "shift", "the grid lies half a cell to -x"),
    ),
    "range": (
        grid(x_min=RATIO, y_min=RATIO, cell=RATIO),
        (HEATMAP, "grid", "cells of 0.8 m, the grid -51.2 to 51.2 m"),
    ),
    "velocity": (rows(cells_a_second), (BOXES, "speed", "grid cells of 0.8 m a second")),
    "logits": (as_logits, (HEATMAP, "values", "probabilities, taken for logits")),
    "probabilities": (logits, (HEATMAP, "values", "logits, taken for probabilities")),
    "bottom": (rows(bottoms), (BOXES, "z", "z of the bottom, taken for the centre")),
    "yaw sign": (boxes(yaw_turns="clockwise"), (BOXES, "yaw", "sign flipped")),
}


def changed(recorded: Recorded, changes: Sequence[Change]) -> tuple[Tree, list[Values]]:
    tree = json.loads(json.dumps(recorded.manifest))
    frames = [dict(own) for own in recorded.values.values()]
    for change in changes:
        change(tree, frames)
    return tree, frames


def findings(recorded: Recorded, *changes: Change) -> list[Finding]:
    """Judge boxes, heatmap and neck as a manifest makes them."""
    tree, frames = changed(recorded, changes)
    manifest = Manifest.model_validate(tree)
    names = [BOXES, HEATMAP, "bev.neck"]
    read = [canonical(own, manifest, names) for own in frames]
    truth = list(recorded.truth.values())
    found, _ = judge_boxes(BOXES, [own[BOXES].double().numpy() for own in read], truth, [0.8])
    for name in names[1:]:
        tap = manifest.tap(name)
        assert tap.grid is not None
        whole = [own[name].numpy() for own in read]
        heat = whole if tap.kind == "heatmap" else None
        energy = [own.max(0) for own in whole] if heat else [dense_energy(own) for own in whole]
        found += judge_maps(name, energy, tap.grid, truth, heat)
    return found


def test_the_right_manifest_is_right(recorded: Recorded) -> None:
    found = findings(recorded)
    undecided = {(own.target, own.what) for own in found if own.verdict == "undecided"}
    assert not [own for own in found if own.verdict == "wrong"]
    assert undecided <= {("bev.neck", "shift"), (BOXES, "velocity")}  # all drive along y
    assert len(found) == 16


def quick_first(name: str) -> Any:
    slow = () if name in ("mirrored x", "l and w") else (pytest.mark.slow,)
    return pytest.param(name, marks=slow)


@pytest.mark.parametrize("name", [quick_first(name) for name in WRONG])
def test_a_wrong_manifest_is_found_and_named(recorded: Recorded, name: str) -> None:
    change, (target, what, reading) = WRONG[name]
    wrong = {
        (own.target, own.what): own for own in findings(recorded, change) if own.verdict == "wrong"
    }
    assert wrong[target, what].best == (reading,)
    assert {key[1] for key in wrong} == {what}
    if what in ("axes", "grid"):
        assert wrong["bev.neck", what].best == (reading,)
    said, frames = changed(recorded, [change])
    lines, remarks = changes(Manifest.model_validate(said), list(wrong.values()))
    if name == "velocity":
        assert not lines
        assert "grid cells of 0.8 m a second, and no line of the manifest says units" in remarks[0]
        return
    if name == "half a cell":
        remarks = [own for own in remarks if not own.startswith("bev.neck, shift: ")]  # coarse
    assert not remarks
    mended = Manifest.model_validate(with_lines(said, lines))
    right = Manifest.model_validate(recorded.manifest)
    for own in {key[0] for key in wrong}:
        assert mended.tap(own) == right.tap(own)
        for frame, true in zip(frames, recorded.values.values(), strict=True):
            read = canonical(frame, mended, [own])[own]
            torch.testing.assert_close(read, canonical(true, right, [own])[own])


def with_lines(manifest: Tree, lines: Tree) -> Tree:
    """Return a manifest that says these lines, as a person would write them; taps have dots."""
    tree = Manifest.model_validate(manifest).model_dump(mode="json")
    for line, value in lines.items():
        own, rest = tree, line
        while rest not in own:
            key = next(key for key in own if rest.startswith(f"{key}."))
            own, rest = own[key], rest.removeprefix(f"{key}.")
        own[rest] = value
    return tree


def spool(recorded: Recorded, folder: Path, *changes: Change) -> Path:
    """Write what was recorded, and what its manifest says after these changes."""
    tree, frames = changed(recorded, changes)
    recorder = Recorder(str(folder), tree)
    for token, own in zip(recorded.values, frames, strict=True):
        recorder.put([token], {name: value[None] for name, value in own.items()})
    recorder.finish()
    return folder


def extract(folder: Path, url: Path, trained_words: list[str]) -> list[str]:
    data = [word for word in trained_words if not word.startswith("teacher")]
    return ["teacher-extract", str(url), "teacher=spool", f"teacher.folder={folder}", *data]


@dataclass(frozen=True)
class Misread:
    """A cache whose maps are mirrored and whose boxes have l and w exchanged."""

    url: Path
    code: int
    out: str


@pytest.fixture(scope="session")
def misread(
    recorded: Recorded,
    trained_words: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    call: Call,
) -> Misread:
    folder = tmp_path_factory.mktemp("misread")
    there = spool(recorded, folder / "there", WRONG["mirrored x"][0], WRONG["l and w"][0])
    words = extract(there, folder / "c.zarr", trained_words)
    code, out, _ = call(*words, "expect.map=0.9", "--json")
    return Misread(folder / "c.zarr", code, out)


def test_verify_names_what_a_manifest_got_wrong(
    misread: Misread, tiny_world: Path, call: Call
) -> None:
    words = ["verify", misread.url, "check=meaning", f"dataset.root={tiny_world}"]
    code, out, err = call(*words, "--json")
    assert code == 1, err
    found = json.loads(out)
    said = {(own["target"], own["key"]): own["what"] for own in found["problems"]}
    assert said.keys() >= {(HEATMAP, "meaning/axes"), (BOXES, "meaning/size")}
    assert said[HEATMAP, "meaning/axes"].startswith("mirrored x fits ground truth")
    official = found["meaning"]["official"][BOXES]
    assert official["best"]["mASE"] < official["as declared"]["mASE"] - 0.1
    assert "MISREAD" in str(render(found).renderables[0])
    axes = {f"taps.{tap}.axes": ["C", "Y", "X"] for tap in ("bev.neck", HEATMAP)}
    change = found["meaning"]["change"]
    assert change == change | axes | {"boxes.columns": COLUMNS}
    assert found["meaning"]["remarks"] == []
    with (console := Console(width=160, markup=False)).capture() as shown:
        console.print(render(found))
    assert re.search(r'taps.head.heatmap.axes +│ \["C", "Y", "X"\]', shown.get())
    for own in found["meaning"]["findings"]:
        own["verdict"] = "undecided"
    untold = found | {"ok": True, "problems": []}
    assert "UNDECIDED" in str(render(untold).renderables[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["right", *WRONG])
def test_each_is_found_in_a_cache(
    recorded: Recorded,
    trained_words: list[str],
    tiny_world: Path,
    tmp_path: Path,
    call: Call,
    name: str,
) -> None:
    """Codecs and stored regions lie between the manifest and what is judged."""
    change, (target, what, reading) = WRONG.get(name, (maps(), ("", "", "")))
    there, url = spool(recorded, tmp_path / "there", change), tmp_path / "c.zarr"
    code, _, err = call(*extract(there, url, trained_words))
    if name == "probabilities":  # extraction refuses what cannot be
        assert code == 2
        assert 'say taps.head.heatmap.values: "logits"' in err
        return
    assert code == 0, err
    words = ["verify", url, "check=meaning", f"dataset.root={tiny_world}", "--json"]
    code, out, err = call(*words)
    found = {(own["target"], own["key"]): own["what"] for own in json.loads(out)["problems"]}
    said = json.loads(out)["meaning"]
    assert bool(said["change"]) == (name not in ("right", "velocity"))
    assert any("says units" in own for own in said["remarks"]) == (name == "velocity")
    if name == "right":
        assert (code, found) == (0, {})
    else:
        assert code == 1, err
        assert found[target, f"meaning/{what}"].startswith(f"{reading} fits")
        assert {key for _, key in found} == {f"meaning/{what}"}
    if said["change"]:
        path, mended = there / "manifest.json", tmp_path / "mended.zarr"
        path.write_text(json.dumps(with_lines(json.loads(path.read_text()), said["change"])))
        assert call(*extract(there, mended, trained_words))[0] == 0
        code, out, _ = call("verify", mended, *words[2:])
        assert (code, json.loads(out)["problems"]) == (0, [])


def test_a_teacher_that_scores_less_than_expected_is_refused(
    misread: Misread, tmp_path: Path, call: Call
) -> None:
    assert misread.code == 1
    found = json.loads(misread.out)
    assert found["sealed"] is True
    assert found["ok"] is False
    assert 0.4 < found["mAP"] < 0.9
    assert set(found["per_class"]) == set(CLASSES)
    run = f"run={tmp_path / 'run'}"
    code, out, _ = call("evaluate", f"cache={misread.url}", run, "expect.map=0.4", "--json")
    assert code == 0
    assert json.loads(out)["ok"] is True


def test_a_score_is_not_expected_where_nothing_can_be_scored(
    recorded: Recorded, trained_words: list[str], tmp_path: Path, call: Call
) -> None:
    recorded = Recorded(json.loads(json.dumps(recorded.manifest)), {}, {})
    del recorded.manifest["taps"][BOXES]
    words = extract(spool(recorded, tmp_path / "there"), tmp_path / "c.zarr", trained_words)
    code, _, err = call(*words, "expect.map=0.5")
    assert code == 2
    assert "expect.map=0.5: this teacher offers no head.boxes" in err
    assert not (tmp_path / "c.zarr").exists()

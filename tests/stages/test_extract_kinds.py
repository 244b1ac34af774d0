"""Kinds that no detector of ours says go into a cache and meet a moved student all the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bevcask.cache import Cache, open_cache, verify
from bevcask.cache.verify_values import check_values
from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.data.join import JoinedDataset, TrainBatch
from bevcask.data.samples import Key, SampleReader
from bevcask.detectors.base import Inputs
from bevcask.geometry import bev_matrix
from bevcask.targets.align import Align
from bevcask.targets.moments import channel_moments
from bevcask.targets.region import box_mask
from bevcask.targets.target import Target
from bevcask.viz.pictures import draw
from bevcask.viz.report import describe
from bevcask.viz.sample import compose_picture, describe_sample
from bevcask.viz.statistics import statistics
from kinds_teacher import GRID, HEIGHTS, TAPS, VOXEL_CLASSES, said_of

FLIPS = {
    "identity": bev_matrix(),
    "x": bev_matrix(flip_x=True),
    "y": bev_matrix(flip_y=True),
    "both": bev_matrix(flip_x=True, flip_y=True),
}


@pytest.fixture(scope="module")
def words(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What `teacher-extract` needs to store everything that the stub says of two frames."""
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "all.yaml").write_text("type: kinds_teacher:WantsAll\n")
    return [
        "teacher.type=kinds_teacher:Stub", f"method={folder / 'all.yaml'}", "trust_code=true",
        "dataset=synthetic", f"dataset.root={tiny_world}", "dataset.split=synthetic_val",
        "dataset.limit=2", "loader.num_workers=0",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def cache(words: list[str], tmp_path_factory: pytest.TempPathFactory, call: Any) -> Cache:
    """Two frames of everything that the stub says."""
    folder = tmp_path_factory.mktemp("kinds")
    code, _, err = call("teacher-extract", str(folder / "c.zarr"), *words)
    assert code == 0, err
    return open_cache(str(folder / "c.zarr"))


@pytest.fixture(scope="module")
def frames(tiny_world: Path, cache: Cache) -> Frames:
    keys = {"root": str(tiny_world), "version": "v1.0-synthetic", "split": "synthetic_val"}
    return Frames.select(DatasetConfig.model_validate({**keys, "limit": 2}))


@pytest.fixture(scope="module")
def batch(cache: Cache, frames: Frames) -> TrainBatch:
    """What a training reads of both frames."""
    reader = SampleReader(frames, Inputs(), None, 0)
    dataset = JoinedDataset(frames, reader, cache.url, list(TAPS))
    return dataset.collate([dataset[Key(frame)] for frame in range(2)])


@pytest.fixture(scope="module")
def targets(batch: TrainBatch) -> dict[str, Target]:
    return batch.dequantised()


@pytest.fixture(scope="module")
def said(frames: Frames) -> dict[str, torch.Tensor]:
    """What the teacher said of both."""
    both = [said_of(token) for token in frames.tokens]
    return {name: torch.stack([one[name] for one in both]) for name in both[0]}


def moves(name: str) -> Align:
    return Align(torch.as_tensor(FLIPS[name]).expand(2, 4, 4))


def test_the_cache_is_sound(cache: Cache) -> None:
    assert set(cache.specs) == set(TAPS)
    assert verify(cache.url).problems == []
    assert check_values(cache).problems == []
    for tap in TAPS.values():
        assert cache.specs[tap.name].tap == tap


def test_voxels_come_back_on_the_columns_that_were_asked_for(
    batch: TrainBatch, targets: dict[str, Target], said: dict[str, torch.Tensor]
) -> None:
    assert batch.batch.labels is not None
    kept_BYX = box_mask(batch.batch.labels.canonical_boxes, GRID, 1.0, touched=False)
    classes = targets["occ.classes"]
    assert classes.region_BYX is not None
    assert 0 < int(kept_BYX.sum()) < kept_BYX.numel()
    assert torch.equal(classes.region_BYX, kept_BYX)
    expected = said["occ.classes"] * kept_BYX[:, None, None]
    torch.testing.assert_close(classes.values, expected, rtol=0, atol=0.51 / 255)
    for name in ("occ.seen", "occ.labels"):
        assert torch.equal(targets[name].values, said[name])


@pytest.mark.parametrize("flip", FLIPS)
def test_voxels_meet_a_flipped_student_exactly(targets: dict[str, Target], flip: str) -> None:
    """The student that says the same of the flipped frame is the teacher, once it is aligned."""
    seen = targets["occ.seen"].values
    dims = [dim for axis, dim in (("x", -1), ("y", -2)) if flip in (axis, "both")]
    aligned, valid = moves(flip).voxels(seen.flip(dims), GRID, GRID, HEIGHTS, HEIGHTS)
    assert valid.all()
    assert torch.equal(aligned, seen)


@pytest.mark.parametrize("flip", FLIPS)
def test_polylines_meet_a_flipped_student_exactly(
    targets: dict[str, Target], said: dict[str, torch.Tensor], flip: str
) -> None:
    """Against points moved one by one."""
    lines = targets["map.lines"]
    assert torch.equal(lines.values, said["map.lines"])
    assert lines.count_B is not None
    assert torch.equal(lines.count_B, said["map.lines.count"])
    own = [rows[:count] for rows, count in zip(lines.values, lines.count_B, strict=True)]
    once = moves(flip).polylines(own)
    for rows, moved in zip(own, once, strict=True):
        for row, there in zip(rows.tolist(), moved.tolist(), strict=True):
            for x, y in ((0, 1), (2, 3), (4, 5), (6, 7)):
                assert there[x] == (-row[x] if flip in ("x", "both") else row[x])
                assert there[y] == (-row[y] if flip in ("y", "both") else row[y])
            assert there[8:] == row[8:]
    for rows, back in zip(own, moves(flip).polylines(once), strict=True):
        assert torch.equal(rows, back)


@pytest.mark.parametrize("flip", FLIPS)
def test_queries_keep_layers_places_and_names(
    targets: dict[str, Target], said: dict[str, torch.Tensor], flip: str
) -> None:
    torch.testing.assert_close(
        targets["query.layers"].values, said["query.layers"], rtol=2**-11, atol=2**-25
    )
    assert targets["query.tracks"].values.dtype == torch.int64
    assert torch.equal(targets["query.tracks"].values, said["query.tracks"])
    for name in ("query.layers", "query.centres", "query.tracks"):
        count_B = targets[name].count_B
        assert count_B is not None
        assert torch.equal(count_B, said[f"{name}.count"])
    sign = torch.tensor([*(-1.0 if flip in (axis, "both") else 1.0 for axis in "xy"), 1.0])
    once = moves(flip).points(list(targets["query.centres"].values))
    assert torch.equal(torch.stack(once), said["query.centres"] * sign)
    assert torch.equal(torch.stack(moves(flip).points(once)), said["query.centres"])


def test_what_is_read_ends_at_the_count(cache: Cache, frames: Frames) -> None:
    token = frames.tokens[0]
    count = int(said_of(token)["query.layers.count"])
    read = cache.read_float(token, ["query.layers", "query.tracks"])
    assert read["query.layers"].shape == (3, count, 5)
    assert read["query.tracks"].tolist() == [2**53 + own for own in range(count)]
    assert describe_sample(cache, token)["targets"]["query.layers"]["count"] == count
    found = statistics(cache)["query.layers"]
    said = [said_of(own)["query.layers"][:, : int(said_of(own)["query.layers.count"])]
            for own in frames.tokens]  # fmt: skip
    assert found["mean"] == pytest.approx(float(torch.cat(said, 1).mean()), abs=1e-3)
    assert cache.dask("query.tracks").compute().dtype == np.int64


@pytest.mark.parametrize("flip", FLIPS)
def test_moments_are_those_of_the_flipped_student(
    targets: dict[str, Target], said: dict[str, torch.Tensor], flip: str
) -> None:
    assert torch.equal(targets["occ.moments"].values, said["occ.moments"])
    dims = [dim for axis, dim in (("x", -1), ("y", -2)) if flip in (axis, "both")]
    student = channel_moments(said["occ.classes"].flip(dims))
    torch.testing.assert_close(student, targets["occ.moments"].values, rtol=0, atol=1e-6)


def test_a_picture_has_a_panel_for_each(cache: Cache, frames: Frames, tmp_path: Path) -> None:
    token = frames.tokens[0]
    said = said_of(token)
    picture = compose_picture(cache, frames, token)
    panels = {own.title.split()[1].rstrip(":"): own for own in picture.maps}
    draw(picture, tmp_path / "kinds.png")
    assert (tmp_path / "kinds.png").stat().st_size > 10_000
    assert np.array_equal(panels["occ.seen"].values_YX, said["occ.seen"][0].amax(0).numpy())
    kept_YX = np.asarray(cache.read(token, ["occ.classes"])["occ.classes"].region)
    highest_YX = said["occ.classes"][:2].amax((0, 1)).numpy() * kept_YX
    np.testing.assert_allclose(panels["occ.classes"].values_YX, highest_YX, atol=0.51 / 255)
    [lines] = picture.lines
    strong = said["map.lines"][:, 8] >= 0.3
    assert (
        lines.label
        == f"teacher map.lines, score ≥ 0.3 ({strong.sum()} of {said['map.lines.count']})"
    )
    assert np.array_equal(np.stack(lines.lines).reshape(-1, 8), said["map.lines"][strong, :8])
    labels = said["occ.labels"][0].numpy()
    for y, x in np.ndindex(*GRID.shape_YX):
        taken = [label for label in labels[::-1, y, x] if VOXEL_CLASSES[int(label)] != "free"]
        shown = panels["occ.labels"].values_YX[y, x]
        assert shown == taken[0] if taken else np.isnan(shown)


def test_boxes_of_a_teacher_that_saw_the_labels_have_no_score(
    cache: Cache, call: Any, words: list[str], tiny_world: Path, tmp_path: Path
) -> None:
    code, _, err = call("teacher-extract", str(tmp_path / "c.zarr"), *words, "expect.map=0.1")
    assert code == 2
    assert "expect.map=0.1: the teacher of head.boxes was given the labels" in err
    assert not (tmp_path / "c.zarr").exists()
    code, _, err = call("evaluate", f"cache={cache.url}", f"run={tmp_path / 'run'}")
    assert code == 2
    assert "the teacher of head.boxes was given the labels of the frame" in err
    assert not (tmp_path / "run" / "evaluation.json").exists()
    asked = ["verify", cache.url, "check=meaning", f"dataset.root={tiny_world}"]
    code, out, _ = call(*asked, "--json")
    given = json.loads(out)["meaning"]["given"]
    assert given == {"bev.labels": ["labels"], "head.boxes": ["labels", "future"]}
    shown = " ".join(call(*asked)[1].split())
    assert "its teacher was shown labels" in shown
    why = "query.centres, query.layers, query.tracks (no label says which object a query is of)"
    assert why in shown
    assert json.loads(out)["meaning"]["not_judged"]["map.lines"] in shown


def test_what_was_given_is_shown(cache: Cache, call: Any) -> None:
    rows = {row["name"]: row for row in describe(cache)["targets"]}
    assert rows["bev.labels"]["given"] == ["labels"]
    assert rows["occ.seen"]["given"] == []
    told = {row["name"]: row["reads"] for row in cache.plan["targets"]}
    assert (told["bev.labels"], told["occ.seen"]) == ("labels", "none")
    _, out, _ = call("inspect", cache.url)
    assert "context" in out

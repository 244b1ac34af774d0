"""Scores of detectors and caches from the command line, whole splits and parts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.data.samples import SampleReader, collate
from bevcask.detectors.centerpoint import CenterPoint, CenterPointConfig
from bevcask.detectors.weights import load_weights, save_weights
from bevcask.evaluation.nuscenes import score
from bevcask.groups import load_group

Call = Callable[..., tuple[int, str, str]]


def data(world: Path, *more: str) -> list[str]:
    return ["dataset=synthetic", f"dataset.root={world}", "loader.num_workers=0", *more]


def tiny_config() -> CenterPointConfig:
    section = dict(load_group("student", "centerpoint_tiny")["detector"])
    del section["type"]
    return CenterPointConfig(**section)


def build(weights: Path) -> CenterPoint:
    detector = CenterPoint(tiny_config())
    load_weights(detector, weights)
    return detector


@pytest.fixture(scope="module")
def noted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared checkpoint, with its architecture in the note as an export writes it."""
    path = tmp_path_factory.mktemp("noted") / "student.safetensors"
    architecture = load_group("student", "centerpoint_tiny")["detector"]
    detector = build(checkpoint)
    save_weights(detector.state_dict(), path, {"detector": json.dumps(architecture)})
    return path


def test_cache_scores_like_the_teacher_that_filled_it(
    tiny_world: Path, cached_world: Path, noted: Path, call: Call, tmp_path: Path
) -> None:
    code, out, err = call(
        "evaluate",
        str(cached_world),
        *data(tiny_world, "dataset.split=synthetic_val", f"run={tmp_path / 'cache'}", "--json"),
    )
    assert code == 0, err
    cached = json.loads(out)
    code, out, err = call(
        "evaluate",
        f"student.checkpoint={noted}",
        *data(tiny_world, "dataset.split=synthetic_val", f"run={tmp_path / 'own'}", "--json"),
    )
    assert code == 0, err
    own = json.loads(out)
    for key in ("mAP", "NDS", "mATE", "mAVE"):
        assert cached[key] == pytest.approx(own[key], abs=1e-6), key
    for name, row in own["per_class"].items():
        assert cached["per_class"][name] == pytest.approx(row, abs=1e-5), name
    assert cached["coverage"] == "3 of 3 frames"
    assert json.loads((tmp_path / "cache" / "evaluation.json").read_text()) == cached
    submissions = [
        json.loads((tmp_path / name / "nuscenes" / "results_nusc.json").read_text())["results"]
        for name in ("cache", "own")
    ]
    assert submissions[0].keys() == submissions[1].keys()
    assert sum(map(len, submissions[0].values())) > 0


def test_detector_is_scored_on_its_own_boxes(
    tiny_world: Path, noted: Path, call: Call, tmp_path: Path
) -> None:
    dataset = DatasetConfig(
        root=str(tiny_world), version="v1.0-synthetic", split="synthetic_val", limit=1
    )
    frames = Frames.select(dataset)
    detector = build(noted).eval()
    reader = SampleReader(frames, CenterPoint.inputs(tiny_config()), None, seed=0)
    with torch.inference_mode():
        batch = collate([reader.read(frames.tokens[0])])
        expected = score(
            {frames.tokens[0]: detector.decode(detector(batch))[0]}, frames, tmp_path, total=3
        )
    code, out, err = call(
        "evaluate",
        f"student.checkpoint={noted}",
        *data(tiny_world, "dataset.split=synthetic_val", "dataset.limit=1"),
        f"run={tmp_path / 'run'}",
        "--json",
    )
    assert code == 0, err
    got = json.loads(out)
    assert got["coverage"] == "partial: 1 of 3 frames"
    assert got["coverage"] == expected["coverage"]
    assert got["NDS"] == pytest.approx(expected["NDS"], abs=1e-9)
    assert got["mAP"] == pytest.approx(expected["mAP"], abs=1e-9)


def test_unnamed_dataset_is_the_one_the_cache_came_from(
    cached_world: Path, call: Call, tmp_path: Path
) -> None:
    code, out, err = call("evaluate", str(cached_world), f"run={tmp_path}", "--json")
    assert code == 0, err
    assert json.loads(out)["coverage"] == "6 of 6 frames"


@pytest.mark.parametrize(
    "given", [[], ["cache=x.zarr", "student.checkpoint=catalog:bevdepth_tiny_start"]]
)
def test_exactly_one_thing_is_scored(given: list[str], call: Call) -> None:
    code, _, err = call("evaluate", *given)
    assert code == 2
    assert "either a detector or a cache" in err


def test_cache_of_another_dataset_is_refused(
    cached_world: Path, own_world: Path, call: Call, tmp_path: Path
) -> None:
    path = own_world / "v1.0-synthetic" / "ego_pose.json"
    rows = json.loads(path.read_text())
    for row in rows:
        row["translation"][0] += 1.0
    path.write_text(json.dumps(rows))
    code, _, err = call("evaluate", str(cached_world), *data(own_world), f"run={tmp_path}")
    assert code == 2
    assert "dataset.poses.LIDAR_TOP" in err


def test_checkpoint_of_another_architecture_is_refused(
    checkpoint: Path, tiny_world: Path, call: Call
) -> None:
    code, _, err = call(
        "evaluate",
        "student=centerpoint_tiny",
        "student.detector.channels=[32,64,128]",
        f"student.checkpoint={checkpoint}",
        *data(tiny_world),
    )
    assert code == 2
    assert "of another shape" in err


def test_missing_checkpoint_and_unknown_architecture_are_told(
    checkpoint: Path, tiny_world: Path, call: Call, tmp_path: Path
) -> None:
    code, _, err = call("evaluate", f"student.checkpoint={tmp_path / 'no'}", *data(tiny_world))
    assert code == 2
    assert "no such checkpoint" in err
    bare = shutil.copy(checkpoint, tmp_path / "bare.safetensors")
    code, _, err = call("evaluate", f"student.checkpoint={bare}", *data(tiny_world))
    assert code == 2
    assert "student.detector: no type given" in err


@pytest.fixture
def unlabelled(own_world: Path) -> Path:
    """The world as its authors would give out a test split."""
    for table in ("sample_annotation", "instance"):
        (own_world / "v1.0-synthetic" / f"{table}.json").write_text("[]")
    return own_world


def test_a_split_without_annotations_becomes_a_submission(
    unlabelled: Path, noted: Path, call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    words = data(unlabelled, "dataset.split=synthetic_val", f"run={run}")
    code, out, err = call("evaluate", f"student.checkpoint={noted}", *words, "--json")
    assert code == 0, err
    assert "has no annotations: nothing is scored" in caplog.text
    told = json.loads(out)
    assert "mAP" not in told
    assert told["coverage"] == "3 of 3 frames"
    submission = json.loads(Path(told["submission"]).read_text())
    frames = Frames.select(
        DatasetConfig(root=str(unlabelled), version="v1.0-synthetic", split="synthetic_val")
    )
    assert list(submission["results"]) == list(frames.tokens)
    assert submission["meta"] == {
        "use_camera": False,
        "use_lidar": True,
        "use_radar": False,
        "use_map": False,
        "use_external": False,
    }
    code, out, err = call("evaluate", f"student.checkpoint={noted}", *words)
    assert code == 0, err


def test_a_submission_holds_the_boxes_that_are_scored(
    unlabelled: Path, tiny_world: Path, noted: Path, call: Call, tmp_path: Path
) -> None:
    found = []
    for name, world in (("with", tiny_world), ("without", unlabelled)):
        run = f"run={tmp_path / name}"
        code, _, err = call(
            "evaluate",
            f"student.checkpoint={noted}",
            *data(world, "dataset.split=synthetic_val", run),
        )
        assert code == 0, err
        found.append((tmp_path / name / "nuscenes" / "results_nusc.json").read_bytes())
    assert found[0] == found[1]


def test_nothing_is_detected_before_all_else_is_known(
    own_world: Path, noted: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def detect(*arguments: object) -> None:
        raise AssertionError("detected in vain")

    monkeypatch.setattr("bevcask.stages.evaluate.detect", detect)
    (own_world / "v1.0-synthetic" / "visibility.json").unlink()
    words = (f"student.checkpoint={noted}", *data(own_world), f"run={tmp_path}")
    code, _, err = call("evaluate", *words)
    assert code == 2
    assert "visibility.json" in err


def test_classes_that_are_not_there_are_named(
    own_world: Path, noted: Path, call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = own_world / "v1.0-synthetic"
    tables = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ("category", "instance", "sample_annotation")
    }
    named = {row["token"]: row["name"] for row in tables["category"]}
    gone = {r["token"] for r in tables["instance"] if named[r["category_token"]] == "vehicle.car"}
    kept = [row for row in tables["sample_annotation"] if row["instance_token"] not in gone]
    (folder / "sample_annotation.json").write_text(json.dumps(kept))
    words = data(own_world, "dataset.split=synthetic_val", f"run={tmp_path}", "--json")
    code, out, err = call("evaluate", f"student.checkpoint={noted}", *words)
    assert code == 0, err
    told = json.loads(out)
    assert told["absent_classes"] == ["car"]
    assert told["per_class"]["car"]["AP"] == 0
    assert "holds car: an AP of 0 counts" in caplog.text

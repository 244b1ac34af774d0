"""A cache of something else is refused and the leaf named: files changed, commands run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bevcask.cache.begin import create
from bevcask.cache.reader import open_cache

Call = Callable[..., tuple[int, str, str]]
Settings = dict[str, str]
Change = Callable[[Settings], None]


def extract_words(settings: Settings) -> list[str]:
    return [settings["cache"], *(f"{k}={v}" for k, v in settings.items() if k != "cache")]


@pytest.fixture
def settings(
    cached_world: Path, checkpoint: Path, own_world: Path, tmp_path: Path
) -> dict[str, str]:
    """The command that made `cached_world`, on copies of its checkpoint and dataset."""
    own_checkpoint = shutil.copy(checkpoint, tmp_path / "own.safetensors")
    return {
        "cache": str(cached_world),
        "teacher": "centerpoint_tiny",
        "teacher.checkpoint": str(own_checkpoint),
        "dataset": "synthetic",
        "dataset.root": str(own_world),
        "dataset.split": "all",
        "loader.num_workers": "0",
        "store.shard_rows": "2",
    }


def change_weight(settings: Settings) -> None:
    path = settings["teacher.checkpoint"]
    tensors = load_file(path)
    name = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point())[0]
    flat = tensors[name].view(-1)
    flat[0] = torch.nextafter(flat[0], torch.tensor(10.0))
    save_file(tensors, path)


def rename_weights_file(settings: Settings) -> None:
    path = Path(settings["teacher.checkpoint"])
    settings["teacher.checkpoint"] = str(path.rename(path.with_name("renamed.safetensors")))


def edit_table(settings: Settings, table: str, edit: Callable[[list[dict]], None]) -> None:
    path = Path(settings["dataset.root"]) / "v1.0-synthetic" / f"{table}.json"
    rows = json.loads(path.read_text())
    edit(rows)
    path.write_text(json.dumps(rows))


def sensor_rows(settings: Settings, channel: str) -> set[str]:
    path = Path(settings["dataset.root"]) / "v1.0-synthetic" / "sensor.json"
    return {row["token"] for row in json.loads(path.read_text()) if row["channel"] == channel}


def change_lidar_calibration(settings: Settings) -> None:
    tokens = sensor_rows(settings, "LIDAR_TOP")

    def edit(rows: list[dict]) -> None:
        row = next(row for row in rows if row["sensor_token"] in tokens)
        row["translation"][0] += 1e-6

    edit_table(settings, "calibrated_sensor", edit)


def change_camera_calibration(settings: Settings) -> None:
    tokens = sensor_rows(settings, "CAM_FRONT")

    def edit(rows: list[dict]) -> None:
        for row in rows:
            if row["sensor_token"] in tokens:
                row["translation"][0] += 0.5

    edit_table(settings, "calibrated_sensor", edit)


def change_ego_pose(settings: Settings) -> None:
    def edit(rows: list[dict]) -> None:
        for row in rows:
            row["translation"][1] += 1e-6

    edit_table(settings, "ego_pose", edit)


def change_description(settings: Settings) -> None:
    edit_table(settings, "scene", lambda rows: rows[0].update(description="another day"))


def change_statistic(settings: Settings) -> None:
    path = settings["teacher.checkpoint"]
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.endswith("running_mean"))
    tensors[name][-1] += 1e-6
    save_file(tensors, path)


def turn_lidar(settings: Settings) -> None:
    tokens = sensor_rows(settings, "LIDAR_TOP")

    def edit(rows: list[dict]) -> None:
        row = next(row for row in rows if row["sensor_token"] in tokens)
        row["rotation"] = [1.0, 1e-7, 0.0, 0.0]

    edit_table(settings, "calibrated_sensor", edit)


def turn_ego(settings: Settings) -> None:
    def edit(rows: list[dict]) -> None:
        for row in rows:
            w, x, y, z = row["rotation"]
            row["rotation"] = [w, x + 1e-7, y, z]

    edit_table(settings, "ego_pose", edit)


def delay_sweeps(settings: Settings) -> None:
    def edit(rows: list[dict]) -> None:
        for row in rows:
            if "LIDAR_TOP" in row["filename"] and not row["is_key_frame"]:
                row["timestamp"] -= 1

    edit_table(settings, "sample_data", edit)


def touch_tables(settings: Settings) -> None:
    for path in (Path(settings["dataset.root"]) / "v1.0-synthetic").iterdir():
        path.touch()


def say(key: str, value: str) -> Change:
    """Return a change of one word of the command."""

    def change(settings: Settings) -> None:
        settings[key] = value

    change.__name__ = f"{key}={value}"
    return change


def detector(key: str, value: str) -> tuple[Change, str]:
    """Return a change of the teacher's architecture that leaves its weights as they are."""
    return say(f"teacher.detector.{key}", value), f"teacher.config.{key}"


REFUSED: list[tuple[Change, str]] = [
    (change_weight, "teacher.weights"),
    (change_statistic, "teacher.weights"),
    detector("half_extent", "25.6"),
    detector("num_sweeps", "1"),
    detector("z_range", "[-4.0,3.0]"),
    detector("norm_momentum", "0.2"),
    detector("head.score_threshold", "0.23"),
    detector("head.candidates", "400"),
    detector("head.boxes_per_task", "80"),
    detector("head.centre_range", "55"),
    detector("head.nms", "rotated"),
    detector("head.nms_overlap", "0.3"),
    detector("head.nms_radius", "[2,3.46,3.16,1,0.92,0.8]"),
    detector("head.box_weight", "0.3"),
    detector("head.velocity_weight", "0.3"),
    (change_lidar_calibration, "dataset.calibration.LIDAR_TOP"),
    (turn_lidar, "dataset.calibration.LIDAR_TOP"),
    (change_ego_pose, "dataset.poses.LIDAR_TOP"),
    (turn_ego, "dataset.poses.LIDAR_TOP"),
    (delay_sweeps, "dataset.poses.LIDAR_TOP"),
    (say("store.codec", "float16"), "codec"),
    (say("store.codec", "float32"), "codec"),
    (say("store.shard_rows", "3"), "shard_rows"),
    (say("dataset.split", "synthetic_train"), "selection"),
    (say("dataset.limit", "4"), "selection"),
    (say("dataset.limit", "1"), "selection"),
]
ACCEPTED: list[Change] = [
    lambda settings: None,  # the dataset and the checkpoint lie elsewhere
    rename_weights_file,
    touch_tables,
    change_description,
    change_camera_calibration,  # a LiDAR teacher reads no camera
    say("loader.batch_size", "1"),
    say("seed", "5"),
    say("store.queue", "1"),
    say("store.threads", "3"),
]
SEEN_BY_STUDENTS = [
    pair
    for pair in REFUSED
    if pair[0] in (change_weight, change_lidar_calibration, change_ego_pose)
    or pair[0].__name__.endswith(("score_threshold=0.23", "half_extent=25.6", "num_sweeps=1"))
]


@pytest.mark.parametrize(("change", "leaf"), REFUSED, ids=lambda x: getattr(x, "__name__", x))
def test_extraction_refuses_another_identity(
    change: Change, leaf: str, settings: Settings, call: Call, cached_world: Path
) -> None:
    before = open_cache(str(cached_world)).id
    change(settings)
    code, _, err = call("teacher-extract", *extract_words(settings))
    assert code == 2
    assert leaf in err.replace("\n", "")
    assert open_cache(str(cached_world)).id == before


@pytest.mark.parametrize("change", ACCEPTED, ids=lambda x: getattr(x, "__name__", x))
def test_extraction_accepts_what_changes_nothing(
    change: Change, settings: Settings, call: Call
) -> None:
    change(settings)
    code, _, err = call("teacher-extract", *extract_words(settings))
    assert code == 0, err


def distil_words(settings: Settings, run: Path) -> list[str]:
    own = {k: v for k, v in settings.items() if not k.startswith("store.")}
    return [
        *extract_words(own),
        "student=bevdepth_tiny",
        "method=distillbev",
        f"run={run}",
        "dry_run=true",
    ]


@pytest.mark.parametrize(
    ("change", "leaf"), SEEN_BY_STUDENTS, ids=lambda x: getattr(x, "__name__", x)
)
def test_student_refuses_a_cache_of_another_identity(
    change: Change, leaf: str, settings: Settings, call: Call, tmp_path: Path
) -> None:
    change(settings)
    code, _, err = call("student-distill", *distil_words(settings, tmp_path / "run"))
    assert code == 2
    assert leaf in err
    assert not (tmp_path / "run").exists()


def test_student_accepts_its_own_cache(settings: Settings, call: Call, tmp_path: Path) -> None:
    code, _, err = call("student-distill", *distil_words(settings, tmp_path / "run"))
    assert code == 0, err


def test_student_refuses_another_class_order(
    settings: Settings, call: Call, tmp_path: Path
) -> None:
    theirs = open_cache(settings["cache"])
    swapped = dict(theirs.fingerprint)
    swapped["classes"] = ["truck", "car", *swapped["classes"][2:]]
    url = tmp_path / "swapped.zarr"
    writer = create(
        str(url),
        list(theirs.specs.values()),
        theirs.frames,
        shard_rows=2,
        fingerprint=swapped,
        plan=theirs.plan,
        provenance=theirs.provenance,
    )
    from bevcask.cache.encoded import Encoded, concatenate

    for shard in writer.missing():
        rows = [theirs.read(token) for token in writer.tokens(shard)]
        writer.write(
            shard,
            {
                name: concatenate([_as_batch(row[name], Encoded) for row in rows])
                for name in theirs.specs
            },
        )
    writer.seal()
    settings["cache"] = str(url)
    code, _, err = call("student-distill", *distil_words(settings, tmp_path / "run"))
    assert code == 2
    assert "classes.0" in err


def _as_batch(one: object, kind: type) -> object:
    fields = ("values", "scale", "region", "count")
    return kind(
        *(None if (v := getattr(one, field)) is None else np.asarray(v)[None] for field in fields)
    )

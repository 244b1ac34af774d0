"""`bevcask inspect mcap=`: a scene that the package of the format reads back."""

import base64
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevcask.cache import open_cache
from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.geometry import CAMERAS, quaternion_to_matrix, transform_points
from bevcask.viz.sample import open_frames

Call = Callable[..., tuple[int, str, str]]
Film = dict[str, list[tuple[int, dict[str, Any]]]]


@pytest.fixture(scope="module")
def frames(cached_world: Path, tiny_world: Path) -> Frames:
    return open_frames(open_cache(str(cached_world)), DatasetConfig(root=str(tiny_world)))


@pytest.fixture(scope="module")
def film(
    cached_world: Path, call: Call, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Film, dict[str, str], dict[str, Any]]:
    """Topic to (time, message), topic to schema, and what was printed."""
    reader = pytest.importorskip("mcap.reader")
    path = tmp_path_factory.mktemp("film") / "scene.mcap"
    scene = str(open_cache(str(cached_world)).frames.scenes[-1])
    code, out, err = call("inspect", cached_world, f"mcap={path}", f"scene={scene}", "--json")
    assert code == 0, err
    found: Film = {}
    schemas = {}
    with path.open("rb") as file:
        for schema, channel, message in reader.make_reader(file).iter_messages():
            said = found.setdefault(channel.topic, [])
            said.append((message.log_time, json.loads(message.data)))
            schemas[channel.topic] = schema.name
            assert (schema.encoding, channel.message_encoding) == ("jsonschema", "json")
            assert json.loads(schema.data)["properties"].keys() == said[-1][1].keys()
    return found, schemas, json.loads(out)["mcap"]


def moved(transform: dict[str, Any]) -> np.ndarray[Any, Any]:
    turn, shift = transform["rotation"], transform["translation"]
    matrix = np.eye(4)
    matrix[:3, :3] = quaternion_to_matrix([turn[axis] for axis in "wxyz"])
    matrix[:3, 3] = [shift[axis] for axis in "xyz"]
    return matrix


def test_every_topic_has_every_frame_at_its_time(
    film: tuple[Film, dict[str, str], dict[str, Any]], frames: Frames
) -> None:
    found, schemas, printed = film
    wanted = {
        "/tf": "FrameTransforms",
        "/lidar": "PointCloud",
        "/truth": "SceneUpdate",
        "/teacher/head.boxes": "SceneUpdate",
        "/teacher/head.heatmap": "Grid",
        "/teacher/bev.neck": "Grid",
    }
    for camera in CAMERAS:
        wanted |= {
            f"/{camera}/image": "CompressedImage",
            f"/{camera}/calibration": "CameraCalibration",
        }
    wanted = {topic: f"foxglove.{kind}" for topic, kind in wanted.items()}
    assert wanted.items() <= schemas.items()
    times = (frames.index["frame_time"][frames.rows[3:]] * 1000).tolist()
    for topic, said in found.items():
        assert [time for time, _ in said] == times, topic
    stamp = found["/lidar"][0][1]["timestamp"]
    assert stamp["sec"] * 10**9 + stamp["nsec"] == times[0]
    assert (printed["frames"], printed["topics"]) == (3, len(found))
    assert printed["messages"] == 3 * len(found)


def test_boxes_lie_where_ground_truth_is(
    film: tuple[Film, dict[str, str], dict[str, Any]], frames: Frames
) -> None:
    found, _, _ = film
    for place, token in enumerate(frames.tokens[3:]):
        (entity,) = found["/truth"][place][1]["entities"]
        boxes, _, _ = frames.labels(token)
        assert entity["frame_id"] == "LIDAR_TOP"
        assert len(entity["cubes"]) == len(entity["texts"]) == len(boxes) > 0
        for cube, box in zip(entity["cubes"], boxes, strict=True):
            position, turn = cube["pose"]["position"], cube["pose"]["orientation"]
            assert [position[axis] for axis in "xyz"] == pytest.approx(box[:3].tolist())
            assert [cube["size"][axis] for axis in "xyz"] == pytest.approx(box[3:6].tolist())
            heading = quaternion_to_matrix([turn[axis] for axis in "wxyz"])[:2, 0]
            assert heading == pytest.approx([np.cos(box[6]), np.sin(box[6])], abs=1e-6)


def test_frames_hang_together_as_in_the_tables(
    film: tuple[Film, dict[str, str], dict[str, Any]], frames: Frames
) -> None:
    found, _, _ = film
    ego, *cameras = found["/tf"][1][1]["transforms"]
    assert (ego["parent_frame_id"], ego["child_frame_id"]) == ("global", "LIDAR_TOP")
    at = np.array([[3.0, 20.0, -1.0]])
    expected = transform_points(at, frames.lidar_to_global[4])
    assert transform_points(at, moved(ego)) == pytest.approx(expected, abs=1e-4)
    assert [own["child_frame_id"] for own in cameras] == list(CAMERAS)
    for own, matrix in zip(cameras, frames.index["frame_camera_to_lidar"][4], strict=True):
        assert own["parent_frame_id"] == "LIDAR_TOP"
        assert moved(own) == pytest.approx(matrix, abs=1e-5)


def test_bytes_are_those_of_dataset_and_cache(
    film: tuple[Film, dict[str, str], dict[str, Any]], frames: Frames, cached_world: Path
) -> None:
    found, _, _ = film
    image = found["/CAM_BACK/image"][2][1]
    path = frames.index["frame_image"][5, CAMERAS.index("CAM_BACK")].decode()
    assert base64.b64decode(image["data"]) == (frames.root / path).read_bytes()
    assert (image["frame_id"], image["format"]) == ("CAM_BACK", "jpeg")
    grid = found["/teacher/bev.neck"][2][1]
    cells = np.frombuffer(base64.b64decode(grid["data"]), [("value", "<f4"), ("rgba", "u1", 4)])
    cache = open_cache(str(cached_world))
    values = np.abs(cache.read_float(frames.tokens[5])["bev.neck"]).mean(0)
    np.testing.assert_allclose(cells["value"].reshape(values.shape), values)
    lattice = cache.specs["bev.neck"].tap.grid
    assert lattice is not None
    assert grid["column_count"] == values.shape[1]
    assert grid["row_stride"] == values.shape[1] * grid["cell_stride"]
    assert grid["pose"]["position"]["x"] == lattice.x_min
    assert np.ptp(cells["rgba"][:, 0]) > 100
    points = found["/lidar"][2][1]
    assert len(base64.b64decode(points["data"])) % points["point_stride"] == 0


def test_what_is_missing_is_named(
    cached_world: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scene.mcap"
    if find_spec("mcap"):
        code, _, err = call("inspect", cached_world, f"mcap={path}", "scene=scene-0O01")
        assert code == 2
        assert "none of the 2 scenes of" in err
    monkeypatch.setitem(sys.modules, "mcap.writer", None)
    code, _, err = call("inspect", cached_world, f"mcap={path}")
    assert code == 2
    assert "pip install 'bevcask[mcap]'" in err
    assert list(tmp_path.iterdir()) == []

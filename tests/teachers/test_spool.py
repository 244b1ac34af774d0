"""A teacher that ran elsewhere keeps what every teacher promises."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bevcask.detectors.base import Batch
from bevcask.errors import DataError
from bevcask.geometry import CAMERAS, CLASSES
from bevcask.spool.manifest import Manifest, SpoolBoxes, SpoolTap, read_manifest
from bevcask.spool.reading import canonical, canonical_boxes, canonical_map
from bevcask.spool.recorder import Recorder
from contracts.teacher import TeacherContract

GRID = {"x_min": -4.0, "y_min": -3.0, "cell": 1.0}
TAPS: dict[str, Any] = {
    "bev.neck": {"kind": "dense_bev", "shape": [2, 6, 8], "grid": GRID},
    "head.heatmap": {"kind": "heatmap", "shape": [10, 6, 8], "grid": GRID},
    "head.boxes": {"kind": "box_set", "shape": [9, 11]},
    "occ.labels": {
        "kind": "voxel_labels",
        "shape": [1, 6, 8, 2],
        "axes": ["C", "Y", "X", "-Z"],
        "grid": GRID,
        "bins": [-1.0, 1.0],
        "classes": ["road", "free"],
    },
    "map.lines": {"kind": "polylines", "shape": [4, 8], "classes": ["divider", "crossing"]},
    "query.layers": {"kind": "query_layers", "shape": [2, 4, 3]},
    "query.tracks": {"kind": "track_ids", "shape": [4]},
    "image.fpn0": {"kind": "image_feature", "shape": [6, 2, 3, 4], "depends_on_images": True},
}


class TestSpool(TeacherContract):
    section: Mapping[str, Any]

    @pytest.fixture(autouse=True)
    def recorded(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        recorder = Recorder(str(tmp_path), {"taps": TAPS})
        for number in range(3):
            said = {name: random.random((1, *own["shape"])) for name, own in TAPS.items()}
            rows = random.random((1, number, 11))
            rows[..., 10] = 3
            said |= {"head.boxes": list(rows), "occ.labels": said["occ.labels"].round()}
            lines = random.random((1, number, 8))
            lines[..., 7] = 1
            recorder.put(
                [f"t{number}"],
                said
                | {
                    "map.lines": list(lines),
                    "query.layers": random.random((1, 2, number, 3)),
                    "query.tracks": 2**53 + np.arange(number)[None],
                },
            )
        self.section = {"type": "spool", "folder": str(tmp_path)}

    def batch(self, num_samples: int) -> Batch:
        tokens = [f"t{number}" for number in range(num_samples)]
        return Batch(tokens, torch.eye(4).expand(num_samples, 4, 4))

    def test_sets_end_where_they_do_and_begin_with_the_best(self) -> None:
        said = self.make()(self.batch(3), ["map.lines", "query.layers", "query.tracks"])
        assert said["query.layers.count"].tolist() == [0, 1, 2]
        assert (said["query.layers"] != 0).any(3).sum(2).tolist() == [[0, 0], [1, 1], [2, 2]]
        assert said["query.tracks"].tolist()[2] == [2**53, 2**53 + 1, 0, 0]
        assert said["map.lines.count"].tolist() == [0, 1, 2]
        assert (said["map.lines"] != 0).any(2).sum(1).tolist() == [0, 1, 2]
        assert said["map.lines"][2, 0, 6] > said["map.lines"][2, 1, 6]

    def test_damage_is_named(self) -> None:
        path = Path(self.section["folder"]) / "samples" / "t1.safetensors"
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(DataError, match=r"t1\.safetensors: damaged"):
            self.make()(self.batch(2), ["bev.neck"])


def test_boxes_by_hand() -> None:
    """mmdet3d below 1.0: w before l, bottoms, clockwise from -y."""
    said = SpoolBoxes(
        columns=("x", "y", "z", "w", "l", "h", "yaw", "score", "label"),
        z="bottom", yaw_zero="-y", yaw_turns="clockwise",
    )  # fmt: skip
    classes = (*CLASSES[1:], CLASSES[0])
    rows = torch.tensor([[1.0, 2, 3, 4, 5, 6, -math.pi / 2, 0.3, 9], [0, 0, 0, 1, 1, 2, 0, 0.9, 0]])
    found = canonical_boxes(rows, said, classes)
    expected = torch.tensor(
        [
            [0.0, 0, 1, 1, 1, 2, -math.pi / 2, 0, 0, 0.9, 1],
            [1.0, 2, 6, 5, 4, 6, 0.0, 0, 0, 0.3, 0],
        ]
    )
    torch.testing.assert_close(found, expected)


def test_maps_by_hand() -> None:
    """The cell of the greatest x and the smallest y, whichever way it is written."""
    plain = torch.zeros(2, 3, 4)
    plain[1, 0, 3] = 5.0
    for axes, written in {
        ("C", "Y", "X"): plain,
        ("X", "Y", "C"): plain.permute(2, 1, 0),
        ("C", "-Y", "X"): plain.flip(1),
        ("-X", "C", "-Y"): plain.flip(1, 2).permute(2, 0, 1),
    }.items():
        said = SpoolTap(kind="dense_bev", shape=tuple(written.shape), axes=axes, grid=GRID)  # type: ignore[arg-type]
        assert torch.equal(canonical_map(written, said, CLASSES), plain)


def test_voxels_by_hand() -> None:
    plain = torch.zeros(2, 4, 2, 3)
    plain[1, 3, 0, 2] = 5.0
    for axes, written in {
        ("C", "Y", "X"): plain,  # nothing said
        ("X", "Y", "Z", "C"): plain.permute(3, 2, 1, 0),
        ("C", "-Z", "Y", "-X"): plain.flip(1, 3),
    }.items():
        tap = {"kind": "occupancy", "shape": written.shape, "axes": axes, "grid": GRID}
        said = {"classes": ["road", "free"], "bins": [0.0, 1.0, 2.0, 3.0], "values": "logits"}
        manifest = Manifest.model_validate({"taps": {"occ": tap | said}})
        found = canonical({"occ": written}, manifest, ["occ"])["occ"]
        assert manifest.tap("occ").shape == tuple(found.shape)
        assert manifest.tap("occ").classes == ("road", "free")
        assert torch.equal(found, plain.softmax(0))


def test_a_manifest_of_before_is_the_same_teacher() -> None:
    """What it could not say yet is no part of its identity."""
    own = Manifest.model_validate({"taps": TAPS}).model_dump()["taps"]["bev.neck"]
    assert not {"classes", "given", "of"} & set(own)


def test_gifts_and_moments_are_said_of_taps() -> None:
    moments = {"kind": "channel_moments", "shape": [2, 2], "of": "bev.neck", "given": ["future"]}
    manifest = Manifest.model_validate({"taps": TAPS | {"bev.moments": moments}})
    assert manifest.tap("bev.moments").given == ("future",)
    assert manifest.tap("bev.moments").grid == manifest.tap("bev.neck").grid


def test_cameras_are_put_in_our_order() -> None:
    cameras = (*CAMERAS[2:], *CAMERAS[:2])
    manifest = Manifest(taps={"image.fpn0": TAPS["image.fpn0"]}, cameras=cameras)
    values = torch.arange(6.0)[:, None, None, None].expand(6, 2, 3, 4)
    found = canonical({"image.fpn0": values}, manifest, ["image.fpn0"])["image.fpn0"]
    assert [cameras[int(own)] for own in found[:, 0, 0, 0]] == list(CAMERAS)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"classes": ["car"]}, r"manifest: classes \['car'\]: expected the ten"),
        ({"cameras": ["CAM_FRONT"]}, r"cameras \['CAM_FRONT'\]: expected all of CAM_FRONT_LEFT"),
        ({"layout": 7}, "layout 7, this bevcask reads 1"),
        ({"format": "x"}, "no manifest of a spool"),
        ({"memory": "long"}, "memory: "),
        ({"taps": {}}, "taps: "),
        ({"taps": {"a": {"kind": "dense_bev", "shape": [2, 6, 8]}}}, "needs a grid"),
        ({"taps": {"a": TAPS["bev.neck"] | {"axes": ["C", "X", "X"]}}}, "C, Y and X once each"),
        ({"taps": {"a": TAPS["occ.labels"] | {"axes": ["C", "Y", "X", "X"]}}}, "C, Z, Y and X on"),
        ({"boxes": {"columns": ["x", "y"]}}, "columns lack h, l, label"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    tree = {"format": "bevcask-spool", "layout": 1, "taps": TAPS} | change
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=told):
        read_manifest(tmp_path)


def test_no_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not there.*bevcask recorder"):
        read_manifest(tmp_path)

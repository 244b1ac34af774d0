"""Heads that predict sets: their queries are a target like any other."""

from pathlib import Path

import pytest
import torch

from bevcask.config import DatasetConfig, StoreConfig, TeacherConfig
from bevcask.data.index.frames import Frames
from bevcask.data.samples import SampleReader, collate
from bevcask.groups import load_group
from bevcask.targets.plan import plan
from bevcask.targets.spec import Need
from bevcask.teachers.native import NativeTeacher

pytestmark = pytest.mark.mmdet3d

CONFIG = """
_base_ = ["{base}"]
custom_imports = dict(imports=["query_model"])
model = dict(pts_bbox_head=dict(
    _delete_=True, type="SmallQueryHead", in_channels=96, num_queries=20))
"""


@pytest.fixture
def section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A teacher section whose config imports a module of the user's own."""
    from bevcask.detectors.mmdet3d.recipe import find

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    detector = load_group("detector", "mmdet3d_centerpoint_tiny")
    path = tmp_path / "query.py"
    path.write_text(CONFIG.format(base=find(detector["config"])))
    for part in ("bbox_head", "train_cfg", "test_cfg"):
        detector["options"]["model"].pop(f"pts_{part}", detector["options"]["model"].pop(part, 0))
    detector["taps"] = {
        "query.last": {"at": "pts_bbox_head.decoder", "kind": "query_set", "axes": "LBQC"}
    }
    return {"type": "native", "detector": {**detector, "config": str(path)}}


def test_queries_are_read_and_boxes_decoded(section: dict[str, object], tiny_world: Path) -> None:
    teacher = NativeTeacher(TeacherConfig.model_validate(section), seed=1)
    taps = teacher.taps()
    assert taps["query.last"].shape == (20, 32)
    assert taps["query.last"].kind == "query_set"
    assert "head.heatmap" not in taps
    frames = Frames.select(
        DatasetConfig(root=str(tiny_world), version="v1.0-synthetic", split="all")
    )
    batch = collate([SampleReader(frames, teacher.inputs(), None, 0).read(t)
                     for t in frames.tokens[:2]])  # fmt: skip
    said = teacher(batch, ["query.last", "bev.neck", "head.boxes"])
    assert said["head.boxes.count"].tolist() == [20, 20]
    kept = {}
    network = teacher.detector.network
    network.pts_bbox_head.decoder.register_forward_hook(lambda m, i, o: kept.update(all=o))
    again = teacher(batch, ["query.last"])
    assert torch.equal(again["query.last"], kept["all"][-1])
    assert not torch.equal(kept["all"][0], kept["all"][1])
    needs = [Need("queries", "query.last", "query_set")]
    chosen = plan(needs, taps, 2, StoreConfig(), None)
    assert chosen.specs[0].codec == "float16"

"""A real mmdet3d model under the recorder fills the cache that it fills in this process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from bevcask.cache.reader import open_cache
from bevcask.cli import app
from contracts.mmdet3d_reference import NAME, untrained

pytestmark = [pytest.mark.mmdet3d, pytest.mark.nuscenes]

TESTS = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("recording.py")
FRAMES = 3


def record(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )


def extract(url: Path, root: Path, *words: str) -> Any:
    answer = CliRunner().invoke(
        app,
        [
            "teacher-extract", str(url), *words, "dataset=mini", f"dataset.root={root}",
            "dataset.split=mini_val", f"dataset.limit={FRAMES}", "store.codec=float32",
            "loader.batch_size=1", "loader.num_workers=0",
        ],
    )  # fmt: skip
    assert answer.exit_code == 0, answer.stderr
    return open_cache(str(url))


def test_killed_resumed_and_extracted_is_what_it_says_here(
    nuscenes_root: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "model.pth"
    torch.save({"meta": {}, "state_dict": untrained(NAME).state_dict()}, checkpoint)
    first = record(checkpoint, nuscenes_root, tmp_path / "spool", 2)
    assert first.returncode == 9, first.stderr
    assert first.stdout.count("recorded") == 2
    second = record(checkpoint, nuscenes_root, tmp_path / "spool")
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("recorded") == FRAMES - 2

    there = extract(
        tmp_path / "there.zarr", nuscenes_root,
        "teacher=spool", f"teacher.folder={tmp_path / 'spool'}",
    )  # fmt: skip
    here = extract(
        tmp_path / "here.zarr", nuscenes_root, "teacher=mmdet3d_centerpoint_pillar02",
        f"teacher.checkpoint={checkpoint}", "teacher.trust_checkpoint=true",
    )  # fmt: skip
    assert there.frames.tokens == here.frames.tokens
    for token in here.frames.tokens:
        one, other = here.read(token), there.read(token)
        for name in ("bev.block1", "bev.block2", "bev.neck", "head.heatmap"):
            np.testing.assert_array_equal(other[name].values, one[name].values, err_msg=name)
            assert float(np.abs(one[name].values).max()) > 0
        count = int(one["head.boxes"].count)
        assert count == int(other["head.boxes"].count) > 100
        np.testing.assert_allclose(
            other["head.boxes"].values[:count], one["head.boxes"].values[:count], atol=1e-5
        )

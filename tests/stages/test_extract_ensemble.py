"""A cache of an ensemble of caches: made, checked and scored like any other."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bevcask.cache.reader import open_cache

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
def test_a_teacher_with_itself_scores_as_alone(
    tiny_world: Path, tmp_path: Path, call: Call
) -> None:
    data = ["dataset=synthetic", f"dataset.root={tiny_world}"]
    chosen = [*data, "dataset.split=synthetic_val", "loader.num_workers=0"]
    trained = ["teacher=centerpoint_tiny", "teacher.checkpoint=catalog:centerpoint_tiny_synthetic"]
    stored = ["method=none", "method.heatmap=head.heatmap"]
    one, two, both = (str(tmp_path / name) for name in ("one.zarr", "two.zarr", "both.zarr"))
    code, _, err = call("teacher-extract", one, *trained, *stored, *chosen, "store.codec=float32")
    assert code == 0, err
    shutil.copytree(one, two)
    ensemble = ["teacher=ensemble", f"teacher.of={one},{two}", "teacher.weights=[1,1]"]
    words = ["teacher-extract", both, *ensemble, *stored]
    code, _, err = call(*words, *data, "dataset.split=all", "loader.num_workers=0")
    assert code == 2
    assert "have no row in the cache" in err
    assert not Path(both).exists()
    for again in range(2):  # and again: it is there already
        code, out, err = call(*words, *chosen, "store.codec=float32", "--json")
        assert code == 0, err
        assert json.loads(out)["sealed"], again
    scores = []
    for url in (one, both):
        code, out, err = call("evaluate", url, *chosen, f"run={tmp_path / 'run'}", "--json")
        assert code == 0, err
        scores.append(json.loads(out))
    assert scores[0]["mAP"] > 0.3
    assert scores[1]["mAP"] == scores[0]["mAP"]
    assert scores[1]["NDS"] == scores[0]["NDS"]
    caches = [open_cache(url) for url in (one, both)]
    token = caches[0].frames.tokens[0]
    first, second = (cache.read_float(token) for cache in caches)
    for name in ("head.heatmap", "head.boxes"):
        assert (first[name] == second[name]).all(), name
    code, out, err = call("verify", both, "check=meaning", f"dataset.root={tiny_world}", "--json")
    assert code == 0, out + err

"""plan: what other numbers of views cost, and how much of a step a cache saves."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bevcask.compose import compose
from bevcask.disk_rate import DiskRate
from bevcask.stages import plan
from bevcask.verbs import PlanConfig
from bevcask.viz import planned

Call = Callable[..., tuple[int, str, str]]
NOMINAL = ["dataset=nuscenes", "dataset.split=train"]


def test_the_released_row_by_views() -> None:
    """Spec 3.3: 323 GB a view of nuScenes-train in float16; a pass a view, one for the boxes."""
    row = ["experiment=harmodistill_raydn_r50_r18", "store.codecs=[]"]
    result = plan.run(compose(PlanConfig, row))
    views = {row["views"]: row for row in result["by_views"]}
    assert views.keys() == {1, 2, 4}
    assert views[2]["bytes"] == result["total_bytes"]
    assert views[2]["passes"] == result["teacher_passes"]
    a_view = views[2]["bytes"] - views[1]["bytes"]
    assert a_view / 1e9 == pytest.approx(323, rel=2e-3)
    assert views[4]["bytes"] == pytest.approx(views[1]["bytes"] + 3 * a_view)


def test_a_window_costs_a_pass_for_each_of_its_frames() -> None:
    row = ["experiment=focaldistiller_bevformer_base_small"]
    result = plan.run(compose(PlanConfig, row))
    (mine,) = (row for row in result["by_views"] if row["views"] == 2)
    assert mine["passes"] == result["teacher_passes"] > 4 * result["frames"]


def test_a_step_with_and_without_its_teacher() -> None:
    words = [*NOMINAL, "teacher=raydn_tiny", "student=raydn_tiny", "method=harmodistill"]
    step = plan.run(compose(PlanConfig, [*words, "step=true"]))["step"]
    teacher, student = step["teacher_operations"], step["student_operations"]
    assert 3 * teacher < student < 6 * teacher  # the head in the images is of training alone
    assert step["times_faster_at_most"] == pytest.approx((student + teacher) / student)


def test_what_cannot_be_counted_is_told(call: Call) -> None:
    code, _, err = call("plan", *NOMINAL, "teacher=centerpoint_tiny", "step=true")
    assert code == 2
    assert "step=true counts operations of detectors of bevcask's own, and student= names" in err


def test_it_says_so_in_words(call: Call) -> None:
    words = [*NOMINAL, "teacher=raydn_tiny", "student=raydn_tiny", "method=harmodistill"]
    code, out, err = call("plan", *words, "store.views=1", "augment.image_flip=true", "step=true")
    assert code == 0, err
    said = " ".join(out.split())
    assert "by store.views, 1: " in said
    assert "without one it is at most 1." in said


@pytest.mark.slow
def test_hours_are_those_of_a_real_extraction(
    teacher_words: list[str], tmp_path: Path, call: Call
) -> None:
    words = [*teacher_words, "method=distillbev", "loader.batch_size=1", "store.shard_rows=2"]
    given = ["plan", f"cache={tmp_path / 'later' / 'c.zarr'}", *words]
    code, out, err = call(*given, "time=6", "--json")
    assert code == 0, err
    found = json.loads(out)["time"]
    assert found["probed_frames"] == 6
    assert found["seconds"] >= 6 * found["seconds_per_frame"] > 0
    assert found["teacher_seconds"] <= found["seconds_per_frame"] * 1.001
    assert found["write_rate"] > 0
    assert list(tmp_path.iterdir()) == []
    code, _, err = call(*given, "time=2")
    assert code == 2
    assert "a rate needs 6 batches of loader.batch_size=1. Say time=6 or more" in err


def test_time_needs_frames(call: Call) -> None:
    code, _, err = call("plan", *NOMINAL, "teacher=centerpoint_tiny", "time=64")
    assert code == 2
    assert "time=64 extracts frames, and there are none in" in err


@pytest.mark.parametrize(
    ("pays", "said"), [(3, "caching pays from epoch 3 on"), (None, "do not cache")]
)
def test_whether_it_pays_is_said(pays: int | None, said: str) -> None:
    times = {
        "seconds": 4000.0, "seconds_per_frame": 0.5, "probed_frames": 64, "bound_by": "loader",
        "stored_per_frame": 1e6, "write_rate": 2e8, "settled": False, "teacher_seconds": 0.3,
        "read_seconds": 0.01, "pays_from_epoch": pays,
    }  # fmt: skip
    lines = " ".join(planned._times(times))
    assert said in lines
    assert "extraction: 66.7 min (0.5 s a frame, timed on 64 frames; bound by the loader" in lines
    assert "the disk takes 200 MB/s, and had not settled yet" in lines


def test_the_disk_is_asked_beside_a_cache_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "c.zarr"
    there.mkdir()
    monkeypatch.setattr(plan, "disk_rate", lambda place: DiskRate(place, 1.0, True, 1))
    found = plan._disk_of(PlanConfig(cache=str(there)))
    assert found is not None
    assert found.folder == tmp_path

"""An ensemble says the mean of heatmaps and the union of boxes that its caches hold."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bevcask.cache import open_cache
from bevcask.detectors.base import Batch
from bevcask.errors import BevcaskError, CacheIdentityError, ConfigError, TargetMismatchError
from bevcask.geometry import CLASSES, Grid
from bevcask.targets.spec import Region, TargetSpec
from bevcask.teachers.ensemble import EnsembleConfig, EnsembleTeacher, union
from cache.example import FINGERPRINT, SPECS, build, frame_table
from contracts.teacher import TeacherContract

HEAT, BOXES = replace(SPECS[3], region=Region()), SPECS[4]
MADE = FINGERPRINT | {"classes": list(CLASSES)}
RADIUS = EnsembleConfig(of="a").radius


def make(folder: Path, name: str, *specs: TargetSpec, **changes: Any) -> str:
    made = {"specs": specs or (SPECS[0], HEAT, BOXES), "fingerprint": MADE, **changes}
    return build(folder / name, **made)


def teacher(*urls: str, **keys: Any) -> EnsembleTeacher:
    return EnsembleTeacher(EnsembleConfig(of=",".join(urls), **keys), 0)


def batch(num_samples: int) -> Batch:
    tokens = list(frame_table().tokens)[:num_samples]
    return Batch(tokens, torch.eye(4).expand(num_samples, 4, 4))


class TestEnsemble(TeacherContract):
    section: Mapping[str, Any]

    @pytest.fixture(autouse=True)
    def two(self, tmp_path: Path) -> None:
        urls = [make(tmp_path, name) for name in "ab"]
        self.section = {"type": "ensemble", "of": ",".join(urls), "weights": [2, 1]}

    def batch(self, num_samples: int) -> Batch:
        return batch(num_samples)


def test_the_mean_by_hand(tmp_path: Path) -> None:
    exact = replace(HEAT, codec="float32")
    one, two = make(tmp_path, "one", exact), make(tmp_path, "two", replace(exact, codec="uint8"))
    shown = batch(2)
    found = teacher(one, two, weights=(3.0, 1.0))(shown, ["head.heatmap"])["head.heatmap"]
    for value, token in zip(found, shown.tokens, strict=True):
        a, b = (
            torch.from_numpy(open_cache(url).read_float(token)["head.heatmap"])
            for url in (one, two)
        )
        assert not torch.equal(a, b)
        torch.testing.assert_close(value, 0.75 * a + 0.25 * b)


def row(x: float, score: float, label: int) -> list[float]:
    return [x, 0, 0, 4, 2, 1, 0, 0, 0, score, label]


def test_the_union_by_hand() -> None:
    car, cone = CLASSES.index("car"), CLASSES.index("traffic_cone")
    one = torch.tensor([row(0, 0.9, car), row(1.5, 0.6, car), row(20, 0.4, cone)])
    two = torch.tensor([row(1, 0.8, car), row(20.5, 0.7, cone), row(0, 0.5, cone)])
    found = union([one, two], (1.0, 0.5), RADIUS)
    expected = [
        row(0, 0.9, car),  # silences (1, 0.4, car) of the other
        row(1.5, 0.6, car),  # near the first, but of the same cache
        row(20, 0.4, cone),  # a cone half a metre away is another cone
        row(20.5, 0.35, cone),
        row(0, 0.25, cone),  # of another class
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert torch.equal(union([one, one.clone()], (2.0, 2.0), RADIUS), one)
    assert union([one[:0], one[:0]], (1.0, 1.0), RADIUS).shape == (0, 11)


def test_who_speaks_and_how_loud_is_its_identity(tmp_path: Path) -> None:
    one, two = make(tmp_path, "one"), make(tmp_path, "two", SPECS[0], BOXES)
    both = teacher(one, two)
    assert list(both.taps()) == ["head.boxes"]
    said = both.fingerprint()
    assert [own["id"] for own in said["config"]["of"]] == [open_cache(u).id for u in (one, two)]
    assert teacher(one, two, weights=(2.0, 1.0)).fingerprint()["weights"] != said["weights"]


@pytest.mark.parametrize(
    ("other", "keys", "error", "told"),
    [
        ({"frames": frame_table((3, 2))}, {}, CacheIdentityError, r"1 of 6 frames of .*one"),
        ({"fingerprint": FINGERPRINT}, {}, CacheIdentityError, "classes"),
        (
            {"specs": [replace(HEAT, tap=replace(HEAT.tap, grid=Grid(-4.0, -3.0, 0.5, 8, 6)))]},
            {}, TargetMismatchError, "needs the same cells",
        ),
        ({"specs": [SPECS[3]]}, {}, TargetMismatchError, r"region 'confident > 0.77'.*method=none"),
        ({"specs": [SPECS[0]]}, {}, TargetMismatchError, "no heatmap and no boxes"),
        ({}, {"weights": (1.0,)}, ConfigError, r"teacher\.weights=\[1\.0\]: expected 2"),
        ({}, {"weights": (1.0, 0.0)}, ConfigError, "above 0"),
    ],
)  # fmt: skip
def test_caches_that_do_not_go_together_are_refused(
    tmp_path: Path,
    other: dict[str, Any],
    keys: dict[str, Any],
    error: type[BevcaskError],
    told: str,
) -> None:
    one, two = make(tmp_path, "one"), make(tmp_path, "two", **other)
    with pytest.raises(error, match=told):
        teacher(one, two, **keys).taps()


def test_labels_are_refused_and_not_passed_over() -> None:
    with pytest.raises(ConfigError, match=r"have no labels\. Give teacher\.of=x\.zarr,y\.zarr"):
        teacher("a=x.zarr", "b=y.zarr")

"""A size that no network can have is refused by its key, before anything is built."""

from collections.abc import Iterator
from typing import Any, get_origin

import pytest
import torch

from bevcask.compose import section_of
from bevcask.config import Config, build_config
from bevcask.errors import BevcaskError, ConfigError
from bevcask.groups import load_group

TINY = [
    "bevdepth4d_tiny",
    "bevformer_tiny",
    "bevfusion_tiny",
    "bevsimdet_tiny",
    "centerpoint_tiny",
    "pillarnext_tiny",
    "raydn_tiny",
    "streampetr_tiny",
]


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("centerpoint_tiny", "pillar", 0, "expected a number, above 0, got 0."),
        ("centerpoint_tiny", "half_extent", 0, "expected a number, above 0, got 0."),
        ("centerpoint_tiny", "pillar_channels", -1, "expected a whole number, at least 1, got -1."),
        (
            "centerpoint_tiny",
            "strides",
            [2, 0, 2],
            "expected a list [whole number, whole number, whole number], each at least 1, got [2, ",
        ),
        ("centerpoint_tiny", "z_range", [3, -5], "expected [low, high] with low < high, got [3"),
        ("pillarnext_tiny", "point_layers", [0], "expected a list as in [1,2], of whole numbers,"),
        ("bevformer_tiny", "bev_size_YX", [0, 0], "expected a list [whole number, whole number],"),
        ("streampetr_tiny", "backbone.levels", [], "expected a list, in brackets, of c2, c3, c4, "),
        ("bevdepth4d_tiny", "head.channels", 0, "expected a whole number, at least 1, got 0."),
    ],
)
def test_a_size_below_its_limit_is_named(name: str, key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config("detector", _changed(name, key, value), "student.detector")
    assert str(caught.value).startswith(f"student.detector.{key}: {message}")


@pytest.mark.parametrize(
    ("name", "cell"), [("pillarnext_tiny", "pillar"), ("bevdepth_tiny", "cell")]
)
def test_a_cell_wider_than_the_world_is_refused(name: str, cell: str) -> None:
    with pytest.raises(ConfigError, match=r"half_extent \d+\.\d is less than a cell of 1000000"):
        build_config("detector", _changed(name, cell, 1e6), "student.detector")


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_whatever_is_taken_can_be_built(name: str) -> None:
    plugin, whole = build_config("detector", load_group("detector", name), "x")
    for key, kind in _numbers(type(whole)):
        several = get_origin(kind) is tuple
        for value in ([0, 0], [-1] * 3, [0] * 3, [-1] * 4, []) if several else (-1, 0, 1, 0.5):
            try:
                _, config = build_config("detector", _changed(name, key, value), "x")
                with torch.device("meta"):
                    plugin(config)
            except BevcaskError:
                pass
            except Exception as error:
                raise AssertionError(f"{key}={value}") from error


def _numbers(model: type[Config], where: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        below = section_of(field.annotation)
        if below is None:
            yield f"{where}{name}", field.annotation
        else:
            yield from _numbers(below, f"{where}{name}.")


def _changed(name: str, key: str, value: Any) -> dict[str, Any]:
    section = load_group("detector", name)
    *path, leaf = key.split(".")
    part = section
    for one in path:
        part = part.setdefault(one, {})
    part[leaf] = value
    return section

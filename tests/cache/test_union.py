"""Several caches read as one."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from bevcask.cache import open_cache
from bevcask.cache.union import open_caches, split_urls
from bevcask.errors import ConfigError, UnknownNameError
from cache.example import SPECS, build


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("union")
    one = build(folder / "one", specs=SPECS[:3])
    return one, build(folder / "two", specs=SPECS[2:5], shard_rows=4)


def test_every_target_comes_from_its_cache(urls: tuple[str, str]) -> None:
    both = pickle.loads(pickle.dumps(open_caches(",".join(urls))))
    one, two = map(open_cache, urls)
    tokens = one.frames.tokens[4:1:-1]
    names = ["head.boxes", "bev.neck", "head.heatmap"]
    found = both.read_batch(tokens, names)
    assert list(found) == names
    for name, cache in zip(names, (two, one, two), strict=True):
        expected = cache.read_batch(tokens, [name])[name]
        np.testing.assert_array_equal(found[name].values, expected.values)
    assert both.ids == f"{one.id},{two.id}"
    assert both.urls == ",".join(urls)
    assert set(both.specs) == {spec.name for spec in SPECS[:5]}


def test_a_target_in_two_caches_of_one_teacher_is_read_from_the_first(
    urls: tuple[str, str],
) -> None:
    assert open_caches(",".join(urls)).home("bev.silent").url == urls[0]
    assert open_caches(",".join(urls[::-1])).home("bev.silent").url == urls[1]


def test_a_target_of_two_teachers_is_refused_only_when_read(
    urls: tuple[str, str], tmp_path: Path
) -> None:
    other = {"teacher": {"type": "native/other", "weights": "ab"}, "seed": 0}
    urls = urls[0], build(tmp_path / "two", specs=SPECS[2:5], fingerprint=other)
    both = open_caches(",".join(urls))
    with pytest.raises(ConfigError) as caught:
        both.read_batch([next(iter(both)).frames.tokens[0]], ["bev.neck", "bev.silent"])
    assert f"target 'bev.silent' is in {urls[0]} and in {urls[1]}" in str(caught.value)


def test_a_target_in_no_cache_is_named(urls: tuple[str, str]) -> None:
    with pytest.raises(UnknownNameError, match=r"has a target 'bev.nack'.*bev.neck"):
        open_caches(",".join(urls)).home("bev.nack")


def test_two_teachers_are_told_apart_by_labels(urls: tuple[str, str], tmp_path: Path) -> None:
    other = {"teacher": {"type": "native/other", "weights": "ab"}, "seed": 0}
    second = build(tmp_path / "two", specs=SPECS[2:5], fingerprint=other)
    said = f"lidar={urls[0]},camera={second}"
    assert split_urls(said) == [urls[0], second]
    both = open_caches(said)
    assert both.urls == said
    assert {"lidar/bev.silent", "camera/bev.silent", "camera/head.boxes"} <= both.specs.keys()
    assert both.specs["camera/bev.silent"].name == "camera/bev.silent"
    tokens = both.read_batch([], []) or next(iter(both)).frames.tokens[:3]
    found = both.read_batch(tokens, ["camera/bev.silent", "lidar/bev.silent"])
    for name, url in (("camera/bev.silent", second), ("lidar/bev.silent", urls[0])):
        expected = open_cache(url).read_batch(tokens, ["bev.silent"])["bev.silent"]
        np.testing.assert_array_equal(found[name].values, expected.values)
    with pytest.raises(UnknownNameError, match=r"no cache.*has a target 'bev.silent'.*lidar/bev"):
        both.home("bev.silent")


@pytest.mark.parametrize("urls", ["a,", ",", "a,b,a", "x=a,x=b", "x=a,y=a"])
def test_lists_that_are_none(urls: str) -> None:
    with pytest.raises(ConfigError, match="expected different cache URLs, separated by commas"):
        split_urls(urls)

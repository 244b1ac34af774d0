"""No command writes into a cache, or over a file of another sort."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bevcask.cli import app
from bevcask.errors import ConfigError
from bevcask.outputs import cache_place, output_file, output_folder
from cache.example import build


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(build(tmp_path_factory.mktemp("outputs") / "cache.zarr"))


@pytest.mark.parametrize(
    "words",
    [
        lambda url: ["verify", url, f"repair={url}/zarr.json"],
        lambda url: ["verify", url, f"repair={url}/new.jsonl"],
        lambda url: ["inspect", url, "sample=first", f"picture={url}/zarr.json"],
        lambda url: ["inspect", url, "sample=first", f"picture={url}/targets/p.png"],
        lambda url: ["export", f"{url}/w.safetensors", "run=nowhere"],
        lambda url: ["evaluate", url, f"run={url}"],
        lambda url: ["evaluate", url, f"run={url}/frames/scores"],
    ],
)
def test_a_cache_is_written_to_by_nobody_else(
    words: Callable[[Path], list[object]], url: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in url.rglob("*")}
    answer = CliRunner().invoke(app, [str(word) for word in words(url)])
    assert answer.exit_code == 2
    assert "Nothing was written." in answer.stderr
    assert before == {path: path.stat().st_mtime_ns for path in url.rglob("*")}


@pytest.mark.parametrize("name", ["weights.safetensors", "x.jpg", "x", "folder.png"])
def test_a_file_of_another_sort_is_not_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "weights.safetensors").write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"expected a file that ends with \.png"):
        output_file("picture", str(tmp_path / name), ".png")
    assert (tmp_path / "weights.safetensors").read_bytes() == b"precious"


def test_other_places_are_taken(tmp_path: Path) -> None:
    assert output_file("picture", str(tmp_path / "new" / "p.png"), ".png").name == "p.png"
    assert output_folder("run", str(tmp_path / "run")) == tmp_path / "run"
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="this is a file"):
        output_folder("run", str(tmp_path / "file"))


def test_a_cache_is_no_file(tmp_path: Path) -> None:
    place = tmp_path / "c.zarr"
    assert cache_place(str(place)) == str(place)
    place.touch()
    with pytest.raises(ConfigError, match=r"cache=.*c.zarr: expected a folder, and this is a file"):
        cache_place(str(place))
    assert cache_place("s3://bucket/c.zarr") == "s3://bucket/c.zarr"

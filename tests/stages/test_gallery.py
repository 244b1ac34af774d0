"""The notebook of docs runs from top to bottom, and is kept without what it showed."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from viz.test_runs import run_folder

GALLERY = Path(__file__).resolve().parent.parent.parent / "docs" / "gallery.ipynb"


@pytest.fixture(scope="module")
def sources() -> list[str]:
    """The code cells."""
    cells = [own for own in json.loads(GALLERY.read_text())["cells"] if own["cell_type"] == "code"]
    assert all(own["outputs"] == [] and own["execution_count"] is None for own in cells)
    return ["".join(own["source"]) for own in cells]


def shown(source: str, names: dict[str, Any]) -> Any:
    """Run a cell; return what a notebook would show of it."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, str(GALLERY), "exec"), names)
        return None
    tree.body.pop()
    exec(compile(tree, str(GALLERY), "exec"), names)
    value = eval(compile(ast.Expression(last.value), str(GALLERY), "eval"), names)
    return value._repr_html_() if hasattr(value, "_repr_html_") else value


def test_gallery_runs(
    sources: list[str], cached_world: Path, tiny_world: Path, tmp_path: Path
) -> None:
    first, *others = sources
    names: dict[str, Any] = {}
    assert shown(first, names) is None
    assert {"CACHE", "DATASET"} == names.keys() - {"__builtins__"}
    (tmp_path / "cache.zarr").symlink_to(cached_world)
    for run in ("a", "b"):
        run_folder(tmp_path / run, {"seed": run}, {2: 0.25})
    names |= {"CACHE": str(tmp_path / "cache.zarr"), "DATASET": str(tiny_world)}
    values = [shown(source, names) for source in others]
    cache, spec, attributes, energy, brightest, picture, by_class, plan, runs = values
    assert "6 frames of 2 scenes, sealed" in cache
    assert "x -51.2 to 51.2 m" in spec
    assert attributes["frame"].startswith("canonical LIDAR_TOP")
    assert "forward" in energy  # of a coordinate
    assert "m ahead" in brightest
    assert isinstance(picture, Image.Image)
    assert "true" in by_class["car"]
    assert "bev.neck" in plan
    assert "0.25" in runs
    assert "seed" in runs

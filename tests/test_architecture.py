"""The tree keeps its promises: imports go one way, heavy libraries stay where they belong."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "pipeline" / "bevcask"
# Lower imports from higher never; equal ranks only within the same room.
RANKS = {
    "errors": 0,
    "paths": 0,
    "processes": 0,
    "fork_server": 0,
    "geometry": 0,
    "fingerprint": 0,
    "registry": 0,
    "progress": 0,
    "provenance": 0,
    "tokens": 0,
    "scheduler": 0,
    "ranks": 0,
    "wall_time": 0,
    "groups": 0.5,
    "outputs": 0.5,
    "notebook": 0.5,
    "signals": 0.5,
    "consent": 0.5,
    "disk_rate": 0.5,
    "wording": 0.5,
    "measures": 0.5,
    "results": 0.5,
    "config": 1,
    "trainer_config": 1.2,
    "page_config": 1.2,
    "verbs": 1.5,
    "commands": 1.6,
    "compose": 1.7,
    "synthetic": 2,
    "catalog": 2,
    "worker": 1,
    "cluster": 2,
    "targets": 2,
    "spool": 2.5,
    "cache": 3,
    "detectors": 3,
    "teachers": 4,
    "methods": 4,
    "data": 4,
    "evaluation": 5,
    "extraction": 5,
    "viz": 5.5,
    "training": 6,
    "stages": 7,
    "cli": 8,
    "__main__": 9,
}
SAME_RANK = {
    ("registry", "errors"),
    ("provenance", "errors"),
    ("provenance", "scheduler"),
    ("scheduler", "errors"),
    ("geometry", "errors"),
    ("fingerprint", "errors"),
}


def _sources() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(REPOSITORY / "stages").glob("*.py")])


def _room(path: Path) -> str:
    if path.is_relative_to(PACKAGE):
        return path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "stages"


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def _rooms_imported(path: Path) -> set[str]:
    names = (name.split(".") for name in _imports(path))
    return {parts[1] for parts in names if parts[0] == "bevcask" and len(parts) > 1}


@pytest.mark.parametrize("path", _sources(), ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_imports_go_one_way(path: Path) -> None:
    room = _room(path)
    if room == "__init__":
        return
    for other in _rooms_imported(path) - {room}:
        legal = RANKS[other] < RANKS[room] or (room, other) in SAME_RANK
        if room == "data" and path.name != "join.py" and other == "cache":
            legal = False
        assert legal, f"{path.name} ({room}) must not import bevcask.{other}"


def test_cache_knows_no_model() -> None:
    for path in (PACKAGE / "cache").glob("*.py"):
        assert not _rooms_imported(path) & {"detectors", "teachers", "methods", "data"}


def test_one_stage_imports_lightning() -> None:
    users = {
        str(path.relative_to(REPOSITORY))
        for path in _sources()
        if any(name.partition(".")[0] == "lightning" for name in _imports(path))
    }
    assert all("training/" in user or user == "stages/student_distill.py" for user in users), users


@pytest.mark.parametrize("code", ["import bevcask", "import bevcask.cli", "import bevcask.config"])
def test_light_imports_load_no_torch(code: str) -> None:
    heavy = "[m for m in ('torch', 'zarr', 'lightning') if m in sys.modules]"
    program = f"import sys; {code}; print({heavy})"
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_files_stay_small() -> None:
    long = {
        str(path.relative_to(REPOSITORY)): lines
        for path in _sources()
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long, long


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        ".".join(("bevcask", *path.parent.relative_to(PACKAGE).parts))
        for path in PACKAGE.rglob("__init__.py")
    }
    assert folders <= set(listed["packages"])


def test_lower_bounds_are_what_make_test_lowest_installs() -> None:
    """A dependency without one, or with one that the pinned set is below, was never tried."""
    bounds = dict(line.split("==") for line in bounds_of("lowest"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert len(bounds) == len(project["dependencies"]) - 1  # all but torch
    for name, bound in bounds.items():
        assert Version(bound) <= Version(metadata.version(name)), name
    assert Version(bounds["lightning"]) >= Version("2.6")  # WeightAveraging


def test_nothing_has_an_upper_bound_where_make_test_next_installs() -> None:
    """nuscenes-devkit's own dependencies stand in for it: it would bring an old numpy."""
    newest = [re.split(r"[\[>]", line)[0] for line in bounds_of("newest")]
    assert "nuscenes-devkit" not in newest
    assert {"numpy", "zarr", "pyquaternion"} <= set(newest)
    assert not any("<" in line for line in bounds_of("newest"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    bounded = [own for own in project["dependencies"] if "<" in own]
    assert bounded == ["nuscenes-devkit>=1.2,<1.3"]


def bounds_of(which: str) -> list[str]:
    command = [sys.executable, str(REPOSITORY / "bounds.py"), which]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

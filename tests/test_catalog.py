"""Names resolve, mistakes are named, and registering loses nothing."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from bevcask import catalog
from bevcask.config import DatasetConfig
from bevcask.data.index.frames import Frames
from bevcask.errors import ConfigError, UnknownNameError
from bevcask.stages import catalog as stage
from bevcask.verbs import CatalogConfig


@dataclass
class StubCache:
    """The few facts registration reads."""

    id: str = "f00d"
    specs: dict[str, Any] = field(default_factory=lambda: {"bev.neck": None, "head.heatmap": None})

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"teacher": {"type": "native/centerpoint", "weights": "0123456789abcdef"}}

    @property
    def provenance(self) -> dict[str, Any]:
        return {"time": "2026-01-02T03:04:05+00:00", "command": "bevcask teacher-extract c.zarr"}

    @property
    def frames(self) -> SimpleNamespace:
        return SimpleNamespace(tokens=["a", "b", "c"])

    def stored_bytes(self, name: str) -> int:
        return {"bev.neck": 1000, "head.heatmap": 24}[name]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEVCASK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def write_user_file(home: Path, text: str) -> Path:
    home.mkdir(exist_ok=True)
    (home / "catalog.yaml").write_text(text)
    return home / "catalog.yaml"


CHECKPOINT = """
checkpoints:
  mine: {path: weights/mine.safetensors, detector: centerpoint_tiny, weights: ab, command: x,
         world: synthetic, description: d}
"""


def test_anything_without_the_prefix_is_returned_as_it_is() -> None:
    assert catalog.resolve("cache", "s3://bucket/catalog:x") == "s3://bucket/catalog:x"


def test_dataset_resolves_to_its_root() -> None:
    assert catalog.resolve("dataset", "catalog:nuscenes-mini") == "data/nuscenes"


def test_checkpoint_paths_start_beside_the_file_that_names_them(home: Path) -> None:
    write_user_file(home, CHECKPOINT)
    expected = str(home / "weights" / "mine.safetensors")
    assert catalog.resolve("checkpoint", "catalog:mine") == expected


def test_unknown_name_suggests_and_names_the_user_file(home: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        catalog.resolve("dataset", "catalog:nuscene-mini")
    message = str(caught.value)
    assert "no such dataset" in message
    assert "Did you mean 'nuscenes-mini'?" in message
    assert str(home / "catalog.yaml") in message


def test_a_name_of_another_kind_is_unknown() -> None:
    with pytest.raises(UnknownNameError, match="no such cache"):
        catalog.resolve("cache", "catalog:nuscenes")


def test_a_user_entry_hides_a_shipped_one(home: Path) -> None:
    write_user_file(
        home,
        "datasets: {nuscenes: {root: /mine, version: v1.0-trainval, licence: l, description: d}}",
    )
    assert catalog.resolve("dataset", "catalog:nuscenes") == "/mine"
    assert catalog.resolve("dataset", "catalog:nuscenes-mini") == "data/nuscenes"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("caches: {x: {url: u, rows: many}}", "caches.x.rows"),
        ("cache: {}", "Did you mean 'caches'"),
        ("- a\n- b", "expected a mapping of names, got list"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_a_broken_user_file_is_named(home: Path, text: str, expected: str) -> None:
    file = write_user_file(home, text)
    with pytest.raises(ConfigError) as caught:
        catalog.load_catalog()
    assert str(file) in str(caught.value)
    assert expected in str(caught.value)


def test_registered_cache_resolves(tmp_path: Path) -> None:
    url = str(tmp_path / "store.zarr")
    catalog.register_cache(url, StubCache(), "night")
    assert catalog.resolve("cache", "catalog:night") == url
    entry = catalog.load_catalog().caches["night"]
    assert (entry.rows, entry.bytes, entry.fingerprint) == (3, 1024, "f00d")
    assert entry.teacher == "native/centerpoint 0123456789ab"
    assert entry.command == "bevcask teacher-extract c.zarr"


@pytest.mark.parametrize("url", ["store.zarr", "file://store.zarr"])
def test_a_relative_url_is_registered_as_absolute(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    catalog.register_cache(url, StubCache(), "a")
    assert catalog.resolve("cache", "catalog:a") == str(tmp_path / "store.zarr")


def test_registering_the_same_name_again_replaces_the_entry(tmp_path: Path) -> None:
    url = str(tmp_path / "a.zarr")
    for identity in ("f00d", "beef"):
        catalog.check_name("a", url)
        catalog.register_cache(url, StubCache(id=identity), "a")
    assert [entry.fingerprint for entry in catalog.load_catalog().caches.values()] == ["beef"]


def test_a_name_that_another_cache_has_is_refused_first(tmp_path: Path) -> None:
    catalog.register_cache(str(tmp_path / "a.zarr"), StubCache(), "a")
    with pytest.raises(ConfigError, match=r"has a cache of that name already, .*a\.zarr"):
        catalog.check_name("a", str(tmp_path / "b.zarr"))
    with pytest.raises(ConfigError, match="ends with this process"):
        catalog.check_name("b", "memory://b.zarr")


def test_registering_keeps_everything_else(home: Path) -> None:
    write_user_file(home, CHECKPOINT)
    catalog.register_cache("s3://bucket/run/store.zarr", StubCache(), "store")
    assert set(catalog.load_catalog().checkpoints) >= {"mine"}
    assert catalog.resolve("cache", "catalog:store") == "s3://bucket/run/store.zarr"
    assert {path.name for path in home.iterdir()} <= {"catalog.yaml", "catalog.yaml.lock"}


def test_runs_that_end_together_all_keep_their_entry(home: Path) -> None:
    names = [f"run{number}" for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: catalog.register_cache(f"s3://b/{n}", StubCache(), n), names))
    data = yaml.safe_load((home / "catalog.yaml").read_text())
    assert sorted(data["caches"]) == sorted(names)


def test_an_unwritable_home_is_named_and_the_cache_called_complete(home: Path) -> None:
    home.write_text("a file, not a folder")
    with pytest.raises(ConfigError, match=r"night\.zarr is complete.*Set BEVCASK_HOME"):
        catalog.register_cache("night.zarr", StubCache(), "night")


def test_a_user_without_a_home_is_told_which_variable_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What `docker run --user 12345` gives: no HOME, and a user id that nobody knows."""
    monkeypatch.delenv("BEVCASK_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    with pytest.raises(ConfigError, match=r"user 54321.*Set BEVCASK_HOME"):
        catalog.home()


def test_a_dataset_is_opened_by_name(home: Path, tiny_world: Path) -> None:
    write_user_file(
        home,
        f"datasets: {{tiny: {{root: {tiny_world}, version: v, licence: l, description: d}}}}",
    )
    dataset = DatasetConfig(
        root="catalog:tiny", version="v1.0-synthetic", split="all", scenes=None, limit=None
    )
    assert Frames.select(dataset).root == tiny_world


def test_stage_lists_and_flags_what_is_missing(tmp_path: Path) -> None:
    there, gone = tmp_path / "there.zarr", tmp_path / "gone.zarr"
    there.mkdir()
    for url in (there, gone):
        catalog.register_cache(str(url), StubCache(), url.stem)
    result = stage.run(CatalogConfig())
    assert not result["caches"]["there"]["missing"]
    assert result["caches"]["gone"]["missing"]
    assert "nuscenes" in result["datasets"]


def test_stage_shows_one_entry_or_says_what_there_is(tmp_path: Path) -> None:
    catalog.register_cache(str(tmp_path / "one.zarr"), StubCache(), "one")
    result = stage.run(CatalogConfig(name="one"))
    assert set(result["caches"]) == {"one"}
    assert not result["datasets"]
    with pytest.raises(UnknownNameError, match="Did you mean 'one'"):
        stage.run(CatalogConfig(name="onne"))


@pytest.mark.parametrize("name", [None, "nuscenes"])
def test_rendered_text_holds_every_name(name: str | None) -> None:
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        console.print(stage.render(stage.run(CatalogConfig(name=name))))
    assert "nuscenes" in capture.get()
    assert "CC BY-NC-SA 4.0" in capture.get()


def test_shipped_checkpoints_are_what_their_entry_says() -> None:
    from bevcask.detectors.weights import identify, read_weights

    for name, entry in catalog.load_catalog().checkpoints.items():
        path = Path(entry.path)
        assert identify(read_weights(path)) == entry.weights, name
        assert path.stat().st_size <= 4_000_000, name


def test_importing_the_catalog_loads_no_torch() -> None:
    program = "import sys, bevcask.catalog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

"""The example cache, once a session for those who only read it."""

import shutil
from pathlib import Path

import pytest

from cache.example import build


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sealed cache; read only."""
    return build(tmp_path_factory.mktemp("cache") / "sealed.zarr")


@pytest.fixture
def copied(sealed: str, tmp_path: Path) -> Path:
    """A copy of the sealed cache that a test may damage."""
    return Path(shutil.copytree(sealed, tmp_path / "copied.zarr"))

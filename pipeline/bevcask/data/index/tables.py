"""The thirteen nuScenes tables as files: are they there, and have they changed.

Reads no table content; `arrays.py` does, with the devkit.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from bevcask.catalog import home
from bevcask.errors import DataError
from bevcask.groups import datasets_of
from bevcask.paths import write_whole
from bevcask.registry import suggest

TABLES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)


def table_files(root: Path, version: str) -> dict[str, Path]:
    """Return the path of every table by name.

    Raises:
        DataError: the version folder or a table is missing; all missing tables in one message.
    """
    folder = root / version
    if not folder.is_dir():
        found = sorted(path.parent.name for path in root.glob("*/sample.json"))
        raise DataError(
            f"{folder}: no such folder.{suggest(version, found)} "
            f"Versions in {root}: {', '.join(found) or 'none'}.{datasets_of(found)} "
            "Check dataset.root and dataset.version."
        )
    files = {name: folder / f"{name}.json" for name in TABLES}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise DataError(
            f"{folder}: missing {', '.join(missing)}. Expected {len(TABLES)} tables: "
            f"{', '.join(path.name for path in files.values())}. "
            "Unpack the metadata archive of this version again, or check dataset.version."
        )
    return files


def tables_digest(root: Path, version: str, rehash: bool = False) -> str:
    """Return the sha256 of the tables' content.

    Files whose size, mtime (ns) and inode are as at the last hashing are not read again.

    Args:
        root: dataset folder.
        version: name of the folder with the tables.
        rehash: read every file whatever the memo says.

    Raises:
        DataError: see `table_files`; or the memo cannot be written.
    """
    return memoised_digest(table_files(root, version), root / version, rehash)


def memoised_digest(files: Mapping[str, Path], place: Path, rehash: bool = False) -> str:
    """Return the sha256 of files' names and content; unchanged files are not read again.

    Args:
        files: by name.
        place: what the memo is filed under.
        rehash: read every file whatever the memo says.

    Raises:
        DataError: the memo cannot be written.
    """
    stats = {name: _stat(path) for name, path in files.items()}
    named = hashlib.sha256(os.fsencode(place.resolve())).hexdigest()
    memo = home() / "index" / f"memo-{named[:32]}.json"
    if not rehash and memo.is_file():
        known = json.loads(memo.read_text())
        if known["stats"] == stats:
            return str(known["digest"])
    total = hashlib.sha256()
    for name, path in sorted(files.items()):
        with path.open("rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    digest = total.hexdigest()
    try:
        write_whole(memo, json.dumps({"stats": stats, "digest": digest}).encode())
    except OSError as error:
        raise unwritable(memo, error) from error
    return digest


def unwritable(path: Path, error: OSError) -> DataError:
    """Return the error for an index folder that cannot be written."""
    return DataError(
        f"cannot write {path}: {error.strerror}. Set BEVCASK_HOME to a folder with room and "
        "write permission."
    )


def _stat(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]

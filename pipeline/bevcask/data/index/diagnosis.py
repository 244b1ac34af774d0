"""Which record of the tables is wrong? Asked only once something did not go as it should."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from bevcask.errors import DataError

Token = Annotated[str, Field(min_length=1)]
Position = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]
_AGAIN = "Unpack the metadata archive again; of a dataset of your own, correct this record."


class _Scene(BaseModel):
    token: Token
    name: str


class _Sample(BaseModel):
    token: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    timestamp: int
    scene_token: Token


class _SampleData(BaseModel):
    token: Token
    sample_token: Token
    ego_pose_token: Token
    calibrated_sensor_token: Token
    timestamp: int
    filename: str
    is_key_frame: bool
    prev: str


class _Calibrated(BaseModel):
    token: Token
    sensor_token: Token
    translation: Position
    rotation: Quaternion


class _Sensor(BaseModel):
    token: Token
    channel: str
    modality: str


class _EgoPose(BaseModel):
    token: Token
    translation: Position
    rotation: Quaternion


class _Annotation(BaseModel):
    token: Token
    sample_token: Token
    instance_token: Token
    translation: Position
    size: Position
    rotation: Quaternion
    prev: str
    next: str
    num_lidar_pts: int


class _Instance(BaseModel):
    token: Token
    category_token: Token


class _Category(BaseModel):
    token: Token
    name: str


_TABLES: dict[str, type[BaseModel]] = {
    "scene": _Scene,
    "sample": _Sample,
    "sensor": _Sensor,
    "calibrated_sensor": _Calibrated,
    "ego_pose": _EgoPose,
    "sample_data": _SampleData,
    "category": _Category,
    "instance": _Instance,
    "sample_annotation": _Annotation,
}
_REFERENCES = {f"{table}_token": table for table in _TABLES}


def diagnose(where: Path, error: Exception) -> DataError:
    """Return the error that names the first wrong record of a table, or else what was raised.

    Args:
        where: folder of the tables.
        error: what reading them raised.
    """
    tokens: dict[str, set[str]] = {}
    for name, model in _TABLES.items():
        path = where / f"{name}.json"
        try:
            records = json.loads(path.read_text())
        except ValueError as damage:
            return DataError(f"{path}: not readable as JSON ({damage}). {_AGAIN}")
        if not isinstance(records, list):
            return DataError(f"{path}: expected a list of records. {_AGAIN}")
        complaint = _complaint(records, model, tokens)
        if complaint is not None:
            return DataError(f"{path}: {complaint} {_AGAIN}")
        tokens[name] = {record["token"] for record in records}
        if len(tokens[name]) < len(records):
            return DataError(
                f"{path}: {len(records) - len(tokens[name])} of {len(records)} records repeat the "
                f"token of another. {_AGAIN}"
            )
    if isinstance(error, KeyError):
        said = f"the tables do not belong together: no record or field {error}"
    else:
        said = f"the tables cannot be read: {error}"
    return DataError(f"{where}: {said}. Unpack the metadata archive again.")


def _complaint(
    records: list[Any], model: type[BaseModel], tokens: dict[str, set[str]]
) -> str | None:
    """Say what is wrong with the first wrong record of a table, and how many are; None if none."""
    first, number = "", 0
    for row, record in enumerate(records):
        wrong = _wrong(record, model, tokens)
        if wrong is not None:
            number += 1
            first = first or f"record {row} (token {_token(record)}): {wrong}"
    return f"{first}. {number} of {len(records)} records are like this." if number else None


def _wrong(record: Any, model: type[BaseModel], tokens: dict[str, set[str]]) -> str | None:
    try:
        model.model_validate(record)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"])) or "record"
        got = "" if problem["type"] == "missing" else f", got {problem['input']!r:.60}"
        hint = (
            " (tokens of samples are 32 hex digits, those of a UUID without its hyphens)"
            if problem["type"] == "string_pattern_mismatch"
            else ""
        )
        return f"{field}: {problem['msg']}{got}{hint}"
    for field, table in _REFERENCES.items():
        if field in record and table in tokens and record[field] not in tokens[table]:
            return (
                f"the tables do not belong together: {field} {record[field]!r:.60} is not in "
                f"{table}.json"
            )
    return None


def _token(record: Any) -> str:
    return str(record.get("token")) if isinstance(record, dict) else "none"

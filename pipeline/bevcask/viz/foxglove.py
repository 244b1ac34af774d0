"""Messages that Foxglove draws, as JSON data, and the schemas that name their fields.

Times are nanoseconds. Names of messages and fields are Foxglove's; what is written is what is here.
"""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from bevcask.geometry import POINT_FIELDS, Grid

Floats = npt.NDArray[np.floating[Any]]
Message = dict[str, Any]
_UINT8, _FLOAT32 = 1, 7  # of foxglove.NumericType
_RGBA = ("red", "green", "blue", "alpha")
_OVER = np.array([0, 0, 0.7])  # heights; a name is over its box
_GROUND = -2.0  # metres; maps lie below LIDAR_TOP, under the boxes


def _object(title: str, **properties: Any) -> Message:
    return {"title": title, "type": "object", "properties": properties}


def _list(items: Message) -> Message:
    return {"type": "array", "items": items}


_TEXT, _WHOLE, _NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
_BYTES = {"type": "string", "contentEncoding": "base64"}
_TIME = _object("time", sec=_WHOLE, nsec=_WHOLE)
_DURATION = _object("duration", sec=_WHOLE, nsec=_WHOLE)
_VECTOR2 = _object("foxglove.Vector2", x=_NUMBER, y=_NUMBER)
_VECTOR3 = _object("foxglove.Vector3", x=_NUMBER, y=_NUMBER, z=_NUMBER)
_TURN = _object("foxglove.Quaternion", x=_NUMBER, y=_NUMBER, z=_NUMBER, w=_NUMBER)
_POSE = _object("foxglove.Pose", position=_VECTOR3, orientation=_TURN)
_COLOUR = _object("foxglove.Color", r=_NUMBER, g=_NUMBER, b=_NUMBER, a=_NUMBER)
_FIELD = _object("foxglove.PackedElementField", name=_TEXT, offset=_WHOLE, type=_WHOLE)
_CUBE = _object("foxglove.CubePrimitive", pose=_POSE, size=_VECTOR3, color=_COLOUR)
_LABEL = _object(
    "foxglove.TextPrimitive", pose=_POSE, billboard={"type": "boolean"}, font_size=_NUMBER,
    scale_invariant={"type": "boolean"}, color=_COLOUR, text=_TEXT,
)  # fmt: skip
_ENTITY = _object(
    "foxglove.SceneEntity", timestamp=_TIME, frame_id=_TEXT, id=_TEXT, lifetime=_DURATION,
    frame_locked={"type": "boolean"}, cubes=_list(_CUBE), texts=_list(_LABEL),
)  # fmt: skip
_TRANSFORM = _object(
    "foxglove.FrameTransform", timestamp=_TIME, parent_frame_id=_TEXT, child_frame_id=_TEXT,
    translation=_VECTOR3, rotation=_TURN,
)  # fmt: skip
_PACKED = {
    "timestamp": _TIME, "frame_id": _TEXT, "pose": _POSE, "fields": _list(_FIELD), "data": _BYTES
}  # fmt: skip
_NUMBERS = _list(_NUMBER)
SCHEMAS: dict[str, Message] = {
    own["title"]: own
    for own in (
        _object("foxglove.FrameTransforms", transforms=_list(_TRANSFORM)),
        _object("foxglove.SceneUpdate", entities=_list(_ENTITY)),
        _object("foxglove.PointCloud", point_stride=_WHOLE, **_PACKED),
        _object(
            "foxglove.Grid", column_count=_WHOLE, cell_size=_VECTOR2, row_stride=_WHOLE,
            cell_stride=_WHOLE, **_PACKED,
        ),
        _object(
            "foxglove.CompressedImage", timestamp=_TIME, frame_id=_TEXT, data=_BYTES, format=_TEXT
        ),
        _object(
            "foxglove.CameraCalibration", timestamp=_TIME, frame_id=_TEXT, width=_WHOLE,
            height=_WHOLE, distortion_model=_TEXT, D=_NUMBERS, K=_NUMBERS, R=_NUMBERS, P=_NUMBERS,
        ),
    )
}  # fmt: skip
"""Message name -> JSON schema."""


def transforms(time: int, poses: Sequence[tuple[str, str, Floats]]) -> Message:
    """Return `FrameTransforms` of (parent, child, 4x4 child -> parent, metres)."""
    return {
        "transforms": [
            {
                "timestamp": _time(time),
                "parent_frame_id": parent,
                "child_frame_id": child,
                "translation": _vector(matrix_44[:3, 3]),
                "rotation": _turn(matrix_44[:3, :3]),
            }
            for parent, child, matrix_44 in poses
        ]
    }


def boxes(
    time: int,
    frame: str,
    source: str,
    boxes_N9: Floats,
    names: Sequence[str],
    colour: tuple[float, float, float],
) -> Message:
    """Return a `SceneUpdate` that puts boxes in the place of those the source had before.

    Args:
        time: nanoseconds.
        frame: that the boxes are in.
        source: of the boxes, the id of the entity.
        boxes_N9: `geometry.BOX_FIELDS`.
        names: of each, written over it.
        colour: red, green, blue, 0..1.
    """
    fill, ink = ({**dict(zip("rgb", colour, strict=True)), "a": a} for a in (0.35, 1.0))
    numbers_N9 = boxes_N9.astype(float)
    cubes = [
        {"pose": _pose(own[:3], float(own[6])), "size": _vector(own[3:6]), "color": fill}
        for own in numbers_N9
    ]
    texts = [
        {
            "pose": _pose(own[:3] + own[5] * _OVER), "billboard": True, "font_size": 12.0,
            "scale_invariant": True, "color": ink, "text": name,
        }
        for own, name in zip(numbers_N9, names, strict=True)
    ]  # fmt: skip
    entity = {
        "timestamp": _time(time), "frame_id": frame, "id": source, "lifetime": _time(0),
        "frame_locked": True, "cubes": cubes, "texts": texts,
    }  # fmt: skip
    return {"entities": [entity]}


def points(time: int, frame: str, points_P5: Floats) -> Message:
    """Return a `PointCloud` of `geometry.POINT_FIELDS` without the seconds."""
    packed_P4 = np.ascontiguousarray(points_P5[:, :4], "<f4")
    fields = [_field(name, 4 * at, _FLOAT32) for at, name in enumerate(POINT_FIELDS[:4])]
    return _packed(time, frame, (0.0, 0.0, 0.0), fields, packed_P4.tobytes()) | {"point_stride": 16}


def grid(
    time: int, frame: str, at: Grid, values_YX: Floats, rgba_YX4: npt.NDArray[np.uint8]
) -> Message:
    """Return a `Grid` on the ground: its values, and the colours it is drawn in."""
    dtype = np.dtype([("value", "<f4"), ("rgba", "u1", 4)])
    cells_YX = np.empty(values_YX.shape, dtype)
    cells_YX["value"], cells_YX["rgba"] = values_YX, rgba_YX4
    colours = [_field(name, 4 + byte, _UINT8) for byte, name in enumerate(_RGBA)]
    fields = [_field("value", 0, _FLOAT32), *colours]
    columns = values_YX.shape[1]
    return _packed(time, frame, (at.x_min, at.y_min, _GROUND), fields, cells_YX.tobytes()) | {
        "column_count": columns,
        "cell_size": {"x": at.cell, "y": at.cell},
        "row_stride": columns * dtype.itemsize,
        "cell_stride": dtype.itemsize,
    }


def image(time: int, frame: str, data: bytes, kind: str) -> Message:
    """Return a `CompressedImage` of a file's bytes; `kind` is `jpeg` or `png`."""
    return {"timestamp": _time(time), "frame_id": frame, "data": _text(data), "format": kind}


def calibration(time: int, frame: str, size_HW: tuple[int, int], matrix_33: Floats) -> Message:
    """Return a `CameraCalibration` without distortion."""
    projection_34 = np.column_stack([matrix_33, np.zeros(3)])
    return {
        "timestamp": _time(time),
        "frame_id": frame,
        "width": size_HW[1],
        "height": size_HW[0],
        "distortion_model": "plumb_bob",
        "D": [0.0] * 5,
        "K": matrix_33.astype(float).ravel().tolist(),
        "R": np.eye(3).ravel().tolist(),
        "P": projection_34.astype(float).ravel().tolist(),
    }


def _packed(
    time: int, frame: str, corner: tuple[float, float, float], fields: list[Message], data: bytes
) -> Message:
    return {
        "timestamp": _time(time), "frame_id": frame, "pose": _pose(np.array(corner)),
        "fields": fields, "data": _text(data),
    }  # fmt: skip


def _field(name: str, offset: int, kind: int) -> Message:
    return {"name": name, "offset": offset, "type": kind}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _time(nanoseconds: int) -> Message:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return {"sec": seconds, "nsec": rest}


def _vector(xyz: Floats) -> Message:
    return dict(zip("xyz", xyz.astype(float).tolist(), strict=True))


def _pose(position_3: Floats, yaw: float = 0.0) -> Message:
    turn = {"x": 0.0, "y": 0.0, "z": float(np.sin(yaw / 2)), "w": float(np.cos(yaw / 2))}
    return {"position": _vector(position_3), "orientation": turn}


def _turn(matrix_33: Floats) -> Message:
    quaternion = Rotation.from_matrix(matrix_33.astype(float)).as_quat()
    return dict(zip("xyzw", quaternion.tolist(), strict=True))

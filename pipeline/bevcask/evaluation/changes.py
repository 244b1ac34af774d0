"""Which lines of a spool's manifest to change, where another reading than the declared one fits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bevcask.evaluation.readings import SYMMETRIES, Finding
from bevcask.geometry import CLASSES
from bevcask.spool.manifest import Manifest

_SWAP = "x and y swapped"
_SIZE = ("l", "w", "h")
_AXES = ("X", "Y")
_DEGREES = {"x": 0, "y": 90, "-x": 180, "-y": 270}
_HEIGHT = {"centre": 0.0, "bottom": 0.5}  # share to add to a height as recorded
_OF_ONE_MAP = ("axes", "grid", "shift", "values")
_DIGITS = 6  # of metres

Tree = dict[str, Any]


def changes_of(
    teacher: Mapping[str, Any], findings: Sequence[Finding]
) -> tuple[dict[str, Any], list[str]]:
    """Return what `changes` says of the manifest of a teacher, if it has one.

    Args:
        teacher: its fingerprint, from the cache.
        findings: of its taps.
    """
    if teacher["type"] == "spool":
        return changes(Manifest.model_validate(teacher["config"]), findings)
    if all(own.verdict != "wrong" for own in findings):
        return {}, []
    return {}, [
        f"no manifest to change: the teacher is {teacher['type']}, no spool, and its own code "
        "declares axes, grids, classes and boxes; correct that."
    ]


def changes(manifest: Manifest, findings: Sequence[Finding]) -> tuple[dict[str, Any], list[str]]:
    """Return what a manifest must say for the readings that fit best to be the declared ones.

    Args:
        manifest: as the cache was made with.
        findings: of its taps.

    Returns:
        Line, as `taps.NAME.grid.x_min` -> value; and a sentence on each thing that no line says.
    """
    said = manifest.model_dump(mode="json")
    meant = manifest.model_dump(mode="json")
    remarks: list[str] = []
    done: set[str] = set()
    for own in findings:
        line = _line(own)
        if own.verdict != "wrong" or line in done:
            continue
        if _disputed(own, findings):
            why = "other targets are written by the same line, and do not fit with this change"
        else:
            why = _CHANGES[own.what](meant, own, manifest)
            done.add(line)
        if why:
            remarks.append(f"{own.target}, {own.what}: {why}.")
        elif own.note or len(own.best) > 1:
            others = " or ".join(own.best[1:]) or own.note.removeprefix("or ")
            remarks.append(f"{own.target}, {own.what}: {others} cannot be told from what is named.")
    before = dict(_lines(said))
    return {key: value for key, value in _lines(meant) if value != before[key]}, remarks


def _line(finding: Finding) -> str:
    """Return what findings have in common that lead to the same line."""
    if finding.what in _OF_ONE_MAP:
        return f"{finding.target}, {finding.what}"
    return "yaw" if finding.what == "heading" else finding.what


def _disputed(finding: Finding, findings: Sequence[Finding]) -> bool:
    """Return whether targets that share a line say different things of it."""
    asked: dict[str, Any] = {}
    for own in findings:
        if _line(own) == _line(finding) and own.verdict != "undecided":
            asked[own.target] = own.meant or asked.get(own.target)
    return any(meant != finding.meant for meant in asked.values())


def _lines(tree: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def _axes(tree: Tree, own: Finding, manifest: Manifest) -> str:
    """Name each recorded axis by the true one that it runs along."""
    named = []
    for axis in manifest.taps[own.target].order:
        letter, sign = axis[-1], -1 if axis.startswith("-") else 1
        if letter in _AXES:
            row = own.meant[_AXES.index(letter)]
            letter = _AXES[0 if row[0] else 1]
            sign *= sum(row)
        named.append(letter if sign > 0 else f"-{letter}")
    tree["taps"][own.target]["axes"] = named
    return ""


def _grid(tree: Tree, own: Finding, manifest: Manifest) -> str:
    grid = manifest.tap(own.target).grid
    assert grid is not None
    cell, (x, y) = own.meant["cell"], own.meant["centre"]
    said = tree["taps"][own.target]["grid"]
    _measure(said, "x_min", x - grid.num_x * cell / 2)
    _measure(said, "y_min", y - grid.num_y * cell / 2)
    _measure(said, "cell", cell)
    return ""


def _shift(tree: Tree, own: Finding, _: Manifest) -> str:
    grid = tree["taps"][own.target]["grid"]
    for key, cells in zip(("x_min", "y_min"), own.meant, strict=True):
        _measure(grid, key, grid[key] + cells * grid["cell"])
    return ""


def _measure(grid: Tree, key: str, metres: float) -> None:
    """Say metres, unless that is what is said but for rounding."""
    if abs(grid[key] - metres) > 10**-_DIGITS:
        grid[key] = round(metres, _DIGITS)


def _values(tree: Tree, own: Finding, _: Manifest) -> str:
    tree["taps"][own.target]["values"] = own.meant
    return ""


def _classes(tree: Tree, own: Finding, manifest: Manifest) -> str:
    meant = [CLASSES[own.meant.index(channel)] for channel in range(len(CLASSES))]
    tree["classes"] = [meant[CLASSES.index(name)] for name in manifest.classes]
    return ""


def _rename(tree: Tree, names: Mapping[str, str]) -> None:
    tree["boxes"]["columns"] = [names.get(own, own) for own in tree["boxes"]["columns"]]


def _size(tree: Tree, own: Finding, _: Manifest) -> str:
    _rename(tree, {_SIZE[stored]: true for true, stored in zip(_SIZE, own.meant, strict=True)})
    return ""


def _place(tree: Tree, own: Finding, _: Manifest) -> str:
    return _vector(tree, own, ("x", "y"))


def _velocity(tree: Tree, own: Finding, _: Manifest) -> str:
    return _vector(tree, own, ("vx", "vy"))


def _vector(tree: Tree, own: Finding, pair: tuple[str, str]) -> str:
    if own.meant != SYMMETRIES[_SWAP].tolist():
        return (
            f"{own.best[0]}, and no line of the manifest turns or mirrors {' and '.join(pair)}; "
            "record them in the LIDAR_TOP frame (x right, y forward)"
        )
    _rename(tree, dict(zip(pair, reversed(pair), strict=True)))
    return ""


def _speed(_: Tree, own: Finding, __: Manifest) -> str:
    return (
        f"{own.best[0]}, and no line of the manifest says units; record vx and vy in m/s: what "
        f"they are now times {own.meant:.4g}"
    )


def _z(tree: Tree, own: Finding, manifest: Manifest) -> str:
    h_stays = tree["boxes"]["columns"].index("h") == manifest.boxes.columns.index("h")
    if manifest.boxes.z == "bottom" and not h_stays:
        return "judged with another height than will be; look again once the columns are right"
    share = _HEIGHT[manifest.boxes.z] + own.meant
    for name, known in _HEIGHT.items():
        if known == share:
            tree["boxes"]["z"] = name
            return ""
    return f"{own.best[0]}, and boxes.z is {manifest.boxes.z} already; record z of the centre"


def _yaw(tree: Tree, own: Finding, manifest: Manifest) -> str:
    sign, degrees = own.meant
    zero = (sign * _DEGREES[manifest.boxes.yaw_zero] + degrees) % 360
    tree["boxes"]["yaw_zero"] = next(name for name, at in _DEGREES.items() if at == zero)
    if sign < 0:
        turns = {"clockwise": "counterclockwise", "counterclockwise": "clockwise"}
        tree["boxes"]["yaw_turns"] = turns[manifest.boxes.yaw_turns]
    return ""


_CHANGES: dict[str, Callable[[Tree, Finding, Manifest], str]] = {
    "axes": _axes,
    "grid": _grid,
    "shift": _shift,
    "values": _values,
    "classes": _classes,
    "place": _place,
    "size": _size,
    "z": _z,
    "yaw": _yaw,
    "heading": _yaw,
    "velocity": _velocity,
    "speed": _speed,
}

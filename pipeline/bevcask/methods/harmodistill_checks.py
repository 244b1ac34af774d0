"""What keeps HarmoDistill's taps from fitting one another, a sentence each."""

from collections.abc import Iterator, Mapping

from bevcask.geometry import CLASSES
from bevcask.methods.base import Pair
from bevcask.methods.harmodistill_settings import Settings
from bevcask.targets.spec import TapInfo


def fitting_cameras(pair: Pair, near: TapInfo, far: TapInfo, released: bool) -> Iterator[str]:
    """Yield why two image features cannot meet; sizes and channels may differ."""
    if near.shape[0] != far.shape[0]:
        yield (
            f"student tap {pair.student!r} has {near.shape[0]} cameras, target "
            f"{pair.teacher!r} {far.shape[0]}"
        )
    if pair.size_HW is not None and pair.size_HW != near.shape[2:]:
        yield (
            f"targets are stored at {pair.size_HW} rows and columns, student tap "
            f"{pair.student!r} has {near.shape[2:]}; set its level's size_HW to them"
        )
    numbers = far.shape[1] * near.shape[2] * near.shape[3]
    if released and numbers % near.shape[1]:
        yield (
            f"mode compat parts {numbers} numbers of an image of {pair.teacher!r} into "
            f"{near.shape[1]} softmaxes, as many as {pair.student!r} has channels; the "
            "released code crashes there"
        )


def fitting_queries(
    config: Settings, student: Mapping[str, TapInfo], teacher: Mapping[str, TapInfo]
) -> Iterator[str]:
    """Yield what keeps states, points, features and boxes of either side from fitting."""
    for who, taps in (("student", student), ("teacher", teacher)):
        if config.local or config.response:
            yield from _layered(config, who, taps)
        if config.response:
            yield from _heard(config, who, taps)
    if config.response and student[config.states].shape[0] != teacher[config.states].shape[0]:
        yield (
            f"response: {config.states!r} has {student[config.states].shape[0]} rows of the "
            f"student and {teacher[config.states].shape[0]} of the teacher; queries are compared "
            "row by row"
        )
    if config.denoising:
        classes = teacher[config.boxes].classes
        if classes and tuple(classes) != CLASSES:
            yield (
                f"boxes: classes of {config.boxes!r} are {', '.join(classes)}; the student's "
                f"queries are of {', '.join(CLASSES)}"
            )


def _layered(config: Settings, who: str, taps: Mapping[str, TapInfo]) -> Iterator[str]:
    rows = taps[config.states].shape[0]
    if rows % config.layers:
        yield f"states: {rows} rows of the {who}'s {config.states!r} are not {config.layers} layers"
    if not config.local:
        return
    references, offsets = taps[config.references].shape, taps[config.offsets].shape
    scores = taps[config.scores].shape if config.scores in taps else (rows,)
    if references != (rows // config.layers, 3):
        yield (
            f"references: {config.references!r} of the {who} is {references}, expected "
            f"({rows // config.layers}, 3): one point for each query of {config.states!r}"
        )
    if offsets[0] != rows or scores[0] != rows:
        yield (
            f"offsets: the {who}'s {config.states!r}, {config.offsets!r} and {config.scores!r} "
            f"must have as many rows, got {rows}, {offsets[0]} and {scores[0]}"
        )


def _heard(config: Settings, who: str, taps: Mapping[str, TapInfo]) -> Iterator[str]:
    channels = taps[config.states].shape[1]
    for own in config.modulated_levels:
        name = own.student if who == "student" else own.teacher
        if taps[name].shape[1] != channels:
            yield (
                f"response: {name!r} of the {who} has {taps[name].shape[1]} channels, "
                f"{config.states!r} {channels}"
            )

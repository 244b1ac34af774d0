"""What keeps the maps and queries of DistillBEV from meeting, beyond kinds and regions."""

from collections.abc import Iterator, Mapping

from bevcask.methods.adapters import adapted_grid
from bevcask.methods.distillbev_settings import Level, Settings
from bevcask.targets.lattice import same_cells
from bevcask.targets.spec import TapInfo, TargetSpec


def level_misfits(level: Level, near: TapInfo, far: TapInfo) -> Iterator[str]:
    """Yield why a student map cannot be adapted to a teacher's.

    Args:
        level: which maps, which adapter.
        near: the student's, with a grid.
        far: the teacher's, with a grid.
    """
    assert near.grid is not None
    assert far.grid is not None
    try:
        adapted_grid(near.grid, far.grid)
    except ValueError as error:
        yield f"{level.student!r} to {level.teacher!r}: {error}"
    if level.adapter == "identity" and near.shape[0] != far.shape[0]:
        yield (
            f"adapter identity needs equal channels, student {near.shape[0]}, teacher "
            f"{far.shape[0]}; use linear or stack"
        )


def across_pairs(
    config: Settings, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]
) -> Iterator[str]:
    """Yield what does not fit between taps of different pairs.

    Args:
        config: the method's settings.
        student: the student's taps.
        specs: the targets.
    """
    heatmap = specs.get(config.heatmap) if config.reads_teacher_heatmap else None
    for level in config.levels:
        far = specs.get(level.teacher)
        cells = far.tap.grid if far else None
        seen = heatmap.tap.grid if heatmap and level.false_positives else None
        if cells and seen and not same_cells(seen, cells):
            yield (
                f"{level.name}: false positives need the heatmap on the level's own cells, but "
                f"{config.heatmap!r} lies on {seen} and {level.teacher!r} on {cells}"
            )
    maps = {own.name: specs.get(own.teacher) for own in config.levels}
    for queries in config.queries:
        near, far = student.get(queries.student), specs.get(queries.teacher)
        there = maps.get(queries.level or "")
        if not queries.similarity or near is None or far is None or there is None:
            continue
        channels = there.tap.shape[0]
        if near.kind == far.tap.kind and not near.shape[1] == far.tap.shape[1] == channels:
            yield (
                f"{queries.name}: similarity needs queries as wide as the maps of level "
                f"{queries.level} ({channels} channels), the student's have {near.shape[1]}, the "
                f"teacher's {far.tap.shape[1]}"
            )

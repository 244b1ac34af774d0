"""What keeps a student and targets from meeting in DistillBEV; every reason in words."""

from collections.abc import Mapping

from bevcask.methods.adapters import adapted_grid
from bevcask.methods.distillbev_settings import Level, Queries, Settings
from bevcask.registry import suggest
from bevcask.targets.align import same_cells
from bevcask.targets.spec import Need, TapInfo, TargetSpec


def mismatches(
    config: Settings,
    confidence: Need | None,
    student: Mapping[str, TapInfo],
    specs: Mapping[str, TargetSpec],
) -> list[str]:
    """Return every reason.

    Args:
        config: the method's settings.
        confidence: the need of the teacher's heatmap, where it is read.
        student: the student's taps.
        specs: the targets.
    """
    problems = _heatmap_problems(confidence, specs) if confidence else []
    if config.reads_student_heatmap:
        problems += _student_problems(
            "false positives", config.student_heatmap, "heatmap", True, student
        )
    for level in config.levels:
        problems += _level_problems(level, student, specs)
        far = specs.get(level.teacher)
        if confidence and level.false_positives and far and confidence.tap in specs:
            problems += _grid_problems(level, specs[confidence.tap].tap, far.tap)
    for queries in config.queries:
        problems += _query_problems(queries, config, student, specs)
    return problems


def _level_problems(
    level: Level, student: Mapping[str, TapInfo], specs: Mapping[str, TargetSpec]
) -> list[str]:
    who = f"level {level.name}"
    near, far = student.get(level.student), specs.get(level.teacher)
    problems = _student_problems(who, level.student, "dense_bev", True, student)
    if far is None:
        problems.append(_missing_target(who, level.teacher, specs))
    elif far.tap.kind != "dense_bev" or far.tap.grid is None:
        problems.append(
            f"{who}: target {level.teacher!r} is a {far.tap.kind}, expected a dense_bev with a grid"
        )
    elif far.region.name != "all":
        problems.append(
            f"{who}: target {level.teacher!r} is stored on region {far.region.name!r}; attention "
            "runs over all cells, extract it on 'all'"
        )
    if near is not None and far is not None and near.grid and far.tap.grid:
        problems += _shape_problems(level, near, far.tap)
    return problems


def _student_problems(
    who: str, name: str, kind: str, needs_grid: bool, student: Mapping[str, TapInfo]
) -> list[str]:
    near = student.get(name)
    if near is None:
        return [
            f"{who}: the student has no tap {name!r}.{suggest(name, student)} "
            f"It has: {', '.join(sorted(student))}"
        ]
    if near.kind != kind or (needs_grid and near.grid is None):
        wanted = f"{kind} with a grid" if needs_grid else kind
        return [f"{who}: student tap {name!r} is a {near.kind}, expected a {wanted}"]
    return []


def _missing_target(who: str, name: str, specs: Mapping[str, TargetSpec]) -> str:
    return (
        f"{who}: no target {name!r}.{suggest(name, specs)} "
        f"There are: {', '.join(sorted(specs)) or 'none'}"
    )


def _heatmap_problems(need: Need, specs: Mapping[str, TargetSpec]) -> list[str]:
    spec = specs.get(need.tap)
    if spec is None:
        return [_missing_target("false positives", need.tap, specs)]
    if spec.tap.kind != "heatmap":
        return [f"false positives: target {need.tap!r} is a {spec.tap.kind}, expected a heatmap"]
    if spec.region == need.region or (spec.region.name == "all" and spec.codec == "float32"):
        return []
    return [
        f"false positives: target {need.tap!r} is stored on region {spec.region.name!r} "
        f"(threshold {spec.region.threshold:g}) as {spec.codec}; the threshold "
        f"{need.region.threshold:g} must have been decided in float32: extract it on region "
        f"{need.region.name!r} with that threshold, or on 'all' as float32"
    ]


def _shape_problems(level: Level, near: TapInfo, far: TapInfo) -> list[str]:
    assert near.grid is not None
    assert far.grid is not None
    problems = []
    try:
        adapted_grid(near.grid, far.grid)
    except ValueError as error:
        problems.append(f"level {level.name}: {level.student!r} to {level.teacher!r}: {error}")
    if level.adapter == "identity" and near.shape[0] != far.shape[0]:
        problems.append(
            f"level {level.name}: adapter identity needs equal channels, student {near.shape[0]}, "
            f"teacher {far.shape[0]}; use linear or stack"
        )
    return problems


def _grid_problems(level: Level, heatmap: TapInfo, far: TapInfo) -> list[str]:
    if not heatmap.grid or not far.grid or same_cells(heatmap.grid, far.grid):
        return []
    return [
        f"level {level.name}: false positives need the heatmap on the level's own cells, but "
        f"{heatmap.name!r} lies on {heatmap.grid} and {level.teacher!r} on {far.grid}"
    ]


def _query_problems(
    queries: Queries,
    config: Settings,
    student: Mapping[str, TapInfo],
    specs: Mapping[str, TargetSpec],
) -> list[str]:
    who = f"queries {queries.name}"
    near, far = student.get(queries.student), specs.get(queries.teacher)
    problems = _student_problems(who, queries.student, "query_set", False, student)
    if far is None:
        return [*problems, _missing_target(who, queries.teacher, specs)]
    if far.tap.kind != "query_set":
        problems.append(
            f"{who}: target {queries.teacher!r} is a {far.tap.kind}, expected a query_set"
        )
    if problems or near is None:
        return problems
    if queries.states and near.shape != far.tap.shape:
        problems.append(
            f"{who}: states are compared query by query, but the student has {near.shape} and the "
            f"teacher {far.tap.shape} (queries, channels)"
        )
    for level in config.levels:
        if queries.similarity and level.name == queries.level and level.teacher in specs:
            channels = specs[level.teacher].tap.shape[0]
            if not near.shape[1] == far.tap.shape[1] == channels:
                problems.append(
                    f"{who}: similarity needs queries as wide as the maps of level {level.name} "
                    f"({channels} channels), the student's have {near.shape[1]}, the teacher's "
                    f"{far.tap.shape[1]}"
                )
    return problems

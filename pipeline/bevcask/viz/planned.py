"""A plan in words and tables: what would be stored, what it costs, how long it takes."""

from collections import Counter
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table


def targets_table(result: dict[str, Any]) -> Table:
    """Return what is stored of each target, and its bytes before compression."""
    table = Table(title="targets (uncompressed: an upper bound)")
    told = any(row["reads"] != "none" for row in result["targets"])
    words = ["target", "kind", "shape", "codec", "region", "alignment"]
    for column in words + ["context"] * told:
        table.add_column(column)
    for column in ("MB a frame", "GB"):
        table.add_column(column, justify="right")
    for row in result["targets"]:
        table.add_row(
            row["name"],
            row["kind"],
            row["sizes"],
            row["codec"],
            row["region"],
            row["alignment"],
            *([row["reads"]] if told else []),
            f"{row['bytes_per_frame'] / 1e6:.3f}",
            gigabytes(row["bytes"] / 1e9),
        )
    return table


def render(result: dict[str, Any]) -> Group:
    """Show the plan as a table with totals."""
    return Group(
        targets_table(result),
        *(render_probe(result) if "probe" in result else ()),
        f"{result['frames']:,} frames ({result['frames_from']}), "
        f"{result['teacher_passes']:,} teacher passes, "
        f"at most {gigabytes(result['total_bytes'] / 1e9)} GB uncompressed, in the codecs of "
        f"{'the first table' if 'probe' in result else 'the table'}",
        *_without_the_largest(result),
        *_views_and_step(result),
        *(_times(result["time"]) if "time" in result else []),
        *([escape(result["missing"])] if result.get("missing") else []),
    )


def _views_and_step(result: dict[str, Any]) -> list[str]:
    """Say what other numbers of views cost, and what a cache saves of a step."""
    lines = []
    if result["by_views"]:
        costs = (
            f"{row['views']}: {gigabytes(row['bytes'] / 1e9)} GB, {row['passes']:,} passes"
            for row in result["by_views"]
        )
        lines.append(f"by store.views, {'; '.join(costs)}")
    if "step" in result:
        step = result["step"]
        student, teacher = (step[f"{who}_operations"] / 1e12 for who in ("student", "teacher"))
        lines.append(
            f"a step takes {student:.3g} TFLOP a frame, and a teacher in it {teacher:.3g} more: "
            f"without one it is at most {step['times_faster_at_most']:.2f} times faster"
        )
    return lines


def _times(time: dict[str, Any]) -> list[str]:
    """Say how long an extraction takes, what bounds it, and whether a cache is worth that."""
    settled = "" if time["settled"] in (None, True) else ", and had not settled yet"
    disk = (
        "how fast the store takes it was not measured"
        if time["write_rate"] is None
        else f"the disk takes {time['write_rate'] / 1e6:,.0f} MB/s{settled}"
    )
    frame = f"{time['seconds_per_frame']:.3g} s a frame"
    lines = [
        f"extraction: {duration(time['seconds'])} ({frame}, timed on {time['probed_frames']} "
        f"frames; bound by the {time['bound_by']}; {time['stored_per_frame'] / 1e6:.3g} MB a frame "
        f"compressed, {disk})"
    ]
    costs = (
        f"a teacher in the loop takes {time['teacher_seconds']:.3g} s a frame, one process reads "
        f"what it said in {time['read_seconds']:.3g} s"
    )
    if time["pays_from_epoch"] is None:
        return [*lines, f"do not cache: it never pays here, {costs}"]
    return [*lines, f"caching pays from epoch {time['pays_from_epoch']} on: {costs}"]


def duration(seconds: float) -> str:
    """Show seconds as people say them.

    >>> duration(42.4), duration(600), duration(40_000)
    ('42 s', '10.0 min', '11.1 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _without_the_largest(result: dict[str, Any]) -> list[str]:
    """Say what is left without a target that takes more than half of it all, its views together."""
    sizes: Counter[str] = Counter()
    for row in result["targets"]:
        sizes[row["name"].partition(".view")[0]] += row["bytes"]
    (name, size), *others = sizes.most_common()
    if not others or 2 * size <= result["total_bytes"]:
        return []
    share = f"{100 * size / result['total_bytes']:.0f} %"
    rest = gigabytes((result["total_bytes"] - size) / 1e9)
    return [escape(f"{name} is {share} of it; without it {rest} GB")]


def gigabytes(value: float) -> str:
    """Show a size so that a budget of three digits can be held against it.

    >>> gigabytes(0.0203), gigabytes(161.72)
    ('0.0203', '161.72')
    """
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def render_probe(result: dict[str, Any]) -> list[Table | str]:
    """Show the codecs, largest first, and name the best."""
    table = Table(
        title=f"codecs on {result['probed_frames']} frames, against float32 (compressed sizes)"
    )
    for column in ("codec", "GB", "MB a frame", "decode ms", "cosine", "loss", "gradient", ""):
        table.add_column(column, justify="left" if column in ("codec", "") else "right")
    for row in result["probe"]:
        table.add_row(
            row["name"],
            gigabytes(row["gb"]),
            f"{row['bytes_per_frame'] / 1e6:.3f}",
            f"{row['decode_ms']:.2f}",
            f"{row['cosine']:.6f}",
            f"{row['loss']:.1e}",
            f"{row['gradient']:.1e}",
            "best" if row["words"] == result["best"] else "dominated" if row["dominated"] else "",
        )
    budget, goals = result["budget_gb"], result["goals"]
    wanted = (
        f"loss within {goals['loss']:g} and gradient within {goals['gradient']:g}"
        if budget is None
        else f"store.budget={budget:g} GB"
    )
    if result["best"] is None:
        smallest = min(row["gb"] for row in result["probe"])
        return [table, f"nothing meets {wanted}; the smallest codec takes {gigabytes(smallest)} GB"]
    return [table, f"best under {wanted}: {result['best']}"]

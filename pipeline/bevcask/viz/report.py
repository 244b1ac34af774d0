"""A cache in words and tables: what it holds, who made it, how complete it is.

`describe` gives plain JSON data, `render` shows it. Reads no target values.
"""

import math
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bevcask.cache import Cache

_SHOWN_SCENES = 12
_SHOWN_CHANNELS = 10
_DIGEST = 12


def describe(cache: Cache) -> dict[str, Any]:
    """Return everything a cache says about itself, as plain JSON data.

    Returns:
        `cache` (URL), `id`, `sealed`, `schema_version`, `frames`, `committed_frames`, `targets`
        (list), `raw_bytes`, `stored_bytes`, `provenance`, `teacher`, `dataset`, `coverage` (list of
        scenes).
    """
    targets = [_describe_target(cache, name) for name in cache.specs]
    coverage = [
        {"scene": scene, "committed": done, "frames": total}
        for scene, (done, total) in cache.coverage.items()
    ]
    return {
        "cache": cache.url,
        "id": cache.id,
        "sealed": cache.sealed,
        "schema_version": cache.attributes["schema_version"],
        "frames": len(cache.frames.tokens),
        "committed_frames": sum(scene["committed"] for scene in coverage),
        "targets": targets,
        "raw_bytes": sum(target["raw_bytes"] for target in targets),
        "stored_bytes": sum(target["stored_bytes"] for target in targets),
        "teacher": cache.fingerprint["teacher"],
        "dataset": cache.plan["dataset"],
        "provenance": cache.provenance,
        "coverage": coverage,
    }


def _describe_target(cache: Cache, name: str) -> dict[str, Any]:
    spec = cache.specs[name]
    done = sum(committed for committed, _ in cache.coverage.values())
    raw = 4 * math.prod(spec.tap.shape) * done
    stored = cache.stored_bytes(name)
    return {
        "name": name,
        "kind": spec.tap.kind,
        "shape": list(spec.tap.shape),
        "sizes": spec.sizes,
        "dtype": spec.codec,
        "region": spec.region.name,
        "alignment": spec.alignment,
        "context": spec.tap.context,
        "given": list(spec.tap.given),
        "reads": spec.tap.reads,
        "cell": spec.tap.grid.cell if spec.tap.grid else None,
        "raw_bytes": raw,
        "stored_bytes": stored,
        "ratio": raw / stored if stored else None,
    }


def render(result: dict[str, Any]) -> RenderableType:
    """Show what `describe` (and, where present, statistics and a sample) found."""
    parts: list[RenderableType] = [
        _headline(result),
        _targets(result),
        _origin(result),
        _coverage(result["coverage"]),
    ]
    if "statistics" in result:
        parts += _statistics(result["statistics"])
    if result.get("sample"):
        parts.append(_sample(result["sample"]))
    if result.get("picture"):
        parts.append(f"picture: {result['picture']}")
    if result.get("mcap"):
        own = result["mcap"]
        parts.append(
            f"scene {own['scene']}: {own['file']}, {own['mcap_bytes'] / 1e6:.1f} MB, "
            f"{own['frames']} frames, {own['topics']} topics"
        )
    if result.get("html"):
        parts.append(_page(result))
    return Group(*parts)


def _page(result: dict[str, Any]) -> str:
    said = [f"{own['severity']}: {own['what']} ({own['where']})" for own in result["warnings"]]
    size = f"{result['html_bytes'] / 1e6:.1f} MB, {result['html_frames']} frames"
    return "\n".join([f"report: {result['html']}, {size}, {len(said)} warnings", *said])


def _headline(result: dict[str, Any]) -> Text:
    state = ("sealed", "green")
    more = ""
    if not result["sealed"]:
        frames = f"{result['committed_frames']} of {result['frames']} frames"
        state = (f"not sealed: {frames}", "yellow")
        more = "; run the command below again to go on"
    return Text.assemble((result["cache"], "bold"), "  ", state, more, f"\nid {result['id']}")


def _targets(result: dict[str, Any]) -> Table:
    told = any(row["reads"] != "none" for row in result["targets"])
    words = ("target", "kind", "shape", "stored as", "region", "alignment")
    left = words + ("context",) * told
    right = ("raw MB", "stored MB", "ratio")
    table = _table(f"targets of {result['committed_frames']} frames, raw = float32", left, right)
    for row in result["targets"]:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.1f}"
        sizes = (f"{row[key] / 1e6:,.2f}" for key in ("raw_bytes", "stored_bytes"))
        table.add_row(
            row["name"], row["kind"], row["sizes"], row["dtype"], row["region"], row["alignment"],
            *([row["reads"]] if told else []), *sizes, ratio,
        )  # fmt: skip
    if len(result["targets"]) > 1 and result["stored_bytes"]:
        table.add_section()
        table.add_row(
            "all", *[""] * (len(left) - 1), f"{result['raw_bytes'] / 1e6:,.2f}",
            f"{result['stored_bytes'] / 1e6:,.2f}",
            f"{result['raw_bytes'] / result['stored_bytes']:.1f}",
        )  # fmt: skip
    return table


def _origin(result: dict[str, Any]) -> Table:
    table = Table(title="origin", show_header=False, title_justify="left")
    teacher, dataset, made = result["teacher"], result["dataset"], dict(result["provenance"])
    rows = {
        "teacher": f"{teacher['type']}, checkpoint {teacher.get('checkpoint', 'not recorded')}"
        + _reckoned(teacher.get("reckoning", {})),
        "weights": teacher["weights"],
        "dataset": f"{dataset['version']} in {dataset['root']}, split {dataset['split']}",
        **{key: made.pop(key) for key in ("command", "git", "host", "time") if key in made},
    }
    rows["also"] = ", ".join(f"{key} {value}" for key, value in made.items())
    for key, value in rows.items():
        table.add_row(Text(key, style="bold"), str(value))
    return table


def _reckoned(how: dict[str, Any]) -> str:
    if not how:
        return ""
    repeats = "" if how["deterministic"] else ", not the same twice on CUDA"
    return f", {how['precision']}{repeats}"


def _coverage(scenes: list[dict[str, Any]]) -> Table:
    complete = sum(scene["committed"] == scene["frames"] for scene in scenes)
    table = _table(
        f"coverage: {complete} of {len(scenes)} scenes complete",
        ("scene",),
        ("cached", "frames", "share"),
    )
    partial = [scene for scene in scenes if scene["committed"] < scene["frames"]]
    whole = [scene for scene in scenes if scene["committed"] == scene["frames"]]
    shown = (partial + whole)[:_SHOWN_SCENES]
    for scene in shown:
        share = scene["committed"] / scene["frames"]
        table.add_row(scene["scene"], str(scene["committed"]), str(scene["frames"]), f"{share:.0%}")
    if len(scenes) > len(shown):
        table.add_row(f"and {len(scenes) - len(shown)} more (--json lists all)", "", "", "")
    return table


def _statistics(statistics: dict[str, dict[str, Any]]) -> list[RenderableType]:
    maps = {name: row for name, row in statistics.items() if "num_channels" in row}
    boxes = {name: row for name, row in statistics.items() if "boxes" in row}
    left = ("target", "dead channels")
    table = _table("values, over all channels", left, ("mean", "std", "min", "max", "zeros"))
    for name, row in maps.items():
        dead = row["dead"]
        shown = ", ".join(str(channel) for channel in dead[:_SHOWN_CHANNELS])
        more = ", ..." if len(dead) > _SHOWN_CHANNELS else ""
        listed = f": {shown}{more}" if dead else ""
        table.add_row(
            name, f"{len(dead)} of {row['num_channels']}{listed}",
            *(f"{row[key]:.4g}" for key in ("mean", "std", "min", "max")), f"{row['zeros']:.1%}",
        )  # fmt: skip
    parts: list[RenderableType] = [table] if maps else []
    for name, row in boxes.items():
        parts += _boxes(name, row)
    return parts


def _boxes(name: str, row: dict[str, Any]) -> list[RenderableType]:
    table = _table(f"{name}, by class", ("class",), ("boxes", "a frame"))
    for label, number in row["per_class"].items():
        table.add_row(label, f"{number:,}", f"{number / row['frames']:.2f}")
    summary = (
        f"{row['boxes']:,} boxes in {row['frames']:,} frames, at most {row['most']} in one; "
        f"scores: mean {row['mean_score']:.3f}, best {row['max_score']:.3f}"
    )
    return [table, summary]


def _sample(sample: dict[str, Any]) -> Table:
    table = _table(
        f"sample {sample['token']}, {sample['scene']}",
        ("target",),
        ("mean", "std", "min", "max", "valid"),
    )
    for name, row in sample["targets"].items():
        numbers = (f"{row[key]:.4g}" for key in ("mean", "std", "min", "max"))
        table.add_row(name, *numbers, "" if row["count"] is None else str(row["count"]))
    return table


def _table(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in left:
        table.add_column(column, overflow="fold")
    for column in right:
        table.add_column(column, justify="right")
    return table

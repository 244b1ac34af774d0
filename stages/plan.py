"""plan: what would be stored and what it costs, before any data or GPU is touched."""

from typing import Any

from rich.console import Group
from rich.table import Table

from bevcask.catalog import resolve
from bevcask.config import RunConfig
from bevcask.data.nuscenes import Frames
from bevcask.methods import build_method
from bevcask.targets.plan import nominal_frames, plan
from bevcask.teachers import build_teacher


def run(config: RunConfig) -> dict[str, Any]:
    """Return targets, bytes and teacher passes.

    Frames are counted in `dataset.infos` or `dataset.root` where it exists, else taken from the
    nominal size of the split (28,130 keyframes in nuScenes train); the result says which.

    Raises:
        ConfigError: no data and no nominal size for the split.
        PlanError: the teacher does not offer what the method needs.
    """
    root = resolve("dataset", config.dataset.root)
    dataset = config.dataset.model_copy(update={"root": root})
    nominal = nominal_frames(dataset) if dataset.infos is None else None
    frames = len(Frames.select(dataset).tokens) if nominal is None else nominal
    teacher = build_teacher(config.teacher, config.seed)
    method = build_method(config.method)
    result = plan(method.needs(), teacher.taps(), frames, config.store, config.augment)
    return {
        "frames": frames,
        "frames_from": "dataset" if nominal is None else "nominal size of the split",
        "teacher_passes": frames,
        **result.to_dict(),
    }


def render(result: dict[str, Any]) -> Group:
    """Show the plan as a table with totals."""
    table = Table(title="targets (uncompressed: an upper bound)")
    for column in ("target", "kind", "shape", "codec", "region", "alignment", "MB a frame", "GB"):
        table.add_column(column, justify="right" if column in ("MB a frame", "GB") else "left")
    for row in result["targets"]:
        table.add_row(
            row["name"],
            row["kind"],
            "x".join(map(str, row["shape"])),
            row["codec"],
            row["region"],
            row["alignment"],
            f"{row['bytes_per_frame'] / 1e6:.3f}",
            f"{row['bytes'] / 1e9:.2f}",
        )
    return Group(
        table,
        f"{result['frames']:,} frames ({result['frames_from']}), as many teacher passes, "
        f"at most {result['total_bytes'] / 1e9:.2f} GB",
    )

"""What a picture of one frame is made of: cameras, points, maps, boxes of several sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bevcask.geometry import Grid

Floats = npt.NDArray[np.floating[Any]]
TRUTH = "#3ddc84"
TEACHER = "#ff9f1c"
STUDENT = "#4cc9f0"
UNSEEN_ALPHA = 0.35  # ground truth without a LiDAR point


@dataclass(frozen=True)
class BoxLayer:
    """Boxes of one source.

    Attributes:
        boxes_N9: float, `geometry.BOX_FIELDS`, canonical LIDAR_TOP frame.
        alpha_N: opacity of each box, 0..1.
        names: class of each box.
        label: text of the legend, e.g. `ground truth (31)`.
        colour: matplotlib colour.
        dashed: dashed outlines.
    """

    boxes_N9: Floats
    alpha_N: Floats
    names: Sequence[str]
    label: str
    colour: str
    dashed: bool = False

    @classmethod
    def truth(
        cls, boxes_N9: Floats, num_lidar_points_N: npt.NDArray[Any], names: Sequence[str]
    ) -> "BoxLayer":
        """Return the ground-truth layer; boxes without a LiDAR point are faint."""
        alpha_N = np.where(num_lidar_points_N > 0, 1.0, UNSEEN_ALPHA)
        unseen = int((num_lidar_points_N == 0).sum())
        note = f", {unseen} of them without a LiDAR point: faint" if unseen else ""
        return cls(boxes_N9, alpha_N, names, f"ground truth ({len(boxes_N9)}{note})", TRUTH)

    @classmethod
    def teacher(
        cls, boxes_N9: Floats, scores_N: Floats, names: Sequence[str], min_score: float
    ) -> "BoxLayer":
        """Return the layer of teacher boxes with at least `min_score`."""
        return cls._scored("teacher", TEACHER, boxes_N9, scores_N, names, min_score)

    @classmethod
    def student(
        cls, boxes_N9: Floats, scores_N: Floats, names: Sequence[str], min_score: float
    ) -> "BoxLayer":
        """Return the layer of student boxes with at least `min_score`."""
        return cls._scored("student", STUDENT, boxes_N9, scores_N, names, min_score)

    @classmethod
    def _scored(
        cls,
        who: str,
        colour: str,
        boxes_N9: Floats,
        scores_N: Floats,
        names: Sequence[str],
        min_score: float,
    ) -> "BoxLayer":
        kept = scores_N >= min_score
        best = f"best {scores_N.max():.2f}" if len(scores_N) else "no box at all"
        label = f"{who}, score ≥ {min_score:g} ({int(kept.sum())} of {len(scores_N)}, {best})"
        shown = [name for name, keep in zip(names, kept, strict=True) if keep]
        return cls(boxes_N9[kept], np.ones(int(kept.sum())), shown, label, colour, dashed=True)


@dataclass(frozen=True)
class LineLayer:
    """Polylines of one source, drawn from above.

    Attributes:
        lines: (points, 2) each, metres, canonical LIDAR_TOP frame.
        label: text of the legend.
    """

    lines: Sequence[Floats]
    label: str
    colour: str = "#4cc9f0"
    dashed: bool = False


@dataclass(frozen=True)
class CameraView:
    """One camera.

    Attributes:
        image_HW3: uint8 RGB.
        intrinsics_33: camera matrix, pixels of this image.
        lidar_to_camera_44: canonical LIDAR_TOP frame to camera frame (z forward).
    """

    image_HW3: npt.NDArray[np.uint8]
    intrinsics_33: Floats
    lidar_to_camera_44: Floats


@dataclass(frozen=True)
class BevMap:
    """A scalar map seen from above.

    Attributes:
        values_YX: float, rising y and x, canonical LIDAR_TOP frame.
        grid: the grid it lies on.
        title: what it shows.
        colour_map: name of a matplotlib colour map.
        limits: values of the darkest and brightest colour; None takes the map's own range.
    """

    values_YX: Floats
    grid: Grid
    title: str
    colour_map: str = "magma"
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Picture:
    """Everything that is drawn.

    Attributes:
        title: first line: token and scene.
        subtitle: second line: teacher, dataset, whether it is synthetic.
        cameras: by name, `geometry.CAMERAS`; none where it is drawn from above alone.
        points_P5: keyframe LiDAR points, canonical frame (x, y, z, intensity, ...).
        maps: drawn from above.
        layers: boxes, drawn in this order in every panel.
        lines: polylines, drawn in every panel from above.
    """

    title: str
    subtitle: str
    cameras: Mapping[str, CameraView]
    points_P5: Floats
    maps: Sequence[BevMap]
    layers: Sequence[BoxLayer] = field(default_factory=list)
    lines: Sequence[LineLayer] = ()

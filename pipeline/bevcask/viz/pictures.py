"""One picture of one cached sample: what the cameras saw and what the teacher said about it.

Three columns: the six cameras in driving order on top; below, from above, the LiDAR keyframe, the
energy of a teacher map and the teacher's heatmap. Ground truth and teacher boxes are drawn in every
panel. Takes arrays only: nothing here reads a dataset or a cache.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle

from bevcask.geometry import CAMERAS, Grid, box_corners_bev, transform_points
from bevcask.viz.layers import BevMap, BoxLayer, CameraView, Floats, LineLayer, Picture

BACKGROUND = "#101418"
PANEL = "#171c22"
FAINT = "#8b949e"
INK = "#e6edf3"
NEAR_PLANE = 0.3  # metres; wireframes are cut here
_NAMED_PIXELS = 40  # boxes that are lower in an image are too far away to be named
_TITLE_LETTERS = 80  # more would run into the legend
_EGO_OUTLINE = np.array([[0, 2.4], [0.95, 1.2], [0.95, -2.4], [-0.95, -2.4], [-0.95, 1.2]])


def draw(picture: Picture, path: Path) -> None:
    """Draw a picture into a PNG; `path` is replaced in one step."""
    with mpl.rc_context(_STYLE):
        figure = _figure(picture, 14.6, dpi=100)
        parts: Any = figure.subfigures(3, 1, height_ratios=(0.9, 7.0, 6.7))
        header, cameras, maps = parts
        _draw_header(header, picture)
        for name, axes in zip(CAMERAS, cameras.subplots(2, 3).flat, strict=True):
            _draw_camera(axes, name, picture.cameras[name], picture.layers)
        _draw_from_above(maps, picture)
        partial = path.with_name(path.name + ".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(partial, format="png", pil_kwargs={"compress_level": 3})
        partial.replace(path)


def drawn_from_above(picture: Picture) -> npt.NDArray[np.uint8]:
    """Return the panels from above alone, without cameras: (H, W, 3) RGB."""
    with mpl.rc_context(_STYLE):
        figure = _figure(picture, 7.6, dpi=70)
        parts: Any = figure.subfigures(2, 1, height_ratios=(0.9, 6.7))
        header, maps = parts
        _draw_header(header, picture)
        _draw_from_above(maps, picture)
        figure.canvas.draw()
        rgba_HW4 = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
    return rgba_HW4[..., :3].copy()


def _columns(picture: Picture) -> int:
    return max(3, 1 + len(picture.maps))


def _figure(picture: Picture, height: float, dpi: int) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, hspace=0.0, wspace=0.0)
    figure = Figure(figsize=(6.2 * _columns(picture), height), dpi=dpi, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _draw_from_above(figure: Any, picture: Picture) -> None:
    first, *others = figure.subplots(1, _columns(picture)).flat
    extent = _common_extent(picture.maps)
    _draw_points(first, picture.points_P5, extent)
    for axes, bev in zip(others, picture.maps, strict=False):
        _draw_map(axes, bev)
    for axes in (first, *others[: len(picture.maps)]):
        _draw_footprints(axes, picture.layers, named=axes is first)
        for own in picture.lines:
            _draw_lines(axes, own, own.lines, np.ones(len(own.lines)))
        _draw_ego(axes, extent)
    for axes in others[len(picture.maps) :]:
        axes.set_axis_off()


_STYLE: dict[Any, Any] = {
    "figure.facecolor": BACKGROUND,
    "savefig.facecolor": BACKGROUND,
    "axes.facecolor": PANEL,
    "axes.edgecolor": "#30363d",
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "font.family": "DejaVu Sans",
}


def shortened(text: str, letters: int) -> str:
    """Return a text of at most so many letters, the middle left out where it is longer."""
    if len(text) <= letters:
        return text
    tail = (letters - 1) * 2 // 3
    return f"{text[: letters - 1 - tail]}…{text[-tail:]}"


def _draw_header(figure: Any, picture: Picture) -> None:
    figure.text(
        0.006,
        0.72,
        shortened(picture.title, _TITLE_LETTERS),
        fontsize=17,
        fontweight="bold",
        va="center",
    )
    figure.text(0.006, 0.25, picture.subtitle, fontsize=11.5, color=FAINT, va="center")
    layers: list[BoxLayer | LineLayer] = [*picture.layers, *picture.lines]
    handles = [
        Line2D([], [], color=layer.colour, lw=2, ls="--" if layer.dashed else "-")
        for layer in layers
    ]
    labels = [layer.label for layer in layers]
    if handles:
        figure.legend(
            handles, labels, loc="center right", fontsize=11.5, frameon=False, handlelength=2.6
        )


def _draw_camera(axes: Axes, name: str, view: CameraView, layers: Sequence[BoxLayer]) -> None:
    height, width = view.image_HW3.shape[:2]
    axes.imshow(view.image_HW3, aspect="equal", interpolation="antialiased")
    for layer in layers:
        wireframes = [project_wireframe(box, view) for box in layer.boxes_N9]
        lines = [line for wireframe in wireframes for line in wireframe]
        alpha = np.repeat(layer.alpha_N, [len(wireframe) for wireframe in wireframes])
        _draw_lines(axes, layer, lines, alpha)
        for label, wireframe, opacity in zip(layer.names, wireframes, layer.alpha_N, strict=True):
            if len(wireframe) and np.ptp(wireframe[..., 1]) > _NAMED_PIXELS:
                u, v = wireframe[..., 0].mean(), wireframe[..., 1].min()
                _draw_name(axes, layer, label, (float(u), float(v)), float(opacity))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(
        0.012, 0.965, name, transform=axes.transAxes, va="top", fontsize=11,
        bbox={"facecolor": BACKGROUND, "alpha": 0.7, "edgecolor": "none", "pad": 3},
    )  # fmt: skip


_EDGES = np.array(
    [[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6], [3, 7]]
)


def box_corners(box_9: Floats) -> Floats:
    """Return the corners (8, 3) of a box: four at the bottom, counter-clockwise, four on top."""
    footprint = box_corners_bev(box_9[None])[0]
    low, high = box_9[2] - box_9[5] / 2, box_9[2] + box_9[5] / 2
    return np.concatenate(
        [np.column_stack([footprint, np.full(4, level)]) for level in (low, high)]
    )


def project_wireframe(box_9: Floats, view: CameraView) -> Floats:
    """Project the visible edges of a box, and a line on its bottom towards its heading.

    Edges are cut at the near plane; a box entirely behind it or outside the image gives none.

    Args:
        box_9: (9,) canonical LIDAR_TOP frame, metres.
        view: the camera.

    Returns:
        (L, 2, 2) line segments, pixels (u, v).
    """
    corners = box_corners(box_9)
    bottom = corners[:4].mean(0)
    front = (corners[0] + corners[3]) / 2
    segments = np.concatenate([corners[_EDGES], [[bottom, front]]])
    camera = transform_points(segments.reshape(-1, 3), view.lidar_to_camera_44).reshape(-1, 2, 3)
    depth = camera[..., 2]
    camera = camera[(depth > NEAR_PLANE).any(1)]
    depth = camera[..., 2]
    behind = depth < NEAR_PLANE
    step = np.where(behind, NEAR_PLANE - depth, 0.0)
    slope = np.where(behind.any(1), depth[:, 1] - depth[:, 0], 1.0)
    direction = camera[:, 1] - camera[:, 0]
    camera = camera + (step / slope[:, None])[..., None] * direction[:, None]
    pixels = camera @ view.intrinsics_33.T
    pixels = pixels[..., :2] / pixels[..., 2:]
    height, width = view.image_HW3.shape[:2]
    flat = pixels.reshape(-1, 2)
    outside = not len(flat) or (
        (flat.max(0) < 0).any() or (flat.min(0) > np.array([width, height])).any()
    )
    visible: Floats = pixels[:0] if outside else pixels
    return visible


def _common_extent(maps: Sequence[BevMap]) -> tuple[float, float, float, float]:
    """Return x_min, x_max, y_min, y_max around all maps, metres."""
    grids = [bev.grid for bev in maps] or [Grid.square(51.2, 0.8)]
    return (
        min(grid.x_min for grid in grids),
        max(grid.x_max for grid in grids),
        min(grid.y_min for grid in grids),
        max(grid.y_max for grid in grids),
    )


def _draw_points(axes: Axes, points_P5: Floats, extent: tuple[float, float, float, float]) -> None:
    height = np.clip(points_P5[:, 2], -3.0, 3.0)
    axes.scatter(points_P5[:, 0], points_P5[:, 1], c=height, s=1.4, lw=0, cmap="bone", vmin=-4.5)
    axes.set_title(f"LiDAR keyframe: {len(points_P5):,} points, brighter = higher")
    axes.set_ylabel("y, metres (forward)")
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])


def _draw_map(axes: Axes, bev: BevMap) -> None:
    grid = bev.grid
    low, high = bev.limits or (float(bev.values_YX.min()), float(bev.values_YX.max()))
    image = axes.imshow(
        bev.values_YX,
        origin="lower",
        extent=(grid.x_min, grid.x_max, grid.y_min, grid.y_max),
        cmap=bev.colour_map,
        vmin=low,
        vmax=high,
        interpolation="nearest",
    )
    axes.set_title(bev.title)
    backing = Rectangle(
        (0.63, 0.02), 0.36, 0.085, transform=axes.transAxes, color=BACKGROUND, alpha=0.75, zorder=3
    )
    axes.add_patch(backing)
    inset = axes.inset_axes((0.66, 0.04, 0.3, 0.022))
    axes.figure.colorbar(image, cax=inset, orientation="horizontal")
    inset.tick_params(labelsize=8, colors=INK, length=2, pad=1)
    inset.xaxis.set_ticks_position("top")
    inset.locator_params(nbins=4)


def _draw_footprints(axes: Axes, layers: Sequence[BoxLayer], named: bool) -> None:
    for layer in layers:
        if not len(layer.boxes_N9):
            continue
        corners_N42 = box_corners_bev(layer.boxes_N9)
        heading_N22 = np.stack(
            [layer.boxes_N9[:, :2], (corners_N42[:, 0] + corners_N42[:, 3]) / 2], axis=1
        )
        outlines = [np.vstack([corners, corners[:1]]) for corners in corners_N42]
        _draw_lines(axes, layer, outlines, layer.alpha_N)
        _draw_lines(axes, layer, list(heading_N22), layer.alpha_N)
        names = layer.names if named else ()
        for label, corners, opacity in zip(names, corners_N42, layer.alpha_N, strict=False):
            u, v = float(corners[:, 0].mean()), float(corners[:, 1].max())
            _draw_name(axes, layer, label, (u, v), float(opacity))


def _draw_lines(
    axes: Axes, layer: BoxLayer | LineLayer, lines: Sequence[Floats], alpha: Floats
) -> None:
    """Draw polylines (each (points, 2)) in a layer's style, one opacity a line."""
    colours = [to_rgba(layer.colour, float(opacity)) for opacity in alpha]
    style = "--" if layer.dashed else "-"
    axes.add_collection(LineCollection(lines, colors=colours, linewidths=1.3, linestyles=style))


def _draw_name(
    axes: Axes, layer: BoxLayer, label: str, at: tuple[float, float], opacity: float
) -> None:
    """Write a class over a box, the teacher's below ground truth's, where the panel shows it."""
    below = layer.dashed
    axes.annotate(
        label.replace("_", " "), at, xytext=(0, -1 if below else 1), textcoords="offset points",
        ha="center", va="top" if below else "bottom", fontsize=7, color=layer.colour,
        alpha=opacity, annotation_clip=True, clip_on=True,
    )  # fmt: skip


def _draw_ego(axes: Axes, extent: tuple[float, float, float, float]) -> None:
    axes.add_patch(Polygon(_EGO_OUTLINE, closed=True, facecolor=INK, edgecolor=BACKGROUND, lw=0.8))
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    axes.set_aspect("equal")
    axes.set_xlabel("x, metres (right)")

"""Descriptions without tensors: what a tap is, what a method needs, what a cache stores."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from bevcask.geometry import Grid
from bevcask.notebook import html_table

Alignment = Literal["exact", "aligned", "replay", "approximate"]
Codec = Literal[
    "uint8",
    "uint6",
    "uint5",
    "uint4",
    "int8",
    "int6",
    "int5",
    "int4",
    "float16",
    "float32",
    "int64",
]
VALUE_CODECS: tuple[Codec, ...] = tuple(codec for codec in get_args(Codec) if codec != "int64")
"""Of numbers; `int64` is for names."""
# The largest integer of each codec that has a scale. Fewer levels still take a byte in memory;
# entropy coding makes them small on disk, and no reader has to unpack anything.
LEVELS: dict[Codec, int] = {
    "uint8": 255,
    "uint6": 63,
    "uint5": 31,
    "uint4": 15,
    "int8": 127,
    "int6": 31,
    "int5": 15,
    "int4": 7,
}


def stored_dtype(codec: Codec) -> str:
    """Return the numpy name of the dtype a codec stores."""
    return codec[:-1] + "8" if codec in LEVELS else codec


GIVEN = ("labels", "future")


@dataclass(frozen=True)
class TapInfo:
    """What a detector says about one of its taps, without weights or data.

    Attributes:
        name: tap name, e.g. `bev.neck`, `head.heatmap`, `head.boxes`, `query.last`, `image.fpn0`.
        kind: a key of `registry.KINDS`.
        shape: of one sample: dense_bev, heatmap and box_code (C, Y, X); occupancy (C, Z, Y, X),
            voxel_labels (1, Z, Y, X); box_set (N_max, 11); polylines (N_max, 2 P + 2);
            query_set (Q, C); query_layers (L, Q, C); track_ids (Q,); query_places and
            query_points (Q, 3 a place or point); image_feature (V, C, H, W); channel_moments
            (2, C); point_set (P, 5).
        grid: the BEV grid of dense kinds and of moments of them, else None.
        nonnegative: values are >= 0 by construction (after a ReLU or sigmoid).
        classes: class name per channel (heatmap, occupancy) or per label (box_set, polylines,
            voxel_labels),
            else empty.
        depends_on_images: the value changes when pixels change, so BEV alignment alone cannot
            replay it.
        bins: metres that each channel stands for (`image.depth`: the depth its features are lifted
            to), or the height of the centre of each layer (occupancy, voxel_labels), else empty.
        context: which other frames the value depends on: `none`, `window of N` keyframes before
            this one, or `scene`, all of them since its first, or `scene in N parts`, since the
            first of that part.
        given: what its teacher was shown that no detector in a car has, of `GIVEN`: `labels`,
            ground truth of the frame (LabelDistill), or `future`, later frames. It is a target like
            any other; boxes of a teacher that was given labels are not scored.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    grid: Grid | None = None
    nonnegative: bool = False
    classes: tuple[str, ...] = ()
    depends_on_images: bool = False
    bins: tuple[float, ...] = ()
    context: str = "none"
    given: tuple[str, ...] = ()

    @property
    def reads(self) -> str:
        """What else the value depends on, for tables: `none`, `scene`, `window of 2, labels`."""
        other = (self.context,) if self.context != "none" else ()
        return ", ".join((*other, *self.given)) or "none"

    @property
    def in_order(self) -> bool:
        """True if it can only be said of a scene's frames one after the other, from the first."""
        return self.context.startswith("scene")


RegionName = Literal[
    "all", "confident", "foreground", "keypoints", "centres", "gaussians", "focal", "union"
]


@dataclass(frozen=True)
class Region:
    """Which cells of a dense target are stored. Boxes are ground truth, canonical frame.

    Attributes:
        name: `all`; `confident`: the maximum over channels is above `threshold`, decided in
            float32 at extraction; `foreground`: the cell's centre lies in a box grown by `margin`,
            or is the cell of a box's centre; `keypoints`: bilinear interpolation at some point of a
            grown box reads the cell; `centres`: the cell of a box's centre; `gaussians`: the
            ground-truth heatmap (`targets.heatmap`) is above zero; `focal`: a heatmap drawn on
            cells of its own size is (`targets.focal`); `union`: in any of `parts`.
        threshold: used by `confident` only.
        margin: metres added to each side of a box; used by `foreground` and `keypoints`.
        parts: the regions of a union.
        cell: metres, side of the cells a heatmap is drawn on; used by `focal` only.
    """

    name: RegionName = "all"
    threshold: float = 0.0
    margin: float = 0.0
    parts: tuple["Region", ...] = ()
    cell: float = 0.0

    @property
    def reads_boxes(self) -> bool:
        """True if ground truth decides which cells are stored."""
        if self.name == "union":
            return any(part.reads_boxes for part in self.parts)
        return self.name not in ("all", "confident")

    def covers(self, needed: "Region") -> bool:
        """Tell whether every cell of another region is in this one."""
        if self.name == "all" or self == needed:
            return True
        if needed.name == "union":
            return all(self.covers(part) for part in needed.parts)
        if self.name == "union":
            return any(part.covers(needed) for part in self.parts)
        grown = self.name in ("foreground", "keypoints") and self.name == needed.name
        return grown and self.margin >= needed.margin

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; a region without cells of its own says nothing of them."""
        data = asdict(self) | {"parts": [part.to_dict() for part in self.parts]}
        if not self.cell:
            del data["cell"]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Region":
        """Rebuild a region from `to_dict`."""
        return cls(**data | {"parts": tuple(cls.from_dict(part) for part in data["parts"])})

    def __str__(self) -> str:
        """Return a word for tables and messages."""
        if self.name == "union":
            return " + ".join(map(str, self.parts))
        if self.name == "confident":
            return f"{self.name} > {self.threshold:g}"
        if self.name == "focal":
            return f"{self.name} {self.cell:g} m"
        grown = self.name in ("foreground", "keypoints")
        return f"{self.name} {self.margin:+g} m" if grown else self.name


@dataclass(frozen=True)
class Need:
    """What a method asks of a teacher.

    Attributes:
        role: the method's word for it, e.g. `neck`.
        tap: the teacher tap that plays the role (from the method's config).
        kind: the kind it must be.
        region: the cells the loss reads.
        normaliser: the cells its sums and softmaxes run over; `all` forces region `all`.
        size_HW: rows and columns of an image feature that the loss resizes it to before all else;
            None reads it as the teacher says it.
    """

    role: str
    tap: str
    kind: str
    region: Region = field(default_factory=Region)
    normaliser: Literal["all", "region"] = "region"
    size_HW: tuple[int, int] | None = None


@dataclass(frozen=True)
class TargetSpec:
    """A tap as stored in the cache.

    Attributes:
        tap: the tensor that is stored, as the teacher describes it but for a size it is brought to.
        codec: how values are stored.
        region: which cells are stored.
        alignment: how exactly it can meet an augmented student.
        view: which replayable image augmentation the teacher saw; 0 is the clean frame.
        said_HW: rows and columns the teacher says, of an image feature that is resized before it is
            stored (`targets.resize`); None stores what the teacher says.
    """

    tap: TapInfo
    codec: Codec
    region: Region = field(default_factory=Region)
    alignment: Alignment = "exact"
    view: int = 0
    said_HW: tuple[int, int] | None = None

    def _repr_html_(self) -> str:
        tap, grid = self.tap, self.tap.grid
        rows: list[tuple[str, object]] = [
            ("kind", tap.kind),
            ("shape", self.sizes),
            ("stored as", self.codec),
            ("region", self.region),
            ("alignment", self.alignment),
            ("depends on other frames", tap.reads),
        ]
        if grid is not None:
            extent = f"x {grid.x_min:g} to {grid.x_max:g} m, y {grid.y_min:g} to {grid.y_max:g} m"
            rows.append(("grid", f"{extent}, cells of {grid.cell:g} m"))
        if self.view:
            rows.append(("view", f"{self.view}: the teacher saw augmented images"))
        if tap.classes:
            rows.append(("classes", ", ".join(tap.classes)))
        return html_table(self.key, (), rows)

    @property
    def name(self) -> str:
        """The tap's name: what methods and teachers call it, whichever view it is of."""
        return self.tap.name

    @property
    def key(self) -> str:
        """Where a cache stores it; other views than the clean one have places of their own."""
        return view_key(self.tap.name, self.view)

    @property
    def sizes(self) -> str:
        """The shape in words, and of which size it was said if of another."""
        said = "" if self.said_HW is None else f" of {self.said_HW[0]}x{self.said_HW[1]}"
        return "x".join(map(str, self.tap.shape)) + said

    def covers(self, needed: Region) -> bool:
        """Tell whether it holds a region as it was decided: what a threshold says, in float32."""
        if needed.name == "confident" and self.region.name == "all":
            return self.codec == "float32"
        return self.region.covers(needed)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; what came later and says nothing is left out."""
        data = asdict(self) | {"region": self.region.to_dict()}
        if self.said_HW is None:
            del data["said_HW"]
        if not self.tap.bins:
            del data["tap"]["bins"]
        if self.tap.context == "none":
            del data["tap"]["context"]
        if not self.tap.given:
            del data["tap"]["given"]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TargetSpec":
        """Rebuild a spec from `to_dict` (lists from JSON become tuples again)."""
        tap = dict(data["tap"])
        tap["shape"] = tuple(tap["shape"])
        tap["classes"] = tuple(tap["classes"])
        tap["bins"] = tuple(tap.get("bins", ()))
        tap["given"] = tuple(tap.get("given", ()))
        tap["grid"] = Grid(**tap["grid"]) if tap["grid"] else None
        return cls(
            tap=TapInfo(**tap),
            codec=data["codec"],
            region=Region.from_dict(data["region"]),
            alignment=data["alignment"],
            view=data["view"],
            said_HW=tuple(data["said_HW"]) if "said_HW" in data else None,
        )


def view_key(tap: str, view: int) -> str:
    """Return where a cache stores a view of a tap."""
    return f"{tap}.view{view}" if view else tap

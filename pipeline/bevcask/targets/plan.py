"""The plan: needs x taps -> the targets to store, with their bytes, before any GPU is touched."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from bevcask.config import AugmentConfig, DatasetConfig, StoreConfig
from bevcask.errors import ConfigError, PlanError
from bevcask.geometry import CAMERAS
from bevcask.groups import group_members, load_group
from bevcask.notebook import html_table
from bevcask.registry import suggest
from bevcask.targets.kinds import kind_of
from bevcask.targets.spec import LEVELS, Codec, Need, Region, TapInfo, TargetSpec

BOXES = "head.boxes"
# What each view did to the images; compared when a student replays it.
VIEW_TRANSFORM = TapInfo("image_transform", "image_transform", (len(CAMERAS), 3, 3))
# Keyframes of the official nuScenes splits, by version.
NOMINAL_FRAMES = {
    "v1.0-trainval": {"train": 28130, "val": 6019},
    "v1.0-test": {"test": 6008},
    "v1.0-mini": {"mini_train": 323, "mini_val": 81},
}


@dataclass(frozen=True)
class Plan:
    """What will be stored.

    Attributes:
        specs: the targets, in order of the needs; the teacher's boxes last.
        num_frames: frames of the selection (rows that hold data).
        roles: target name -> what the method calls it.
    """

    specs: tuple[TargetSpec, ...]
    num_frames: int
    roles: Mapping[str, tuple[str, ...]]

    def with_stored(self, stored: Iterable[TargetSpec]) -> "Plan":
        """Return the plan with what is stored already where it holds all that was to be stored."""
        there = {spec.key: spec for spec in stored}

        def held(spec: TargetSpec) -> TargetSpec:
            old = there.get(spec.key, spec)
            same = (old.tap, old.codec, old.view) == (spec.tap, spec.codec, spec.view)
            return old if same and old.covers(spec.region) else spec

        return replace(self, specs=tuple(map(held, self.specs)))

    def teacher_passes(self, window: int = 1) -> int:
        """Return the forwards of single frames that an extraction makes: one a frame and view.

        Args:
            window: forwards that say something of a frame which depends on a window before it.
        """
        deep = {spec.view for spec in self.specs if spec.tap.context.startswith("window")}
        views = {spec.view for spec in self.specs}
        return self.num_frames * sum(window if view in deep else 1 for view in views)

    @property
    def bytes_per_frame(self) -> dict[str, int]:
        """Uncompressed bytes of one frame by target name."""
        return {spec.key: kind_of(spec.tap).bytes_per_frame(spec) for spec in self.specs}

    @property
    def bytes_by_target(self) -> dict[str, int]:
        """Uncompressed bytes of all frames by target name."""
        return {name: size * self.num_frames for name, size in self.bytes_per_frame.items()}

    @property
    def total_bytes(self) -> int:
        """Uncompressed bytes of all frames and targets: an upper bound of what is stored."""
        return sum(self.bytes_by_target.values())

    def table(self) -> list[dict[str, Any]]:
        """Return one row of plain data a target."""
        size = self.bytes_per_frame
        return [
            {
                "name": spec.key,
                "roles": list(self.roles[spec.key]),
                "kind": spec.tap.kind,
                "shape": list(spec.tap.shape),
                "sizes": spec.sizes,
                "codec": spec.codec,
                "region": str(spec.region),
                "alignment": spec.alignment,
                "context": spec.tap.context,
                "given": list(spec.tap.given),
                "reads": spec.tap.reads,
                "bytes_per_frame": size[spec.key],
                "bytes": size[spec.key] * self.num_frames,
            }
            for spec in self.specs
        ]

    def _repr_html_(self) -> str:
        rows = self.table()
        return html_table(
            f"{self.num_frames:,} frames, at most {self.total_bytes / 1e9:,.2f} GB",
            ("target", "role", "kind", "shape", "codec", "region", "alignment", "MB a frame", "GB"),
            [
                (
                    row["name"], ", ".join(row["roles"]), row["kind"], row["sizes"], row["codec"],
                    row["region"], row["alignment"], row["bytes_per_frame"] / 1e6,
                    row["bytes"] / 1e9,
                )
                for row in rows
            ],
            "uncompressed: an upper bound",
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; the attrs of a cache keep it."""
        return {
            "frames": self.num_frames,
            "targets": self.table(),
            "total_bytes": self.total_bytes,
        }


def plan(
    needs: Iterable[Need],
    taps: Mapping[str, TapInfo],
    num_frames: int,
    store: StoreConfig,
    augment: AugmentConfig | None,
    who: str = "the teacher",
) -> Plan:
    """Match what methods need with what a teacher offers.

    The teacher's boxes (`head.boxes`) are always added where it has them: they make the cache
    scorable. Needs of one tap share one target, stored on the union of their regions. Where one of
    several is `confident`, all cells are stored, in float32 under `store.codec=auto`: only then
    can each reader still decide its threshold exactly.

    Args:
        needs: of one or several methods.
        taps: the teacher's taps by name.
        num_frames: frames of the selection.
        store: codec choice.
        augment: the student's augmentation, for the alignment class; None for none.
        who: offers the taps, for messages.

    Raises:
        PlanError: every need that cannot be met, in one message.
    """
    problems: list[str] = []
    wanted: dict[str, list[Need]] = {}
    for need in needs:
        found = _unmet(need, taps, who)
        problems += found
        if not found:
            wanted.setdefault(need.tap, []).append(need)
    specs: list[TargetSpec] = []
    problems += [
        f"store.codecs names {name!r}, which is not stored.{suggest(name, wanted)} Stored: "
        f"{', '.join(sorted(wanted))}"
        for name in sorted(codecs_of(store).keys() - wanted.keys())
    ]
    for name, group in wanted.items():
        spec, found = _choose(taps[name], group, store, augment)
        problems += found
        specs += _views(spec, store.views)
    problems += _unseen(specs, wanted, augment)
    if any(spec.view for spec in specs):
        specs += [TargetSpec(VIEW_TRANSFORM, "float32", view=v + 1) for v in range(store.views)]
    if BOXES in taps and BOXES not in wanted:
        spec, found = _choose(taps[BOXES], [], store, None)  # nobody aligns them
        problems += found
        specs.append(spec)
    if problems:
        has = f"It has: {', '.join(sorted(taps))}."
        raise PlanError("\n- ".join([f"{who} does not offer what is needed. {has}", *problems]))
    roles = {spec.key: tuple(n.role for n in wanted.get(spec.name, ())) for spec in specs}
    return Plan(tuple(specs), num_frames, roles)


def _unseen(
    specs: Iterable[TargetSpec], wanted: Mapping[str, list[Need]], augment: AugmentConfig | None
) -> list[str]:
    """Return why image features of clean frames do not serve a student with other pixels."""
    off = [
        f"{_asked_by(wanted[spec.name])} ({spec.name})"
        for spec in specs
        if spec.tap.kind == "image_feature" and spec.alignment == "approximate"
    ]
    if not off or (augment is not None and augment.approximate):
        return []
    return [
        f"{', '.join(off)}: an image feature changes with the pixels, and the student's images are "
        "augmented; extract replayable views (store.views=K); or switch augment.resize, crop, "
        "image_flip, image_rotation, photometric and grid_mask off; or say "
        "augment.approximate=true, which is another method"
    ]


def is_replayed(tap: TapInfo, views: int) -> bool:
    """Tell whether a tap is stored of each view instead of the clean frame.

    It is where the pixels decide what the teacher says, unless that depends on the whole scene
    before: a scene is shown once, as it is.
    """
    return views > 0 and tap.depends_on_images and not tap.in_order


def _views(spec: TargetSpec, count: int) -> list[TargetSpec]:
    if not is_replayed(spec.tap, count):
        return [spec]
    return [replace(spec, alignment="replay", view=number + 1) for number in range(count)]


def _asked_by(group: list[Need]) -> str:
    return ", ".join(f"need {need.role!r}" for need in group)


def _unmet(need: Need, taps: Mapping[str, TapInfo], who: str) -> list[str]:
    """Return why a need cannot be met by these taps."""
    found = []
    if need.normaliser == "all" and need.region.name != "all":
        found.append(
            f"need {need.role!r}: its sums run over all cells, so region {need.region.name!r} "
            "would change them; ask for region 'all'"
        )
    if need.tap not in taps:
        found.append(f"need {need.role!r}: {who} has no tap {need.tap!r}")
    elif taps[need.tap].kind != need.kind:
        same = sorted(name for name, tap in taps.items() if tap.kind == need.kind)
        found.append(
            f"need {need.role!r}: tap {need.tap!r} is a {taps[need.tap].kind}, expected a "
            f"{need.kind}. What {who} has of that kind: {', '.join(same) or 'nothing'}"
        )
    return found


def _choose(
    tap: TapInfo, group: list[Need], store: StoreConfig, augment: AugmentConfig | None
) -> tuple[TargetSpec, list[str]]:
    """Return the target that serves every need of a tap, and what is wrong with it."""
    kind = kind_of(tap)
    tap, said_HW, problems = _at_size(tap, group)
    problems += kind.describe_problems(tap)
    region, undecided = _join({need.region for need in group})
    own = codecs_of(store)
    codec: Codec
    if tap.name in own:
        codec = own[tap.name]
    elif store.codec == "auto":
        codec = "float32" if undecided else narrow(kind.codec(tap, region), store.bits)
    else:
        codec = kind.codecs[0] if len(kind.codecs) == 1 else store.codec
    if codec not in kind.codecs:
        problems.append(
            f"{tap.name}: a {tap.kind} cannot be stored as {codec}; store.codec must be one of "
            f"auto, {', '.join(kind.codecs)}, and in store.codecs one of the latter"
        )
    if codec.startswith("u") and not tap.nonnegative:
        problems.append(
            f"{tap.name}: has negative values, which {codec} cannot hold; use store.codec=auto or "
            "int8"
        )
    if region.name not in kind.regions(tap):
        problems.append(f"{tap.name}: a {tap.kind} cannot be stored on region {region.name!r}")
    alignment = kind.alignment(tap, augment)
    return TargetSpec(tap, codec, region, alignment, said_HW=said_HW), problems


def _at_size(tap: TapInfo, group: list[Need]) -> tuple[TapInfo, tuple[int, int] | None, list[str]]:
    """Return the tap at the size its needs read, the size it is said at if another, and problems.

    Smaller maps stay as they are: what a loss makes of them is no gain to store.
    """
    wanted = {need.size_HW for need in group}
    if wanted <= {None}:
        return tap, None, []
    if tap.kind != "image_feature":
        return tap, None, [f"{_asked_by(group)}: only an image feature has a size to be brought to"]
    said_HW = (tap.shape[2], tap.shape[3])
    if len(wanted) > 1:
        return tap, None, [f"{_asked_by(group)}: {tap.name!r} is asked for at several sizes"]
    (size_HW,) = wanted
    assert size_HW is not None
    if size_HW[0] * size_HW[1] >= said_HW[0] * said_HW[1]:
        return tap, None, []
    return replace(tap, shape=(*tap.shape[:2], *size_HW)), said_HW, []


def codecs_of(store: StoreConfig) -> dict[str, Codec]:
    """Return the codecs that are asked for by the names of their targets."""
    pairs = (text.rpartition(":") for text in store.codecs)
    return {name: cast(Codec, codec) for name, _, codec in pairs}


def narrow(codec: Codec, bits: int) -> Codec:
    """Return an integer codec with fewer bits; float codecs stay."""
    return cast(Codec, codec.replace("8", str(bits))) if codec in LEVELS else codec


def _join(regions: Set[Region]) -> tuple[Region, bool]:
    """Return the region that serves several, and whether thresholds are left for the readers."""
    if len(regions) <= 1:
        return next(iter(regions), Region()), False
    confident = any(region.name == "confident" for region in regions)
    if confident or Region() in regions:
        return Region(), confident
    return Region("union", parts=tuple(sorted(regions, key=str))), False


def nominal_frames(dataset: DatasetConfig) -> int | None:
    """Return the nominal number of keyframes, or None where the dataset is there to be counted.

    Raises:
        ConfigError: no dataset where `dataset.root` says, and the selection has no nominal size.
    """
    root = Path(dataset.root)
    if root.is_dir():
        return None
    if dataset.root not in {
        load_group("dataset", name)["root"] for name in group_members("dataset")
    }:
        raise ConfigError(
            f"dataset.root={root}: no such folder. Correct it; or leave it out, to plan with the "
            "nominal size of a split."
        )
    nominal = NOMINAL_FRAMES.get(dataset.version, {})
    if dataset.split not in nominal or dataset.scenes is not None:
        what = "named scenes" if dataset.scenes is not None else f"split {dataset.split!r}"
        known = ", ".join(
            f"{split} of {version}" for version, own in NOMINAL_FRAMES.items() for split in own
        )
        raise ConfigError(
            f"dataset.root={root}: no such folder, and there is no nominal size for {what} of "
            f"dataset.version={dataset.version}. Give dataset.root=FOLDER, or one of {known}."
        )
    frames = nominal[dataset.split]
    return frames if dataset.limit is None else min(frames, dataset.limit)

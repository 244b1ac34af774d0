"""How far is what a teacher says with the memory of a whole scene from what it says of windows?

A cache made scene by scene holds the first. A teacher in the loop, or asked about single frames,
says the second: its memory begins anew before the history of each. A study, not a check.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from bevcask.cache.reader import Cache
from bevcask.data.loader import ViewSource
from bevcask.data.samples import collate
from bevcask.errors import ConfigError
from bevcask.progress import Ticker
from bevcask.targets.spec import TargetSpec
from bevcask.teachers.base import Teacher


@dataclass
class _Sums:
    frames: int = 0
    off: float = 0.0
    scene: float = 0.0
    window: float = 0.0
    product: float = 0.0

    def add(self, scene: Tensor, window: Tensor) -> None:
        self.frames += 1
        self.off += float((window - scene).square().sum())
        self.scene += float(scene.square().sum())
        self.window += float(window.square().sum())
        self.product += float((scene * window).sum())

    def __add__(self, other: "_Sums") -> "_Sums":
        pairs = zip(astuple(self), astuple(other), strict=True)
        return _Sums(*(one + more for one, more in pairs))

    def l2(self) -> float | None:
        return (self.off / self.scene) ** 0.5 if self.scene else None

    def cosine(self) -> float | None:
        length = (self.scene * self.window) ** 0.5
        return self.product / length if length else None


Sums = dict[str, tuple[_Sums, _Sums]]
"""Target -> of frames whose scene is older than their window, and of others."""


def window_sums(
    cache: Cache, teacher: Teacher, source: ViewSource, tokens: Sequence[str],
    device: torch.device, bar: Ticker,
) -> Sums:  # fmt: skip
    """Show a teacher windows and compare with what the memory of whole scenes said.

    Args:
        cache: made by the same teacher, scene by scene.
        teacher: shown windows, loaded on `device`.
        source: gives clean frames with their history.
        tokens: which frames.
        device: where the teacher runs.
        bar: moved by one a frame.

    Raises:
        ConfigError: the cache is not of a teacher's memory of scenes, or holds box sets alone.
    """
    targets = remembered_targets(cache)
    sums = {key: (_Sums(), _Sums()) for key in targets}
    for token in tokens:
        sample = source.read(token, 0)
        batch = collate([sample])
        said = teacher.targets(batch.to(device), [spec.name for spec in targets.values()])
        shown = [own.token for own in (*sample.history, sample)]
        begun = len(set(shown)) < len(shown) or _is_first(cache, shown[0])
        for key, spec in targets.items():
            stored = cache.read(token, [key])[key]
            scene = torch.from_numpy(stored.floats()).double()
            window = said[spec.name][0].double().cpu()
            if stored.region is not None:
                window = window * torch.from_numpy(stored.region)
            sums[key][begun].add(scene, window)
        bar.advance()
    return sums


def window_gap(parts: Sequence[Sums]) -> dict[str, dict[str, float | int | None]]:
    """Return how far windows are from the memory of whole scenes.

    Args:
        parts: `window_sums` of some frames and of others.

    Returns:
        Target -> `frames`; `l2`: |window - scene| / |scene| over stored cells of frames whose scene
        is older than their window; `cosine` of the same; `begun`: l2 of frames whose scene began
        within their window, which is what the codec and arithmetic change. None where there are no
        such frames.
    """
    gaps = {}
    for key in parts[0]:
        far, begun = (sum((part[key][which] for part in parts), _Sums()) for which in (0, 1))
        gaps[key] = {
            "frames": far.frames,
            "l2": far.l2(),
            "cosine": far.cosine(),
            "begun": begun.l2(),
        }
    return gaps


def remembered_targets(cache: Cache) -> dict[str, TargetSpec]:
    """Return the targets that depend on whole scenes, box sets left out.

    Raises:
        ConfigError: there are none.
    """
    policy = cache.fingerprint.get("memory", {}).get("policy", "none")
    found = {
        key: spec
        for key, spec in cache.specs.items()
        if spec.tap.in_order and spec.tap.kind != "box_set"
    }
    if policy != "scene" or not found:
        raise ConfigError(
            f"windows= compares with what a teacher said that remembers whole scenes. Cache "
            f"{cache.url} has memory {policy} and targets {', '.join(cache.specs)}. Leave windows "
            "out, or name a cache that was extracted with teacher.memory=scene."
        )
    return found


def _is_first(cache: Cache, token: str) -> bool:
    """Tell whether a frame is the first of its scene in the cache."""
    place = int(cache.frames.tokens.positions([token])[0])
    scenes = cache.frames.scenes
    return place <= 0 or scenes[place - 1] != scenes[place]

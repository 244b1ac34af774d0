"""Reading tensors inside a built model: forward hooks on named modules."""

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bevcask.detectors.mmdet3d.families import Tap
from bevcask.detectors.mmdet3d.recipe import Recipe
from bevcask.errors import ConfigError
from bevcask.geometry import CLASSES, Grid
from bevcask.registry import suggest
from bevcask.targets.spec import TapInfo

_CANONICAL = {"dense_bev": "BCYX", "query_set": "BQC", "image_feature": "BVCHW"}


class Reader:
    """Keeps what the tapped modules gave in the last forward.

    Args:
        network: the built model; hooks are put on its modules.
        recipe: its taps; named ones of the family that this model lacks are left out.

    Raises:
        ConfigError: a tap the user gave names no module.
    """

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        self._recipe = recipe
        modules = dict(network.named_modules())
        self._taps: dict[str, Tap] = {}
        self._seen: dict[str, Any] = {}
        for name, tap in recipe.taps.items():
            if (path := tap.at.partition("[")[0]) in modules:
                self._taps[name] = tap
            elif name in recipe.required:
                raise ConfigError(
                    f"taps.{name}: the model has no module {path!r}.{suggest(path, modules)} Its "
                    f"parts: {', '.join(key for key, _ in network.named_children())}."
                )
        for path in {tap.at.partition("[")[0] for tap in self._taps.values()}:
            modules[path].register_forward_hook(self._keep(path))

    def _keep(self, path: str) -> Any:
        """Return a hook; what a loss changes in place later (heatmap logits) is copied here."""
        heatmaps = {
            name
            for name, tap in self._taps.items()
            if tap.kind == "heatmap" and tap.at.partition("[")[0] == path
        }

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._seen[path] = output
            for name in heatmaps:
                with contextlib.suppress(LookupError, TypeError):  # a head without heatmaps
                    self._seen[name] = self._heatmap(name, output)

        return hook

    def read(self, num_samples: int) -> dict[str, Tensor]:
        """Return the taps of the last forward by name, batch first, and forget them.

        Raises:
            ConfigError: a tap the user gave was not reached, or is no tensor of its axes.
        """
        found = {}
        for name, tap in self._taps.items():
            try:
                if tap.kind == "heatmap":
                    found[name] = self._seen[name]
                else:
                    raw = _pick(self._seen[tap.at.partition("[")[0]], tap.at)
                    found[name] = _arrange(raw, tap, num_samples)
            except (LookupError, TypeError, ValueError) as error:
                if name in self._recipe.required:
                    raise ConfigError(
                        f"taps.{name}: cannot read {tap.at} as a {tap.kind} with axes {tap.order}: "
                        f"{type(error).__name__} {error}. Check its index, `kind` and `axes`."
                    ) from error
        self._seen = {}
        return found

    def describe(self, taps: Mapping[str, Tensor]) -> dict[str, TapInfo]:
        """Return what these taps are.

        Raises:
            ConfigError: the extent of a BEV map is not known, or its cells are not square.
        """
        recipe = self._recipe
        infos = {}
        for name, values in taps.items():
            tap = self._taps[name]
            shape = tuple(values.shape[1:])
            dense = tap.kind in ("dense_bev", "heatmap")
            infos[name] = TapInfo(
                name,
                tap.kind,
                shape,
                grid=_grid(recipe, name, shape[-2], shape[-1]) if dense else None,
                nonnegative=tap.nonnegative or tap.kind == "heatmap",
                classes=_in_our_order(recipe)[1] if tap.kind == "heatmap" else (),
                depends_on_images=bool(recipe.cameras),
            )
        return infos

    def _heatmap(self, name: str, output: Any) -> Tensor:
        """Return probabilities, one channel a class, in our order, float32 (B, K, Y, X)."""
        order, _ = _in_our_order(self._recipe)
        picked = _pick(output, self._taps[name].at)
        if isinstance(picked, Tensor):
            logits = picked
        else:  # CenterHead: a list of levels for each task, each a dict of branches
            logits = torch.cat([task[0]["heatmap"] for task in picked], dim=1)
        return logits[:, list(order)].float().sigmoid()


def _in_our_order(recipe: Recipe) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the model's channels in our order of classes, and the classes."""
    order = sorted(range(len(recipe.classes)), key=lambda i: CLASSES.index(recipe.classes[i]))
    return tuple(order), tuple(recipe.classes[i] for i in order)


def _pick(output: Any, at: str) -> Any:
    """Follow the indices of a tap: `neck[0]`, `head[0][heatmap]`."""
    for index in re.findall(r"\[(\w+)\]", at):
        output = output[int(index) if index.isdigit() else index]
    return output


def _arrange(output: Any, tap: Tap, num_samples: int) -> Tensor:
    """Bring a raw tensor into the axes of its kind."""
    raw = output.dense() if hasattr(output, "dense") else output  # sparse, of spconv or mmcv
    if not isinstance(raw, Tensor):
        raise TypeError(f"the output is a {type(raw).__name__}, not a tensor")
    order = tap.order
    if raw.ndim != len(order):
        raise ValueError(f"the output has shape {tuple(raw.shape)}")
    if "N" in order:
        at = order.index("N")
        raw = raw.reshape(*raw.shape[:at], num_samples, -1, *raw.shape[at + 1 :])
        order = order.replace("N", "BV")
    if "L" in order:
        raw = raw.select(order.index("L"), -1)
        order = order.replace("L", "")
    canonical = _CANONICAL[tap.kind]
    if sorted(order) != sorted(canonical):
        raise ValueError(f"a {tap.kind} has axes {canonical}")
    return raw.permute([order.index(axis) for axis in canonical])


def _grid(recipe: Recipe, name: str, num_y: int, num_x: int) -> Grid:
    if recipe.extent is None:
        raise ConfigError(
            f"tap {name}: the config has no point_cloud_range, so where its BEV maps lie is not "
            "known. Say detector.extent=[x_min,y_min,x_max,y_max], metres."
        )
    x_min, y_min, x_max, y_max = recipe.extent
    cell = (x_max - x_min) / num_x
    if abs((y_max - y_min) / num_y - cell) > 1e-6 * cell:
        raise ConfigError(
            f"tap {name}: {num_x} x {num_y} cells over {x_max - x_min:g} x {y_max - y_min:g} m are "
            "not square. Check detector.extent, or whether this is a BEV map with axes BCYX."
        )
    return Grid(x_min, y_min, cell, num_x, num_y)

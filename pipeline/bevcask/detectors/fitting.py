"""Which of the shipped detectors a file of weights fits, whole or not at all."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from bevcask.detectors import find_detector
from bevcask.detectors.base import Detector
from bevcask.detectors.weights import NETWORK, differences
from bevcask.errors import CheckpointError
from bevcask.groups import group_members, load_group

_WRAPS_OTHERS = "mmdet3d"  # its networks come from configs of mmdet3d, and are not built here


def try_on(
    tensors: Mapping[str, Tensor], types: Collection[str] | None = None
) -> dict[str, str | None]:
    """Return why each detector config does not take these weights; None where it takes them.

    Networks are built without memory: names, shapes and what else a detector asks of a file decide.

    Args:
        tensors: under the names of the bare network, see `weights.read_tensors`.
        types: detectors to try, by their names in the registry; None tries all of this package.
    """
    by_type: dict[str, list[str]] = {}
    for name in group_members("detector"):
        by_type.setdefault(load_group("detector", name)["type"], []).append(name)
    found: dict[str, str | None] = {}
    for kind, names in by_type.items():
        if kind == _WRAPS_OTHERS or (types is not None and kind not in types):
            continue
        if types is None and not _named_alike(tensors, _bodiless(names[-1])):
            continue
        found |= {name: _misfit(tensors, _bodiless(name)) for name in names}
    return found


def _bodiless(name: str) -> Detector:
    """Return the network of a detector config, of names and shapes alone."""
    plugin, config = find_detector(load_group("detector", name), f"detector/{name}")
    with torch.device("meta"):
        return plugin(config)


def _named_alike(tensors: Mapping[str, Tensor], detector: Detector) -> bool:
    """Tell whether all tensors lie in modules that detectors of this type have."""
    own = {name for name, _ in [*detector.named_children(), *detector.named_parameters()]}
    return {name.partition(".")[0] for name in tensors} <= own


def _misfit(tensors: Mapping[str, Tensor], detector: Detector) -> str | None:
    try:
        problems = differences(detector.state_dict(), detector.adopt(tensors))
    except CheckpointError as error:
        return str(error)
    return "; ".join(problems) or None


def is_wrapped(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether these are weights that bevcask wrote of a foreign model."""
    return all(name.startswith(NETWORK) for name in tensors)

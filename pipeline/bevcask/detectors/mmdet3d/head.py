"""The branches of an mmdet3d CenterHead under our names, for students that inherit a head."""

import logging
import re
from typing import Any

from torch import Tensor

from bevcask.detectors.blocks.second import NORM_EPS
from bevcask.detectors.mmdet3d.recipe import Recipe
from bevcask.targets.box_code import TASKS

_log = logging.getLogger(__name__)
_BRANCHES = frozenset({"reg", "height", "dim", "rot", "vel", "heatmap"})
_HEAD = "pts_bbox_head"


def export_center_head(network: Any, recipe: Recipe) -> dict[str, Tensor]:
    """Return `head.tasks.TASK.BRANCH...` tensors, or nothing where the head is of another sort.

    Task groups and heatmap channels come in our order. A norm's small constant differs (1e-5 there,
    ours here), so running variances are shifted by the difference: the branches compute the same.
    """
    if not recipe.head.get("tasks"):
        return {}
    theirs = {frozenset(names): task for task, names in enumerate(recipe.task_classes)}
    odd = [branch for branch in recipe.head["common_heads"] if branch not in _BRANCHES]
    grouped = set(theirs) == {frozenset(names) for names in TASKS}
    if not grouped or odd or not recipe.head.get("norm_bbox", True):
        _log.info("the teacher's head groups or codes boxes otherwise; it is not exported.")
        return {}
    found = {}
    for task, names in enumerate(TASKS):
        source = theirs[frozenset(names)]
        channels = [recipe.task_classes[source].index(name) for name in names]
        prefix = f"task_heads.{source}."
        state = getattr(network, _HEAD).state_dict()
        for name in (key for key in state if key.startswith(prefix)):
            branch, layer, rest = name.removeprefix(prefix).split(".", 2)
            tensor = state[name]
            if branch == "heatmap" and re.fullmatch("weight|bias", rest):
                tensor = tensor[channels]
            if rest == "bn.running_var":
                norm = getattr(network, _HEAD).get_submodule(name.removesuffix(".running_var"))
                tensor = tensor + norm.eps - NORM_EPS
            ours = re.sub("^conv[.]", "0.", re.sub("^bn[.]", "1.", rest))
            found[f"head.tasks.{task}.{branch}.{layer}.{ours}"] = tensor
    return found

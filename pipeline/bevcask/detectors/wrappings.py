"""Weights in a torch file, however the training that wrote it wrapped them."""

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from bevcask.errors import CheckpointError

_log = logging.getLogger(__name__)
_NESTS = ("state_dict", "model", "ema_state_dict", "state_dict_ema", "model_ema", "ema", "module")
"""Where checkpoints keep weights, the first that is there is taken: mmengine and Lightning average
in `state_dict` already, and what stands beside it is the other of the two."""
_PREFIXES = ("module.", "model.")  # added by data parallelism, averages and Lightning modules
_COUNTERS = frozenset({"steps", "n_averaged", "num_updates", "updates", "decay"})
OURS = "bevcask"
"""Key under which our own training checkpoints carry the note of their student."""
STUDENT = "student."
"""Where they keep it."""


def tensors_in(saved: object, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a loaded checkpoint under the names of the bare network.

    Args:
        saved: a state dict, or a dictionary that holds one; of our own training checkpoints the
            student is returned.
        path: for messages.

    Raises:
        CheckpointError: there are none.
    """
    state, taken, left = _opened(saved)
    for key in left:
        _log.info("%s: weights of %s; it also holds %s", path, taken[-1], key)
    tensors = _named(state)
    if isinstance(saved, Mapping) and OURS in saved:
        tensors = {n: t for n, t in tensors.items() if n.startswith(STUDENT)}
        return {name.removeprefix(STUDENT): tensor for name, tensor in tensors.items()}
    if not tensors:
        raise CheckpointError(
            f"{path}: holds no tensors, neither at the top nor under {', '.join(_NESTS)}. Give a "
            "state dict, or a checkpoint that holds one."
        )
    return bare(tensors)


def layers_of(saved: object) -> list[str]:
    """Return what weights are wrapped in, outermost first: keys, then prefixes of all names."""
    state, taken, left = _opened(saved)
    tensors = _named(state)
    beside = [f"{key} (beside, not read)" for key in left]
    if isinstance(saved, Mapping) and OURS in saved:
        return [*taken, *beside, STUDENT]
    prefixes = _peeled(tensors)[1]
    return [*taken, *beside, *prefixes]


def _named(state: object) -> dict[str, Tensor]:
    """Return tensors that have names: states of optimizers number theirs."""
    if not isinstance(state, Mapping):
        return {}
    return {
        name: value
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _opened(saved: object) -> tuple[object, list[str], list[str]]:
    """Return the innermost mapping, keys that lead to it, and other such keys passed by."""
    state, taken, left = saved, [], []
    while isinstance(state, Mapping):
        nests = [key for key in _NESTS if isinstance(state.get(key), Mapping)]
        if not nests:
            break
        taken.append(nests[0])
        left += nests[1:]
        state = state[nests[0]]
    return state, taken, left


def bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without the prefixes that all of them share, and without counters beside."""
    return _peeled(tensors)[0]


def _peeled(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return bare tensors, and the prefixes taken from them, outermost first."""
    found, peeled = dict(tensors), list[str]()
    while True:
        weights = {n: t for n, t in found.items() if not (n in _COUNTERS and t.ndim == 0)}
        prefix = next((p for p in _PREFIXES if all(n.startswith(p) for n in weights)), None)
        if prefix is None or not weights:
            return found, peeled
        peeled.append(prefix)
        found = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}

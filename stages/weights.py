"""weights: what a file of weights is, and which detectors here it fits."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bevcask.catalog import resolve
from bevcask.detectors.file_families import Family, family_of
from bevcask.detectors.fitting import is_wrapped, try_on
from bevcask.detectors.weights import is_pickle, read_note, read_plain, read_trusted, read_weights
from bevcask.detectors.wrappings import bare, layers_of, tensors_in
from bevcask.errors import CheckpointError
from bevcask.groups import group_members
from bevcask.verbs import WeightsConfig

_LONG = 80  # characters of a note's value
_DISTILLER = ("student.", "teacher.")


def run(config: WeightsConfig) -> dict[str, Any]:
    """Say what a file is.

    Returns:
        `file`, `family`, `wrapped_in` (outermost first), `note` (what the file says of itself),
        `dtypes` (tensors of each), `tensors`, `numbers` (in them, running statistics of norms too),
        `fits` (detector configs that take it whole), `does_not_fit` (those of its family that do
        not, each with `because`), `next`.

    Raises:
        CheckpointError: the file is missing or damaged, holds no tensors, or is a pickle of more
            than tensors and plain values without `trust_checkpoint`.
    """
    path = Path(resolve("checkpoint", config.file))
    tensors, layers, note = _read(path, config.trust_checkpoint)
    family = family_of(tensors)
    fits, others = _tried(tensors, family)
    return {
        "file": str(path),
        "family": _name(tensors, family, fits),
        "wrapped_in": layers,
        "note": note,
        "dtypes": dict(Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values())),
        "tensors": len(tensors),
        "numbers": sum(tensor.numel() for tensor in tensors.values()),
        "fits": fits,
        "does_not_fit": {name: {"because": reason} for name, reason in others.items()},
        "next": _advice(path, is_wrapped(tensors), fits),
    }


def _read(path: Path, trust: bool) -> tuple[dict[str, Tensor], list[str], dict[str, Any]]:
    """Return tensors under bare names, what they were wrapped in, and the file's note."""
    if not is_pickle(path):
        raw = read_weights(path)
        if not raw:
            raise CheckpointError(f"{path}: holds no tensors. Give a file of weights.")
        tensors, layers, note = bare(raw), layers_of(raw), _short(read_note(path))
    else:
        saved = read_trusted(path) if trust else _read_untrusted(path)
        tensors, layers, note = tensors_in(saved, path), layers_of(saved), _said(saved)
    return tensors, layers + [p for p in _DISTILLER if any(n.startswith(p) for n in tensors)], note


def _read_untrusted(path: Path) -> object:
    try:
        return read_plain(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged, or a pickle of more than tensors "
            "and plain values, which can run any code that is in it. Compare its size with the "
            "original's; if that is right and you trust whoever made it, say "
            "trust_checkpoint=true."
        ) from error


def _said(saved: object) -> dict[str, Any]:
    """Return what a checkpoint says beside its weights: of plain values the short ones."""
    if not isinstance(saved, Mapping):
        return {}
    nested = [saved[key] for key in ("meta", "bevcask") if isinstance(saved.get(key), Mapping)]
    return _short({key: value for part in (saved, *nested) for key, value in part.items()})


def _short(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values; of long ones, which are configs and commands, how they begin."""
    return {
        str(key): value if len(str(value)) <= _LONG else _beginning(str(value))
        for key, value in said.items()
        if isinstance(value, str | int | float)
    }


def _beginning(text: str) -> str:
    return f"{' '.join(text[:_LONG].split())}... ({len(text):,} characters)"


def _tried(
    tensors: Mapping[str, Tensor], family: Family | None
) -> tuple[list[str], dict[str, str]]:
    """Return the configs that take the tensors, and why those of their family do not."""
    if family is not None and not family.types:
        return [], {family.name: str(family.lacks)}
    if is_wrapped(tensors):
        return [], {}
    tried = try_on(tensors, None if family is None else family.types)
    fits = [name for name, reason in tried.items() if reason is None]
    if family is None:
        return fits, {}
    return fits, {name: reason for name, reason in tried.items() if reason is not None}


def _name(tensors: Mapping[str, Tensor], family: Family | None, fits: list[str]) -> str:
    if family is not None:
        return family.name
    if fits:
        return "bevcask, own names"
    return "bevcask around mmdet3d" if is_wrapped(tensors) else "unknown here"


def _advice(path: Path, wrapped: bool, fits: list[str]) -> str:
    teachers = [name for name in fits if name in group_members("teacher")]
    if teachers:
        trust = " teacher.trust_checkpoint=true" if is_pickle(path) else ""
        return f"teacher={teachers[0]} teacher.checkpoint={path}{trust}"
    if fits:
        return f"student={fits[0]} student.checkpoint={path}"
    if wrapped:
        return f"teacher=mmdet3d teacher.detector.config=CONFIG teacher.checkpoint={path}"
    return "nothing here reads it whole, and nothing is loaded half (docs/weights.md)"

"""Detector weights on disk: safetensors with a JSON note of what made them."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from bevcask.errors import CheckpointError

_SHOWN = 3


def save_weights(tensors: Mapping[str, Tensor], path: Path, note: Mapping[str, str]) -> None:
    """Write tensors atomically as safetensors; `note` (strings) is kept in the header."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, partial, metadata=dict(note))
    partial.replace(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        CheckpointError: the file is missing, or is not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint. Give a file or catalog:NAME.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}). "
            "Write detector weights with `bevcask export`."
        ) from error


def read_note(path: Path) -> dict[str, str]:
    """Return the note written beside the tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a file into a module whose names and shapes must agree exactly.

    Raises:
        CheckpointError: keys missing, unexpected or of another shape; counted, first few named.
    """
    tensors = read_weights(path)
    own = module.state_dict()
    problems = [
        _count("missing", sorted(own.keys() - tensors.keys())),
        _count("unexpected", sorted(tensors.keys() - own.keys())),
        _count(
            "of another shape",
            [
                f"{name} (expected {tuple(own[name].shape)}, got {tuple(tensors[name].shape)})"
                for name in sorted(own.keys() & tensors.keys())
                if own[name].shape != tensors[name].shape
            ],
        ),
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise CheckpointError(
            f"{path} does not fit {type(module).__name__}: {'; '.join(found)}. "
            "Pick the architecture the checkpoint was trained with."
        )
    module.load_state_dict(tensors)


def _count(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"

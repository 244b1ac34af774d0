"""What readers of published checkpoints share: wrapped students, and what does not fit, by name."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

_SHOWN = 3
_STUDENT = "student."  # a distiller's checkpoint holds its student so, and much else


def unwrapped(tensors: Mapping[str, Tensor], others: tuple[str, ...]) -> dict[str, Tensor]:
    """Return a distiller's student under its own names; other files as they are.

    Args:
        tensors: of the file.
        others: how names begin that are not the student's.
    """
    if not any(name.startswith(_STUDENT) for name in tensors):
        return dict(tensors)
    return {
        name.removeprefix(_STUDENT): tensor
        for name, tensor in tensors.items()
        if not name.startswith(others)
    }


def misfits(
    given: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    needed: Collection[str],
    besides: Collection[str] = (),
) -> list[str]:
    """Return what is missing, surplus or of another shape, a sentence each.

    Args:
        given: tensors of the file.
        shapes: of every tensor that has a place.
        needed: those that must be there.
        besides: names that may be there and are judged elsewhere.
    """
    surplus = given.keys() - shapes.keys() - set(besides)
    return [
        *(f"{name} is missing" for name in sorted(set(needed) - given.keys())),
        *(f"{name} has no place" for name in sorted(surplus)),
        *(
            f"{name} should have shape {shapes[name]}, has {tuple(given[name].shape)}"
            for name in sorted(shapes.keys() & given.keys())
            if tuple(given[name].shape) != shapes[name]
        ),
    ]


def few(problems: list[str]) -> str:
    """Return the first problems, and how many there are in all."""
    more = f"; {len(problems)} in all" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more


def alike(given: Tensor, wanted: Tensor) -> bool:
    """Tell whether a constant is what it should be, as precisely as its type holds it."""
    if given.shape != wanted.shape:
        return False
    rtol = max(1e-5, torch.finfo(given.dtype).eps)
    return torch.allclose(given.float().cpu(), wanted.float().cpu(), rtol=rtol)

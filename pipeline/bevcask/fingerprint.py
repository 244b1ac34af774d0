"""Identity: digests of trees, weights and files, and the leaves in which two trees differ.

A fingerprint is a tree of plain JSON data whose leaves are values or SHA-256 digests. Two runs that
read, compute and store the same things have equal trees. Nothing here knows what a leaf means.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bevcask.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

ABSENT = "(absent)"
_BLOCK = 1 << 20


def canonical(tree: Any) -> Any:
    """Return the tree as it comes back from JSON: tuples are lists, keys are strings.

    Raises:
        ValueError: a number is NaN or infinite (it would equal nothing, not even itself).
        TypeError: something in the tree is not JSON data.
    """
    return json.loads(json.dumps(tree, allow_nan=False))


def digest(tree: Any) -> str:
    """Return the SHA-256 (hex) of a tree of JSON data, whatever the order of its keys.

    >>> digest({"a": 1, "b": (2, 3)}) == digest({"b": [2, 3], "a": 1})
    True
    """
    return hashlib.sha256(canonical_text(tree).encode()).hexdigest()


def canonical_text(tree: Any) -> str:
    """Return the JSON of a tree that all equal trees share: sorted keys, no spaces."""
    return json.dumps(canonical(tree), sort_keys=True, separators=(",", ":"), allow_nan=False)


def weights_digest(state_dict: Mapping[str, "Tensor"]) -> str:
    """Return the SHA-256 (hex) of named tensors: sorted (name, dtype, shape, bytes).

    The digest belongs to the tensors, not to a file: the same weights saved as safetensors or by
    `torch.save`, on any device and with any strides, give the same digest.

    Args:
        state_dict: name -> tensor of any shape, dtype and device.
    """
    import torch

    total = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu()
        header = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        total.update(json.dumps(header).encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def file_digest(path: Path | str) -> str:
    """Return the SHA-256 (hex) of a file's bytes.

    Raises:
        DataError: the file cannot be read.
    """
    total = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(_BLOCK):
                total.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}.") from error
    return total.hexdigest()


def differences(expected: Any, got: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Return every leaf in which two trees differ as (dotted path, expected, got).

    A leaf that one side lacks is reported as `ABSENT` on that side. Tuples equal lists.

    >>> differences({"grid": {"cell": 0.8}, "codec": "int8"}, {"grid": {"cell": 0.6}})
    [('codec', 'int8', '(absent)'), ('grid.cell', 0.8, 0.6)]
    """
    if isinstance(expected, list | tuple) and isinstance(got, list | tuple):
        expected = {str(i): value for i, value in enumerate(expected)}
        got = {str(i): value for i, value in enumerate(got)}
        keys = list(expected if len(expected) > len(got) else got)
    elif isinstance(expected, Mapping) and isinstance(got, Mapping):
        keys = sorted({*expected, *got}, key=str)
    else:
        equal = type(expected) is type(got) and expected == got
        numbers = _is_number(expected) and _is_number(got) and expected == got
        return [] if equal or numbers else [(path, expected, got)]
    found: list[tuple[str, Any, Any]] = []
    for key in keys:
        leaf = f"{path}.{key}" if path else str(key)
        found += differences(expected.get(key, ABSENT), got.get(key, ABSENT), leaf)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

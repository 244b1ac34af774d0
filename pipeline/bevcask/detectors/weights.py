"""Detector weights on disk: safetensors with a JSON note of what made them, or a trusted pickle."""

import io
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from bevcask.detectors.base import Detector
from bevcask.detectors.file_families import family_of
from bevcask.detectors.wrappings import OURS, bare, tensors_in
from bevcask.errors import CheckpointError
from bevcask.fingerprint import weights_digest
from bevcask.paths import write_whole

NETWORK = "network."
"""Where a detector that wraps a foreign model keeps it; files of that model lack the prefix."""
_PICKLES = frozenset({".pth", ".pt", ".ckpt", ".bin", ".tar"})
_TORCH = (b"PK\x03\x04", b"\x80")  # a zip, or a bare pickle of protocol 2 and on
_HALVES = (torch.float16, torch.bfloat16)
_SHOWN = 3


def save_weights(tensors: Mapping[str, Tensor], path: Path, note: Mapping[str, str]) -> None:
    """Write tensors atomically as safetensors; `note` (strings) is kept in the header.

    A `.pth` is written instead as released code reads its own.

    Raises:
        CheckpointError: no room, no permission; what was there before stays.
    """
    write = torch_file if path.suffix == ".pth" else weights_file
    try:
        write_whole(path, write(tensors, note))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot write the weights ({error.strerror}). Make room, or make the folder "
            "writable, and repeat the command; or choose another place."
        ) from error


def torch_file(tensors: Mapping[str, Tensor], note: Mapping[str, str]) -> bytes:
    """Return the bytes of a torch file with a state dict that says the versions of its modules.

    Released code takes one that says none for an older one, and renames parts of it.
    """
    state = OrderedDict((name, tensor.detach().cpu().clone()) for name, tensor in tensors.items())
    parts = [name.split(".") for name in state]
    modules = {".".join(own[:end]) for own in parts for end in range(len(own))}
    versions = OrderedDict((name, {"version": 2}) for name in sorted(modules))
    state._metadata = versions  # type: ignore[attr-defined]
    file = io.BytesIO()
    torch.save({"state_dict": state, "meta": dict(note)}, file)
    return file.getvalue()


def weights_file(tensors: Mapping[str, Tensor], note: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file with a note of strings in its header."""
    from safetensors.torch import save

    apart = {  # published names may share a tensor, which the format does not know
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    return save(apart, metadata=dict(note))


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


def is_pickle(path: Path) -> bool:
    """Tell what torch writes from safetensors: by what is in the file, whatever its name says."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # behind the length of a safetensors header
        return False
    return path.suffix in _PICKLES or start.startswith(_TORCH)


def read_note(path: Path) -> dict[str, str]:
    """Return the note written beside the tensors; empty for files that others wrote."""
    from safetensors import safe_open

    if is_pickle(path):
        saved = read_plain(path)
        return dict(saved.get(OURS, {})) if isinstance(saved, Mapping) else {}
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def read_tensors(path: Path, trust: bool = False, plain: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file or of a pickle, under the names of the bare network.

    Args:
        path: `.safetensors`, or what torch writes.
        trust: the user trusts whoever made it; a pickle may run code.
        plain: read a pickle that nobody vouches for, if it holds tensors and plain values alone.

    Raises:
        CheckpointError: the file is missing, unreadable, holds no tensors, or is a pickle that may
            not be read.
    """
    if not is_pickle(path):
        return bare(read_weights(path))
    if trust:
        return tensors_in(read_trusted(path), path)
    if plain:
        return tensors_in(read_plain(path), path)
    raise CheckpointError(
        f"{path} is a pickle, and reading a pickle can run any code that is in it. If you "
        "trust whoever made it, say teacher.trust_checkpoint=true; or convert it once: "
        "bevcask export OUT.safetensors teacher=... teacher.checkpoint=... "
        "teacher.trust_checkpoint=true."
    )


def read_trusted(path: Path) -> object:
    """Read what torch wrote, whatever is in it: it may run any code.

    Raises:
        CheckpointError: damaged, or made of classes that are not installed.
    """
    try:
        with path.open("rb") as file:  # by a path torch goes by its name
            return torch.load(file, map_location="cpu", weights_only=False)
    except Exception as error:  # a pickle may raise anything
        said = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path}: cannot read ({said}).") from error


def read_plain(path: Path) -> object:
    """Read what torch wrote, if it is made of tensors and plain values.

    Raises:
        CheckpointError: damaged, or it asks for more.
    """
    try:
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        raise CheckpointError(
            f"{path}: not a torch file of tensors alone ({type(error).__name__}; "
            f"{path.stat().st_size:,} bytes), and nothing else is unpickled. If you trust whoever "
            'made it, keep its tensors alone, once: python -c "import torch; '
            f"torch.save(torch.load('{path}', 'cpu', weights_only=False)['state_dict'], "
            "'OUT.pth')\", and give OUT.pth."
        ) from error


def identify(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of weights as a network holds them.

    The same for a wrapped model and for its own files, and for half-precision files and the
    float32 network that loads them.
    """
    return weights_digest({name.removeprefix(NETWORK): _wide(t) for name, t in tensors.items()})


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALVES else tensor


def halve(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights in float16.

    Raises:
        CheckpointError: a value is too large for it.
    """
    halves = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    lost = [n for n, t in halves.items() if not bool(t.isfinite().all())]
    if lost:
        raise CheckpointError(
            f"float16 cannot hold {', '.join(lost[:_SHOWN])} (above 65,504). Leave half=true out."
        )
    return halves


def load_weights(module: nn.Module, path: Path, trust: bool = False, plain: bool = False) -> None:
    """Load a file, see `read_tensors`, into a module whose names and shapes must agree exactly.

    Raises:
        CheckpointError: keys missing, unexpected or of another shape; counted, first few named. Or
            the file is of a family that no network here computes; why is said.
    """
    tensors = read_tensors(path, trust, plain)
    family = family_of(tensors)
    if isinstance(module, Detector):
        tensors = dict(module.adopt(tensors))
    own = module.state_dict()
    found = differences(own, tensors)
    if found and family is not None and family.lacks is not None:
        raise CheckpointError(f"{path} is of {family.name}, and is not read: {family.lacks}")
    if found:
        raise CheckpointError(
            f"{path} does not fit {type(module).__name__}: {'; '.join(found)}. "
            "Pick the architecture the checkpoint was trained with."
        )
    # Modules that convert old layouts ask for the version of the file: it is that of the module.
    current = OrderedDict(tensors)
    current._metadata = own._metadata  # type: ignore[attr-defined]
    module.load_state_dict(current)


def differences(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Return what a file lacks, has too much or in another shape; counted, first few named."""
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
    return [problem for problem in problems if problem]


def _count(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"

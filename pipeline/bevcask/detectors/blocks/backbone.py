"""Which image backbones there are, and how published weights fill one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bevcask.detectors.blocks import resnet, swin
from bevcask.detectors.blocks.levels import ImageBackbone, Level
from bevcask.detectors.weights import read_weights
from bevcask.errors import CheckpointError

Variant = Literal[resnet.Variant, swin.Variant]

_WRAPPINGS = ("model", "state_dict")
_SHOWN = 3


def build_backbone(variant: Variant, levels: Sequence[Level]) -> ImageBackbone:
    """Return an image backbone that gives these levels, with random weights."""
    if variant == "swin_t":
        return swin.Swin(swin.SHAPES[variant], levels)
    return resnet.ResNet(variant)


def load_imagenet(backbone: ImageBackbone, path: Path) -> None:
    """Load published weights, exactly but for what other tasks add to a backbone.

    Args:
        backbone: the network to fill; its docstring says what is not read.
        path: `.safetensors`, or a `.pth` read with `weights_only=True`: a state dict, or one under
            `model` or `state_dict`.

    Raises:
        CheckpointError: the file is missing or unreadable, or keys are missing, unexpected or of
            another shape; they are counted and the first few named.
    """
    given, own = backbone.adopt(_read(path)), backbone.state_dict()
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    reshaped = [
        f"{name} (expected {tuple(own[name].shape)}, got {tuple(given[name].shape)})"
        for name in sorted(own.keys() & given.keys())
        if own[name].shape != given[name].shape
    ]
    if missing or unexpected or reshaped:
        raise CheckpointError(
            f"{path} does not fit the image backbone: {_few(missing, 'missing')}; "
            f"{_few(unexpected, 'unexpected')}; {_few(reshaped, 'of another shape')}. "
            f"Give {backbone.published} of the same network as student.detector.backbone."
        )
    backbone.load_state_dict(given)


def _read(path: Path) -> dict[str, Tensor]:
    """Read a mapping of tensors from a safetensors or a pickled torch file."""
    from pickle import UnpicklingError

    if path.suffix == ".safetensors":
        return read_weights(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint. Give student.init a file.")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        raise CheckpointError(
            f"{path}: not a torch file of tensors alone ({type(error).__name__}; "
            f"{path.stat().st_size:,} bytes). Nothing else is unpickled. Save a plain state_dict "
            "with torch.save, or convert it to safetensors."
        ) from error
    state = _unwrap(loaded)
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            f"{path}: expected a mapping from name to tensor (a state_dict), itself or under "
            f"{' or '.join(_WRAPPINGS)}, got {type(state).__name__}. Save the backbone's "
            "state_dict alone."
        )
    return dict(state)


def _unwrap(loaded: Any) -> Any:
    if isinstance(loaded, Mapping):
        for key in _WRAPPINGS:
            if isinstance(loaded.get(key), Mapping):
                return loaded[key]
    return loaded


def _few(names: list[str], what: str) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")

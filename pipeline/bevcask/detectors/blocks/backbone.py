"""Which image backbones there are, and how published weights fill one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bevcask.detectors.blocks import resnet, swin
from bevcask.detectors.blocks.levels import ImageBackbone, Level
from bevcask.detectors.weights import read_tensors
from bevcask.errors import CheckpointError

Variant = Literal[resnet.Variant, swin.Variant]

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
        path: `.safetensors`, or a `.pth` of tensors alone, however wrapped.

    Raises:
        CheckpointError: the file is missing or unreadable, or keys are missing, unexpected or of
            another shape; they are counted and the first few named.
    """
    given, own = backbone.adopt(read_tensors(path, plain=True)), backbone.state_dict()
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


def _few(names: list[str], what: str) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")

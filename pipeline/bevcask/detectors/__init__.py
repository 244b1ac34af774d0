"""Detectors: plain torch modules that find boxes; each can be a teacher or a student."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from bevcask.detectors.base import Detector


def find_detector(section: Mapping[str, Any], where: str) -> "tuple[type[Detector], Any]":
    """Return the class of a `{type: NAME, ...}` section, and its own validated configuration.

    Args:
        section: architecture, see configs/detector.
        where: dotted key of the section, for messages.

    Raises:
        ConfigError: no type, an unknown one, or a wrong value.
    """
    from bevcask.config import build_config

    plugin, own = build_config("detector", section, where)
    return cast("type[Detector]", plugin), own

"""Distillation methods: what they ask of a teacher, and their losses."""

from collections.abc import Mapping
from typing import Any, cast

from bevcask.config import build_config
from bevcask.methods.base import Method


def build_method(section: Mapping[str, Any]) -> Method:
    """Return the method of a `{type: NAME, ...}` section, without adapters; call `build` next.

    Raises:
        ConfigError: unknown type or a wrong value.
    """
    plugin, config = build_config("method", section, "method")
    return cast(type[Method], plugin)(config)

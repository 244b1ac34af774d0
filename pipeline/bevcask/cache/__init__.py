"""Cache: how targets are stored. Knows no models. The format is written down in README.md."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bevcask.cache.begin import create, stored_targets
    from bevcask.cache.encoded import Encoded, concatenate
    from bevcask.cache.frames import FrameTable
    from bevcask.cache.identity import check_identity
    from bevcask.cache.layout import Layout
    from bevcask.cache.quantize import dequantize, encode
    from bevcask.cache.reader import Cache, open_cache
    from bevcask.cache.verify_bytes import Problem, Report, verify
    from bevcask.cache.write_queue import WriteQueue
    from bevcask.cache.writer import Writer

_HOME = {
    "check_identity": "identity",
    "Encoded": "encoded",
    "FrameTable": "frames",
    "Layout": "layout",
    "concatenate": "encoded",
    "dequantize": "quantize",
    "encode": "quantize",
    "Cache": "reader",
    "open_cache": "reader",
    "Problem": "verify_bytes",
    "Report": "verify_bytes",
    "verify": "verify_bytes",
    "Writer": "writer",
    "WriteQueue": "write_queue",
    "create": "begin",
    "stored_targets": "begin",
}

__all__ = [
    "Cache",
    "Encoded",
    "FrameTable",
    "Layout",
    "Problem",
    "Report",
    "WriteQueue",
    "Writer",
    "check_identity",
    "concatenate",
    "create",
    "dequantize",
    "encode",
    "open_cache",
    "stored_targets",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: torch, zarr and dask load no earlier."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

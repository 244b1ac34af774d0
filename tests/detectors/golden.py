"""Golden numbers of released detectors: where they lie, and how near is near enough."""

import os
from pathlib import Path

from torch import Tensor

FOLDER = Path(os.environ.get("BEVCASK_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
MISSING = f"no golden numbers in {FOLDER}: set BEVCASK_GOLDEN"
BAR = 5e-5  # of the largest element


def gap(found: Tensor, said: Tensor) -> float:
    """Return the largest difference as a share of the largest element."""
    assert found.shape == said.shape, (found.shape, said.shape)
    if not said.numel():
        return 0.0
    return float((found - said).abs().max() / said.abs().max().clamp(min=1e-12))

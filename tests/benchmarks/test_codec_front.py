"""The codecs that are compared do what they are said to do."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_every_family_bounds_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    front: Any = importlib.import_module("codec_front")
    random = np.random.default_rng(0)
    mixing_CR = random.random((8, 2))
    features_FCYX = np.float32(np.tensordot(mixing_CR, random.random((2, 4, 6, 5)), axes=1))
    own_FCYX = np.ascontiguousarray(features_FCYX.transpose(1, 0, 2, 3))
    own_FCYX[0, 0, 0, 0] = 50.0  # an outlier
    coded = dict(front.families(own_FCYX, own_FCYX[1:]))
    peak_C = own_FCYX[0].max(axis=(1, 2))
    for bits in front.BITS:
        bound_C = peak_C / (2**bits - 1) / 2 + 1e-6
        apart_CYX = np.abs(coded[f"peak, {bits} bits"][0][1] - own_FCYX[0])
        assert (apart_CYX.max(axis=(1, 2)) <= bound_C).all()
    clipped_CYX = coded["clip 0.99, 8 bits"][0][1]
    assert clipped_CYX[0].max() < 50.0
    assert np.abs(clipped_CYX - own_FCYX[0])[0].flat[1:].max() < peak_C[0] / 255 / 2
    exact_FCYX = np.stack([back for _, back in coded["rank C/4, 8 bits"][1:]])
    np.testing.assert_allclose(exact_FCYX, own_FCYX[1:], atol=0.03)  # rank 2 is all there is
    assert coded["rank C/4, 8 bits"][1][0] < coded["peak, 8 bits"][1][0]

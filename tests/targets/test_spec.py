import json

import pytest

from bevcask.targets.spec import TapInfo, TargetSpec


@pytest.mark.parametrize("said_HW", [None, (8, 8)])
@pytest.mark.parametrize("bins", [(), (1.0, 2.5)])
def test_a_description_survives_json(
    bins: tuple[float, ...], said_HW: tuple[int, int] | None
) -> None:
    tap = TapInfo("image.depth", "image_feature", (6, 2, 4, 4), bins=bins)
    spec = TargetSpec(tap, "float16", said_HW=said_HW)
    data = json.loads(json.dumps(spec.to_dict()))
    assert TargetSpec.from_dict(data) == spec
    assert ("bins" in data["tap"]) == bool(bins)
    assert spec.sizes == "6x2x4x4" + (" of 8x8" if said_HW else "")

import json

import pytest

from bevcask.targets.spec import TapInfo, TargetSpec


@pytest.mark.parametrize("bins", [(), (1.0, 2.5)])
def test_a_description_survives_json(bins: tuple[float, ...]) -> None:
    spec = TargetSpec(TapInfo("image.depth", "image_feature", (6, 2, 4, 4), bins=bins), "float16")
    data = json.loads(json.dumps(spec.to_dict()))
    assert TargetSpec.from_dict(data) == spec
    assert ("bins" in data["tap"]) == bool(bins)
